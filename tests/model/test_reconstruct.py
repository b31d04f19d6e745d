"""Photos in, Gaussians out: in the world frame of the photos, on any size, in either precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ilrm import ILRM, Gaussians, Scene, render
from ilrm.core.cameras import Cameras, Similarity
from ilrm.core.errors import CameraError, SceneError
from ilrm.core.precision import resolve
from ilrm.datasets.procedural import ProceduralConfig, make_scene
from ilrm.evaluate.metrics import psnr
from ilrm.model import FootprintDecoder, ILRMConfig, MatchingConfig
from ilrm.model.reconstruct import reconstruct
from tests.core.test_cameras import random_similarity
from tests.model.test_matching import textured_plane

MATCHED = ILRMConfig(
    width=32,
    head_width=16,
    layers=2,
    decoder=FootprintDecoder(),
    matching=MatchingConfig(planes=32, sources=3),
    image_channels=("rgb", "moment", "direction", "match"),
)
RELEASED = ILRMConfig(width=32, head_width=16, layers=2, sh_degree=1)


def make(config: ILRMConfig) -> ILRM:
    torch.manual_seed(0)
    model = ILRM(config).eval()
    torch.nn.init.normal_(model.decoder.weight, std=0.02)
    return model


@pytest.fixture(scope="module")
def scene() -> Scene:
    made = make_scene(7, ProceduralConfig(views=4, width=64, height=48, baseline=(0.3, 0.5)))
    return replace(made, cameras=made.cameras.to(dtype=torch.float64))


def difference(a: Gaussians, b: Gaussians) -> dict[str, float]:
    """Largest differences: centres by their spread, scales by ratio, rotations and the rest as they are."""
    return {
        "means": ((a.means - b.means).norm(dim=-1) / b.means.std()).max().item(),
        "scales": (a.scales / b.scales).log().abs().max().item(),
        "quats": (1 - (a.quats * b.quats).sum(-1).abs()).max().item(),
        "opacities": (a.opacities - b.opacities).abs().max().item(),
        "sh": (a.sh - b.sh).abs().max().item(),
    }


@pytest.mark.parametrize("config", [MATCHED, RELEASED], ids=["matched", "released"])
@pytest.mark.parametrize("scale", [0.01, 2.5, 300.0])
def test_gaussians_move_with_the_world(scene: Scene, config: ILRMConfig, scale: float) -> None:
    """The same photos in a rotated, scaled and moved world give the same Gaussians, moved likewise (to 1e-3)."""
    model, move = make(config), random_similarity(3, scale)
    expected = reconstruct(scene, model).transform(move)
    moved = reconstruct(scene.transform(move), model)
    if config is RELEASED:  # its rotations are world rotations, which no network output can follow
        moved, expected = replace(moved, quats=expected.quats, sh=expected.sh), expected
    assert max(difference(moved, expected).values()) < 1e-3


@pytest.mark.parametrize("config", [MATCHED, RELEASED], ids=["matched", "released"])
@pytest.mark.parametrize("offset", [(512345.0, 5432109.0, 250.0), (4027893.0, 306901.0, -4919499.0)])
def test_a_world_far_away_gives_the_same_gaussians(
    scene: Scene, config: ILRMConfig, offset: tuple[float, float, float]
) -> None:
    """In UTM or ECEF coordinates single precision has steps of half a metre; the Gaussians keep theirs."""
    model = make(config)
    there = Similarity(1.0, torch.eye(3, dtype=torch.float64), torch.tensor(offset, dtype=torch.float64))
    here, far_scene = reconstruct(scene, model), scene.transform(there)
    far = reconstruct(far_scene, model)
    moved = replace(far, means=(far.world_means - there.translation).float())
    assert max(difference(here, moved).values()) < 1e-3
    images = [render(g, s.cameras).rgb for g, s in ((here, scene), (far, far_scene))]
    assert psnr(images[1], images[0]).min() > 60


def test_an_untrained_network_with_matching_already_shows_a_textured_wall() -> None:
    images, cameras = textured_plane(4)
    wall = Scene(images, cameras, ("a", "b", "c", "d"))
    gaussians = reconstruct(wall.select([0, 1, 3]), ILRM(MATCHED).eval())
    view = wall.select([2])
    plain = view.images[:].mean((1, 2), keepdim=True).expand_as(view.images[:])
    shown = render(gaussians, view.cameras).rgb
    inner = (slice(None), slice(6, -6), slice(6, -6))
    assert psnr(shown[inner], view.images[:][inner]).item() > psnr(plain[inner], view.images[:][inner]).item() + 5


def test_iterations_come_in_the_same_frame(scene: Scene) -> None:
    model = make(MATCHED)
    every, last = reconstruct(scene, model, iterations=True), reconstruct(scene, model)
    assert every.means.shape == (2, *last.means.shape)
    torch.testing.assert_close(every[1].means, last.means)


def test_precisions_agree(scene: Scene) -> None:
    model = make(MATCHED)
    full, half = (reconstruct(scene, model, precision=p) for p in ("fp32", "bf16"))
    assert full.means.dtype == half.means.dtype == torch.float32
    ratio = (half.means - full.means).norm(dim=-1) / (full.means - scene.cameras.centers[0].float()).norm(dim=-1)
    assert 0 < ratio.median() < 0.02


def test_auto_precision_is_fp32_for_small_networks_on_a_cpu() -> None:
    assert resolve("auto", torch.device("cpu"), 10_000_000) == "fp32"
    assert resolve("bf16", torch.device("cpu"), 10) == "bf16"


def test_sizes_are_rounded_not_refused() -> None:
    odd = make_scene(7, ProceduralConfig(views=3, width=50, height=37))
    gaussians = reconstruct(odd, make(MATCHED))
    assert len(gaussians) == 3 * (48 // 2) * (32 // 2)
    assert gaussians.finite().all()


def test_bad_input_is_named(scene: Scene) -> None:
    with pytest.raises(SceneError, match="no view"):
        reconstruct(scene.select([]), make(MATCHED))
    c2w = scene.cameras.c2w.clone()
    c2w[1, 0, 0] = float("nan")
    broken = replace(scene, cameras=Cameras(c2w, scene.cameras.K, 64, 48))
    with pytest.raises(CameraError, match=r"view_001.*NaN"):
        reconstruct(broken, make(MATCHED))


@pytest.mark.parametrize("config", [MATCHED, RELEASED], ids=["matched", "released"])
def test_masked_pixels_have_no_gaussians_and_change_none(scene: Scene, config: ILRMConfig) -> None:
    model, mask = make(config), torch.ones(4, 48, 64, dtype=torch.bool)
    mask[1, 10:21, 16:40] = False
    photos = scene.images[:]
    one, other = (
        reconstruct(replace(scene, images=torch.where(mask[..., None], photos, colour), mask=mask), model)
        for colour in (0.0, 0.9)
    )
    assert max(difference(one, other).values()) < 1e-6
    everything = reconstruct(replace(scene, mask=torch.ones_like(mask)), model)
    assert max(difference(everything, reconstruct(scene, model)).values()) < 1e-6
    r = config.viewpoint_factor
    blocks = len(range(10 // r, -(-21 // r))) * len(range(16 // r, -(-40 // r)))
    assert len(one) == len(everything) - blocks
    layers = reconstruct(replace(scene, mask=mask), model, iterations=True)
    assert layers.means.shape[:2] == (config.layers, len(one))
    with pytest.raises(SceneError, match="masks leave no pixel"):
        reconstruct(replace(scene, mask=torch.zeros_like(mask)), model)
