"""Code that computes on a device makes no tensor elsewhere, and does not wait for values.

The device "meta" holds no values, is on every machine, and refuses tensors of another device: what runs there runs on
a GPU without copies to the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from ilrm.core.cameras import Cameras, Similarity
from ilrm.core.gaussians import PER_GAUSSIAN, Gaussians, matrix_to_quaternion, quaternion_multiply
from ilrm.core.scene import Scene
from ilrm.datasets.procedural import ProceduralConfig, describe
from ilrm.datasets.procedural.worlds import Worlds
from ilrm.evaluate import psnr, ssim
from ilrm.evaluate.metrics import ssim_map
from ilrm.model import ILRM, ComputeConfig, FootprintDecoder, ILRMConfig
from ilrm.model.config import MatchingConfig
from ilrm.model.matching.neighbours import is_astray
from ilrm.model.matching.sparse import SparsePoints
from ilrm.pipeline.refining.config import RefineConfig
from ilrm.pipeline.refining.losses import photometric_reference
from ilrm.pipeline.refining.state import RefineState
from ilrm.render import normals
from ilrm.render.gsplat_cuda import draw
from ilrm.train import losses as train_losses
from ilrm.train.config import LossConfig
from ilrm.train.data.batch import Batch
from ilrm.train.data.preparation import moved
from ilrm.train.optim import Average
from ilrm.train.perceptual import LPIPS, VGGDistance
from ilrm.train.readings import NormWindow, pack
from tests.conftest import make_cameras, make_gaussians
from tests.devices.launches import Launches, NothingFromTheHost

META = torch.device("meta")
VIEWS, WIDTH, HEIGHT = 3, 32, 32
# Of a step with two views, the rasteriser's own left out.
LAUNCHES_OF_REFINEMENT = 320


def meta_gaussians(degree: int = 1) -> Gaussians:
    return make_gaussians(VIEWS * 16, degree).to(META)


def meta_cameras() -> Cameras:
    return make_cameras(VIEWS, WIDTH, HEIGHT).to(META)


def tiny(**changes: Any) -> ILRMConfig:
    """The smallest network with that option; everything is on."""
    config = ILRMConfig(width=32, layers=2, head_width=16, viewpoint_factor=4, decoder=FootprintDecoder())
    return replace(config, **changes)


LEARNED = MatchingConfig(planes=16, channels=4, fine=4)
CHANNELS = ("origin", "direction", "moment", "rgb", "match", "consistency")
NETWORKS: dict[str, ILRMConfig] = {
    "released two-view": replace(ILRMConfig.released_two_view(), layers=1),
    "released wide": replace(ILRMConfig.released_wide(), layers=2),
    "footprint": tiny(),
    "prope": tiny(camera_encoding="prope"),
    "matching": tiny(matching=MatchingConfig(planes=16), image_channels=CHANNELS, pixel_head=4),
    "learned matching": tiny(matching=LEARNED, image_channels=CHANNELS),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    config = NETWORKS[name]
    with META:
        network = ILRM(config)
    network.compute = ComputeConfig(mini_batch="quarter" if name == "footprint" else "none")
    side = config.size_multiple * max(1, 32 // config.size_multiple)
    cameras = make_cameras(VIEWS, side, side).to(META)
    images, mask = torch.rand(2, VIEWS, side, side, 3, device=META), torch.ones(2, VIEWS, side, side, device=META) > 0
    pose, K = (x.expand(2, *x.shape) for x in (cameras.c2w, cameras.K))
    for options in ({}, {"mask": mask}, {"iterations": True}):
        assert network(images, pose, K, **options).device == META
    if config.matching is not None:
        points = SparsePoints(torch.rand(2, 7, 3, device=META), torch.rand(2, 7, 3, device=META))
        assert network(images, pose, K, with_match=True)[1].fraction.device == META
        assert network(images, pose, K, points=points, mask=mask, with_match=True)[1].fraction.device == META


@pytest.mark.parametrize("name", NETWORKS)
def test_a_forward_pass_takes_nothing_from_the_host(name: str) -> None:
    """Otherwise it would wait for the device, and could not be recorded as a CUDA graph."""
    with META:
        network = ILRM(NETWORKS[name])
    network.compute = ComputeConfig(mini_batch="quarter" if name == "footprint" else "none")
    side = 2 * NETWORKS[name].size_multiple
    cameras = make_cameras(VIEWS, side, side).to(META)
    images, mask = torch.rand(2, VIEWS, side, side, 3, device=META), torch.ones(2, VIEWS, side, side, device=META) > 0
    pose, K = (x.expand(2, *x.shape) for x in (cameras.c2w, cameras.K))
    network(images, pose, K)  # mini-batches stay on the device from then on
    with torch.no_grad(), NothingFromTheHost(META):
        assert network(images, pose, K, mask=mask).device == META
        points = SparsePoints(torch.rand(2, 7, 3, device=META))
        assert network(images, pose, K, points=points).device == META


def rasterization(device: torch.device = META, **given: Any) -> tuple[Tensor, Tensor, None]:
    """gsplat's shapes."""
    shape = (*given["viewmats"].shape[:2], given["height"], given["width"])
    every = sum(given[name].sum() for name in ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks"))
    images = torch.ones(*shape, 4, device=device) * every + given["backgrounds"].sum()
    return images, images[..., :1], None


def drawn() -> Tensor:
    gaussians, cameras = meta_gaussians(), meta_cameras()
    batch = gaussians.map(lambda x: x[None].expand(2, *x.shape))
    seen_by = Cameras.stack([cameras, cameras])
    return draw(rasterization, batch, seen_by, torch.ones(3, device=META), 0.01, 10.0)[0]


SIMILARITY = Similarity(2.0, torch.eye(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
FAR = torch.tensor([5e5, 5e6, 200.0], dtype=torch.float64)
IMAGES = {"size": (2, 16, 16, 3), "device": META}

FUNCTIONS: dict[str, Callable[[], Any]] = {
    "rays": lambda: meta_cameras().rays()[1],
    "plucker": lambda: meta_cameras().plucker(),
    "w2c": lambda: meta_cameras().w2c,
    "from_w2c": lambda: Cameras.from_w2c(meta_cameras().c2w[:, :3], meta_cameras().K, WIDTH, HEIGHT),
    "resize": lambda: meta_cameras().resize(8, 8),
    "crop": lambda: meta_cameras().crop(1, 1, 8, 8),
    "relative_to": lambda: meta_cameras().relative_to(FAR),
    "cameras.transform": lambda: meta_cameras().transform(SIMILARITY),
    "gaussians.transform": lambda: meta_gaussians(2).transform(SIMILARITY),
    "far gaussians.transform": lambda: meta_gaussians(2).at(FAR).transform(SIMILARITY),
    "counted_from": lambda: meta_gaussians().counted_from(FAR),
    "world_means": lambda: meta_gaussians().at(FAR).world_means,
    "covariances": lambda: meta_gaussians().covariances(),
    "possible": lambda: meta_gaussians().possible(),
    "cat": lambda: Gaussians.cat([meta_gaussians(), meta_gaussians().at(FAR)]),
    "matrix_to_quaternion": lambda: matrix_to_quaternion(meta_cameras().c2w[:, :3, :3]),
    "quaternion_multiply": lambda: quaternion_multiply(meta_gaussians().quats, meta_gaussians().quats),
    "from_gsplat": lambda: Gaussians.from_gsplat(**meta_gaussians(2).to_gsplat()),
    "gsplat": drawn,
    "normals": lambda: normals.normals(torch.rand(VIEWS, HEIGHT, WIDTH, device=META), meta_cameras(), "world"),
    "is_astray": lambda: is_astray(torch.rand(20, 3, device=META)),
    "psnr": lambda: psnr(torch.rand(**IMAGES), torch.rand(**IMAGES)),
    "ssim": lambda: ssim(torch.rand(**IMAGES), torch.rand(**IMAGES)),
    "ssim_map": lambda: ssim_map(torch.rand(**IMAGES), torch.rand(**IMAGES)),
    "lpips": lambda: LPIPS([4] * 5).to(META)(torch.rand(**IMAGES), torch.rand(**IMAGES)),
    "vgg": lambda: VGGDistance([4] * 5).to(META)(torch.rand(**IMAGES), torch.rand(**IMAGES)),
}


def averaged() -> Tensor:
    """An average of weights that moves, or not, as a flag on the device says."""
    with META:
        network = ILRM(tiny())
    average = Average(network, 0.9)
    for _ in range(2):
        average.update_unless(torch.zeros((), device=META), network)
    return torch.stack([x.sum() for x in average.weights.values()])


def judged() -> Tensor:
    """Whether gradient norms stand out."""
    window, norm = NormWindow(3.0, [1.0] * 20, META), torch.ones((), dtype=torch.float64, device=META)
    return torch.stack([window.stands_out(norm, norm.isfinite()) for _ in range(2)])


def finished() -> Tensor:
    """Photos that were bytes, cast worlds."""
    sample = torch.zeros(2, HEIGHT, WIDTH, 3, dtype=torch.uint8)
    worlds = [describe(seed, ProceduralConfig(views=1)) for seed in (0, 1)]
    geometry = Worlds.stack([scene.world for scene in worlds], META).select(torch.arange(2, device=META)).geometry
    return moved(sample, META).sum() + geometry.to_local.sum()


FUNCTIONS |= {"average": averaged, "norms": judged, "batch": finished}
FUNCTIONS["pack"] = lambda: pack({"a": torch.ones((), device=META), "b": torch.ones((), device=META).bool()})[1]


def test_resizing_cameras_takes_nothing_from_the_host() -> None:
    cameras = meta_cameras()
    with NothingFromTheHost(META):
        assert cameras.resize(8, 12).K.device == META


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    found = FUNCTIONS[name]()
    if isinstance(found, Cameras):
        assert found.c2w.device == found.K.device == META
    elif isinstance(found, Gaussians):
        assert {getattr(found, field).device for field in PER_GAUSSIAN} == {META}
    else:
        assert found.device == META


@pytest.mark.parametrize("config", [RefineConfig.paper(), RefineConfig.long()], ids=["paper", "long"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_step_of_refinement_waits_for_nothing(
    config: RefineConfig, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With gsplat's arguments; gsplat itself asks once how many tiles its Gaussians touch."""
    gaussians, cameras = make_gaussians(60), make_cameras(3, WIDTH, HEIGHT)
    mask = torch.ones(VIEWS, HEIGHT, WIDTH) > 0 if masked else None
    photos = Scene(torch.rand(VIEWS, HEIGHT, WIDTH, 3), cameras, ("a", "b", "c"), mask=mask)

    def draw_here(*views: Any) -> tuple[Tensor, ...]:
        return draw(partial(rasterization, device=torch.device("cpu")), *views)

    rendering = import_module("ilrm.render")
    monkeypatch.setattr(rendering, "_render_with", lambda backend: draw_here)
    monkeypatch.setattr(rendering, "_drawable", lambda gaussians: gaussians)  # looks at values, on a CPU
    monkeypatch.setattr(Cameras, "relative_to", lambda cameras, origin: cameras)  # origins are always on the CPU
    # The CPU has kernels of its own for the loss.
    monkeypatch.setattr("ilrm.pipeline.refining.state.photometric", photometric_reference)
    state = RefineState(gaussians, cameras, config)
    state.step(photos, [0, 2], 0.0)  # the background and the window of SSIM stay on the device from then on
    with NothingFromTheHost(torch.device("cpu")), Launches() as launches:
        measured = state.step(photos, [0, 2], 0.5)
    assert measured.shape == (2,)
    assert launches.count <= LAUNCHES_OF_REFINEMENT


def test_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """All terms with their gradients; the rendering is gsplat's, whose kernels take no meta tensors."""
    config = tiny(matching=LEARNED, image_channels=CHANNELS)
    with META:
        network = ILRM(config)
    cameras = make_cameras(5, WIDTH, HEIGHT).to(META)
    c2w, K = (x.expand(2, *x.shape) for x in (cameras.c2w, cameras.K))
    images, depth = torch.rand(2, 5, HEIGHT, WIDTH, 3, device=META), torch.rand(2, 5, HEIGHT, WIDTH, device=META)
    batch = Batch(images, c2w, K, inputs=3, names=("a", "b"), depth=depth)

    def render_targets(gaussians: Gaussians, batch: Batch) -> Tensor:
        background = torch.ones(3, device=META)
        return draw(rasterization, gaussians, batch.target_cameras, background, 0.01, 10.0)[0]

    monkeypatch.setattr(train_losses, "render_targets", render_targets)
    every = LossConfig(depth=0.1, points=0.1, opacity=0.1, scale=0.1, matching=0.1, iterations=0.5)
    found = train_losses.losses(network, batch, every, 0, model_config=config, precision="bf16")
    assert len(found.terms) == 7
    found.total.backward()
    assert all(p.grad is not None and p.grad.device == META for p in network.parameters())
