"""Procedural scenes: the same seed gives the same scene, and images, depth, cameras and points agree."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from importlib.resources import files
from typing import Any

import pytest
import torch
import torch._dynamo

from ilrm.core.cameras import Cameras
from ilrm.core.compiling import CompiledOnGPU
from ilrm.core.errors import ConfigError, IlrmWarning
from ilrm.core.scene import Scene
from ilrm.datasets.procedural import ProceduralBatch, ProceduralConfig, cast, describe, make_batch, make_scene
from ilrm.datasets.procedural.casting import GROUND, Geometry, nearest, visibility
from ilrm.datasets.procedural.layout import MOST, sample_world
from ilrm.datasets.procedural.rendering import Lighting, radiance, sizes_of_radiance
from ilrm.datasets.procedural.worlds import Worlds

SMALL = ProceduralConfig(views=3, width=32, height=32, points=64)
MATTE = ProceduralConfig(views=4, width=96, height=96, specular=0.0, baseline=(0.1, 0.3), points=256)


def _unproject(depth: torch.Tensor, c2w: torch.Tensor, K: torch.Tensor) -> torch.Tensor:
    """World points (H * W, 3) of a depth map, by the documented convention alone."""
    height, width = depth.shape
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    local = torch.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], torch.ones_like(x)], -1) * depth[..., None]
    return local.flatten(0, 1) @ c2w[:3, :3].T + c2w[:3, 3]


def _look_up(image: torch.Tensor, xy: torch.Tensor) -> torch.Tensor:
    """Bilinear values (M, C) of an image (H, W, C) at image coordinates (M, 2)."""
    grid = (xy / torch.tensor([image.shape[1], image.shape[0]]) * 2 - 1)[None, None]
    return torch.nn.functional.grid_sample(image.permute(2, 0, 1)[None], grid, align_corners=False)[0, :, 0].T


def _project(points: torch.Tensor, batch: ProceduralBatch, view: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Image coordinates (M, 2) of world points, and their depth over that of the view (M,); NaN outside."""
    K, depth, c2w = batch.K[0, view], batch.depth[0, view], batch.c2w[0, view]
    local = (points - c2w[:3, 3]) @ c2w[:3, :3]
    xy = local[:, :2] / local[:, 2:].clamp_min(1e-6) * K[[0, 1], [0, 1]] + K[:2, 2]
    inside = (local[:, 2] > 0) & (xy > 1).all(1) & (xy < torch.tensor(depth.T.shape) - 1).all(1)
    ratio = local[:, 2] / _look_up(depth[..., None], xy)[:, 0]
    return xy, torch.where(inside, ratio, torch.nan)


def test_a_seed_gives_the_same_bits_in_any_batch_and_on_any_number_of_threads() -> None:
    config = replace(SMALL, width=128, height=96)  # large enough that torch would share its operations among threads
    alone, among = make_batch([5], config), make_batch([9, 5, 2], config)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 if threads == 1 else 1)
        again = make_batch([5], config)
    finally:
        torch.set_num_threads(threads)
    for name in ProceduralBatch.__dataclass_fields__:
        assert torch.equal(getattr(alone, name)[0], getattr(among, name)[1]), name
        assert torch.equal(getattr(alone, name), getattr(again, name)), name
    assert not torch.equal(among.images[0], among.images[1])


def test_the_callers_number_of_threads_survives() -> None:
    before = torch.get_num_threads()
    make_batch([0], SMALL)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("kind", ["room", "open"])
@pytest.mark.parametrize("path", ["handheld", "orbit"])
def test_colours_and_depth_agree_between_views(kind: Any, path: Any) -> None:
    config = replace(MATTE, kind=kind, path=path)
    matched, errors, still = 0, [], []
    for seed in (0, 1, 2):
        batch = make_batch([seed], config)
        points = _unproject(batch.depth[0, 1], batch.c2w[0, 1], batch.K[0, 1])
        xy, ratio = _project(points, batch, 2)
        same = (ratio - 1).abs() < 0.01
        matched += int(same.sum())
        here = batch.images[0, 1].flatten(0, 1)
        errors.append((_look_up(batch.images[0, 2], xy) - here)[same].abs().mean(1))
        still.append((batch.images[0, 2].flatten(0, 1) - here)[same].abs().mean(1))
    assert matched > 0.3 * 3 * 96 * 96
    assert torch.cat(errors).median() < 0.02
    # The measure can fail: without the reprojection the views differ clearly more.
    assert torch.cat(errors).mean() < 0.7 * torch.cat(still).mean()


def test_points_lie_on_surfaces_that_the_views_show() -> None:
    batch = make_batch([3], MATTE)
    ratios = torch.stack([_project(batch.points[0], batch, view)[1] for view in range(MATTE.views)])
    assert ((ratios - 1).abs() < 0.01).any(0).float().mean() > 0.9
    # No point floats in front of what a view shows, but at silhouettes, where the look-up mixes two depths.
    assert (ratios < 0.97).float().mean() < 0.03
    assert batch.points_rgb.min() >= 0
    assert batch.points_rgb.max() <= 1


def test_depth_of_the_ground_follows_the_pixel_centre_convention() -> None:
    config = ProceduralConfig(views=2, width=40, height=32, kind="open", objects=(0, 0))
    bare = next(seed for seed in range(40) if not sample_world(seed, config).primitives)
    scene = make_scene(bare, config)
    assert scene.depth is not None
    origins, directions = scene.cameras.rays()
    to_ground = -origins[..., 2] / directions[..., 2]
    forward = (directions * scene.cameras.forward[:, None, None]).sum(-1)
    ground = directions[..., 2] < -0.2
    assert ground.float().mean() > 0.1
    torch.testing.assert_close(scene.depth[ground], (to_ground * forward)[ground], rtol=2e-4, atol=1e-4)


def test_the_sky_is_one_sphere_for_all_views() -> None:
    config = ProceduralConfig(views=3, width=40, height=32, kind="open", objects=(0, 0))
    bare = next(seed for seed in range(40) if not sample_world(seed, config).primitives)
    scene = make_scene(bare, config)
    assert scene.depth is not None
    origins, directions = scene.cameras.rays()
    forward = (directions * scene.cameras.forward[:, None, None]).sum(-1, keepdim=True)
    points = origins + directions * (scene.depth[..., None] / forward)
    sky = directions[..., 2] > 0.02
    assert sky.flatten(1).any(1).sum() >= 2
    radius = points[sky].norm(dim=-1)
    torch.testing.assert_close(radius, torch.full_like(radius, sample_world(bare, config).dome), rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", ["room", "open", "mixed"])
@pytest.mark.parametrize("path", ["handheld", "orbit", "mixed"])
def test_every_family_gives_proper_cameras_clear_of_surfaces(kind: Any, path: Any) -> None:
    config = replace(SMALL, kind=kind, path=path, views=5)
    for seed in range(6):
        world = sample_world(seed, config)
        Cameras(torch.from_numpy(world.c2w), torch.eye(3).repeat(5, 1, 1), 32, 32).check()
        centres = world.c2w[:, :3, 3]
        assert all(part.distance(centres).min() >= config.clearance for part in world.primitives)
        assert (world.room - abs(centres - world.room_centre)).min() >= config.clearance
        assert centres[:, 2].min() - world.ground >= config.clearance


def _three_shapes(centre: torch.Tensor) -> Geometry:
    """One unit ellipsoid, box and cylinder at centres (3, 3), far above a ground."""
    return Geometry(
        to_local=torch.eye(3).expand(1, 3, 3, 3),
        centre=centre[None],
        thickness=torch.ones(1, 3),
        room=torch.full((1, 3), 1e5),
        room_centre=torch.zeros(1, 3),
        dome=torch.full((1,), 1e6),
        ground=torch.full((1,), -100.0),
        counts=(1, 1, 1),
    )


IN_A_ROW = torch.tensor([[0.0, 0.0, 0.0], [10.0, 0.0, 0.0], [20.0, 0.0, 0.0]])


def test_nothing_that_a_ray_hits_is_nearer_than_the_clearance_says() -> None:
    g = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(2000, 3, generator=g, dtype=torch.float64), dim=1)
    for seed in range(4):
        world = sample_world(seed, SMALL)
        camera = world.c2w[0, :3, 3]
        for part in world.primitives:
            origin = torch.from_numpy((camera - part.centre) @ part.axes / part.half).float()
            local = (directions @ torch.from_numpy(part.axes / part.half)).float()
            places = torch.full((3, 3), 3e4)
            places[part.shape] = 0.0
            t, index = nearest(_three_shapes(places), origin[None, :, None], local.T[None])
            hits = t[index == part.shape]
            assert len(hits) == 0 or hits.min() >= part.distance(camera[None])[0] * (1 - 1e-3)


def test_hits_match_their_closed_forms() -> None:
    origin = torch.tensor([[[0.0, 10.5, 20.25, 40.0], [0.5, 0.5, 0.0, 0.0], [5.0, 5.0, 5.0, 5.0]]])
    down = torch.tensor([0.0, 0.0, -2.0])[None, :, None].expand(1, 3, 4)
    t, index = nearest(_three_shapes(IN_A_ROW), origin, down)
    assert index.tolist() == [[0, 1, 2, 3 + GROUND]]
    torch.testing.assert_close(t, torch.tensor([[(5 - 0.75**0.5) / 2, 2.0, 2.0, 52.5]]))


def test_shadows_are_dark_behind_bright_beside_and_soft_between() -> None:
    geometry = _three_shapes(IN_A_ROW)
    for shape in range(3):
        light, size = IN_A_ROW[shape : shape + 1] + torch.tensor([0.0, 0.0, 40.0]), torch.tensor([2.0])
        x = IN_A_ROW[shape, 0] + torch.linspace(0.0, 3.0, 61)
        points = torch.stack([x, torch.zeros(61), torch.full((61,), -4.0)])[None]
        seen = visibility(geometry, points, torch.full((1, 61), 3 + GROUND), light, size)[0]
        assert seen[0] == 0.0
        assert seen[-1] == 1.0
        assert (seen.diff() >= 0).all()
        assert ((seen > 0.05) & (seen < 0.95)).sum() >= 2


def test_a_lit_face_is_not_shaded_by_its_own_body() -> None:
    top, light = torch.tensor([[[10.3], [0.2], [1.0]]]), torch.tensor([[10.0, 0.0, 40.0]])
    assert visibility(_three_shapes(IN_A_ROW), top, torch.tensor([[1]]), light, torch.tensor([2.0])).item() == 1.0


def test_no_scene_is_black_white_or_flat() -> None:
    images = make_batch(range(50), SMALL).images
    assert images.min() >= 0.0
    assert images.max() <= 1.0
    mean, spread = images.flatten(1).mean(1), images.flatten(1).std(1)
    assert mean.min() > 0.2
    assert mean.max() < 0.85
    assert spread.min() > 0.04
    assert spread.median() > 0.12


def test_a_scene_is_one_item_of_a_batch() -> None:
    scene, batch = make_scene(4, SMALL), make_batch([4], SMALL)
    assert isinstance(scene, Scene)
    assert scene.names == ("view_000", "view_001", "view_002")
    assert torch.equal(scene.images[:], batch.images[0])
    assert scene.points_rgb is not None
    assert scene.points_rgb.shape == (64, 3)
    assert not batch.images.requires_grad


def test_supersampling_keeps_depth_and_smooths_colour() -> None:
    once, four = make_batch([1], SMALL), make_batch([1], replace(SMALL, samples=2))
    assert torch.equal(once.depth, four.depth)
    assert 0 < (once.images - four.images).abs().mean() < 0.05


def test_one_view_is_enough() -> None:
    for path in ("handheld", "orbit"):
        batch = make_batch([0], replace(SMALL, views=1, path=path))
        assert batch.images.shape == (1, 1, 32, 32, 3)
        assert torch.isfinite(batch.images).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "cave"}, "kind = 'cave' is unknown"),
        ({"path": "dolly"}, "path = 'dolly' is unknown"),
        ({"views": 0}, "views = 0 was given"),
        ({"baseline": (1.0, 0.1)}, "baseline = \\(1.0, 0.1\\) is not a usable range"),
        ({"fov": (45.0, 170.0)}, "fov"),
        ({"objects": (30, 40)}, "objects"),
        ({"clearance": 0.0}, "clearance = 0.0 is out of range"),
        ({"specular": -1.0}, "specular"),
    ],
)
def test_contradictions_fail_when_the_config_is_built(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ProceduralConfig(**values)


@pytest.mark.parametrize("seeds", [[], [-1]])
def test_seeds_must_be_there_and_not_negative(seeds: list[int]) -> None:
    with pytest.raises(ConfigError, match="The seeds"):
        make_batch(seeds, SMALL)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_makes_the_same_scenes() -> None:
    here, there = make_batch([0, 1], SMALL), make_batch([0, 1], SMALL, "cuda")
    assert (here.images - there.images.cpu()).abs().median() < 1e-3
    assert ((here.depth - there.depth.cpu()).abs() < 1e-3 * here.depth).float().mean() > 0.99


def few_rays(device: str = "cpu", views: int = 2, rays: int = 64, style: Any = "plain") -> tuple[Any, ...]:
    """Arguments of ``radiance``, for this many views of a world and rays of a view."""
    described = [describe(1, ProceduralConfig(views=1, style=style))] * views
    worlds = Worlds.stack([scene.world for scene in described], torch.device(device))
    origins = torch.stack([torch.from_numpy(scene.c2w[0, :3, 3:]) for scene in described]).to(device)
    directions = torch.randn(views, 3, rays, generator=torch.Generator().manual_seed(0)).to(device)
    return worlds, origins, directions, torch.full((views,), 0.01, device=device), Lighting(True, 1.0)


@pytest.mark.slow
@torch.no_grad()
def test_the_caster_is_one_graph() -> None:
    """Traced as on a GPU, but not translated, which needs a compiler; once for all numbers of views and rays."""
    fast = CompiledOnGPU(radiance, sizes_of_radiance)
    torch._dynamo.utils.counters.clear()
    for views, rays in ((2, 64), (3, 100)):
        arguments = few_rays("cpu", views, rays, "photographic")
        for ours, theirs in zip(fast.compiled("eager", *arguments), radiance(*arguments), strict=True):
            torch.testing.assert_close(ours, theirs)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@torch.no_grad()
def test_primitives_that_a_world_lacks_are_not_seen() -> None:
    worlds, *rays = few_rays()
    packed = [describe(1, ProceduralConfig(views=1)).world] * 2
    padded = Worlds.stack(packed, torch.device("cpu"), MOST)
    assert padded.geometry.primitives == sum(MOST) > worlds.geometry.primitives
    light, depth, _ = radiance(worlds, *rays)
    light_there, depth_there, _ = radiance(padded, *rays)
    torch.testing.assert_close(light_there, light)
    torch.testing.assert_close(depth_there, depth)


@pytest.mark.parametrize("style", ["plain", "photographic"])
def test_the_caster_makes_nothing_on_the_host(style: str) -> None:
    light, depth, index = radiance(*few_rays("meta", style=style))
    assert {x.device.type for x in (light, depth, index)} == {"meta"}


def test_without_a_compiler_the_function_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        def run(*_: Any) -> Any:
            raise RuntimeError("no C compiler was found\nand more")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    calls: list[int] = []

    def double(x: int) -> int:
        calls.append(x)
        return 2 * x

    fast, gpu = CompiledOnGPU(double), torch.device("cuda")
    with pytest.warns(IlrmWarning, match="double runs without torch.compile: no C compiler was found$"):
        assert fast(gpu, 3) == 6
    assert fast(gpu, 4) == 8  # and is not tried again
    assert CompiledOnGPU(double)(torch.device("cpu"), 5) == 10
    assert calls == [3, 4, 5]


def test_described_scenes_travel_and_give_the_same_bits() -> None:
    whole = make_batch([3, 8], SMALL)
    described = pickle.loads(pickle.dumps([describe(seed, SMALL) for seed in (3, 8)]))
    found = cast(described, SMALL)
    for name in ("images", "depth", "c2w", "K", "points", "points_rgb"):
        assert torch.equal(getattr(found, name), getattr(whole, name)), name


def test_the_bundled_capture_is_eight_inputs_and_four_held_out() -> None:
    folder = files("ilrm") / "assets" / "capture"
    listed = json.loads((folder / "transforms.json").read_text())
    names = [frame["file_path"] for frame in listed["frames"]]
    assert sorted(listed["train_filenames"] + listed["test_filenames"]) == names
    assert len(listed["train_filenames"]) == 8
    assert {names[0], names[-1]} <= set(listed["train_filenames"])
    assert all((folder / name).is_file() for name in names)
