"""Groups of photos, and fusing what they give."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ilrm.core.cameras import Cameras
from ilrm.core.errors import ConfigError
from ilrm.core.gaussians import Gaussians
from ilrm.core.reporting import Silent
from ilrm.core.scene import Scene
from ilrm.model import ILRM, FootprintDecoder, ILRMConfig
from ilrm.model.reconstruct import reconstruct
from ilrm.pipeline.forward import plan as planning
from ilrm.pipeline.forward.fusion import (
    IN_FRONT,
    LEAST_CONTRADICTIONS,
    MOST_AGREEING,
    SAME_SURFACE,
    STEPS_A_VIEW,
    WIDTH_STEP,
    Part,
    fuse,
    judge,
)
from ilrm.pipeline.forward.groups import Group, make_groups, view_affinity
from ilrm.pipeline.forward.passes import forward_pass
from ilrm.pipeline.refining import state as refine_state
from ilrm.pipeline.refining.config import RefineConfig
from ilrm.pipeline.run import run
from ilrm.scenes import load_scene, save_scene
from ilrm.view.layers import update_layers
from tests.conftest import make_cameras, make_gaussians

TINY = ILRMConfig(width=16, head_width=16, layers=1, patch_size=4, decoder=FootprintDecoder())


def chain(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(V, V) affinity of views along a walk, in a shuffled order; and that order."""
    place = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return torch.exp(-(place[:, None] - place).abs().float() / 3), place


@pytest.mark.parametrize(("count", "size"), [(3, 8), (9, 8), (40, 8), (41, 12), (100, 16), (7, 2), (500, 16)])
def test_every_view_is_one_group_s_own(count: int, size: int) -> None:
    affinity, _ = chain(count)
    groups = make_groups(affinity, size)
    assert sorted(view for group in groups for view in group.own) == list(range(count))
    assert all(len(group) == min(size, count) and not set(group.own) & set(group.borrowed) for group in groups)
    assert groups == make_groups(affinity, size)
    if count <= size:
        assert groups == [Group(tuple(range(count)))]


def test_groups_follow_a_walk_and_borrow_from_their_neighbours() -> None:
    affinity, place = chain(36)
    for group in make_groups(affinity, 12):
        own, all_of_it = place[list(group.own)], place[group.views]
        assert own.max() - own.min() == len(own) - 1
        assert all_of_it.max() - all_of_it.min() == len(all_of_it) - 1


def test_parts_that_share_nothing_stay_apart() -> None:
    affinity = torch.block_diag(*[torch.ones(5, 5)] * 3)
    groups = make_groups(affinity, 7)
    assert sorted(group.own for group in groups) == [tuple(range(i, i + 5)) for i in (0, 5, 10)]


def test_affinity_needs_no_points() -> None:
    cameras = make_cameras(6, 32, 24)
    scene = Scene(torch.zeros(6, 24, 32, 3), cameras, tuple("abcdef"))
    affinity = view_affinity(scene)
    assert torch.allclose(affinity, affinity.T)
    assert torch.allclose(affinity.diagonal(), torch.ones(6, dtype=affinity.dtype))
    assert affinity.min() >= 0


def slow_verdict(parts: list[Part], own: int, index: int) -> str:
    """What becomes of one Gaussian: view by view, by the words of the module's docstring."""
    mean = parts[own].gaussians.world_means[index]
    finest, agreeing = [math.inf] * len(parts), [0] * len(parts)
    contradictions = 0
    for number, part in enumerate(parts):
        for view in range(len(part.cameras)):
            c2w, K = part.cameras.c2w[view].double(), part.cameras.K[view].double()
            x, y, z = (c2w[:3, :3].T @ (mean - c2w[:3, 3])).tolist()
            if z <= 0:
                continue
            column = math.floor(x / z * K[0, 0].item() + K[0, 2].item())
            row = math.floor(y / z * K[1, 1].item() + K[1, 2].item())
            depth = part.depth[view]
            if not (0 <= row < depth.shape[0] and 0 <= column < depth.shape[1]) or depth[row, column] == 0:
                continue
            around = depth[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            if abs(math.log(z / depth[row, column].item())) < SAME_SURFACE:
                agreeing[number] += 1
                finest[number] = min(finest[number], z * 2 / (K[0, 0] + K[1, 1]).item())
            if number != own and math.log(z / around[around > 0].min().item()) < -IN_FRONT:
                contradictions += 1
    ranks = [
        round(math.log(width) / math.log(WIDTH_STEP)) - STEPS_A_VIEW * min(views, MOST_AGREEING) if views else math.inf
        for width, views in zip(finest, agreeing, strict=True)
    ]
    for number, rank in enumerate(ranks):
        if number != own and rank < math.inf and (rank, number) < (ranks[own], own):
            return "duplicate"
    doubtful = contradictions >= LEAST_CONTRADICTIONS and contradictions > sum(agreeing)
    return "doubtful" if doubtful else "kept"


def random_parts(seed: int, offset: float = 0.0) -> list[Part]:
    """Gaussians around the origin, and depth maps of random surfaces through them."""
    g = torch.Generator().manual_seed(seed)
    parts = []
    for number in range(3):
        cameras = make_cameras(3, 12 + 4 * number, 10, seed=seed + number).to(dtype=torch.float64)
        cameras.c2w[:, :3, 3] += offset
        gaussians = make_gaussians(60, seed=seed + number)
        gaussians = replace(gaussians, means=gaussians.means * torch.tensor([1.0, 1.0, 0.3]))
        depth = 4 + 0.3 * torch.randn(3, 10, cameras.width, generator=g)
        depth[torch.rand(depth.shape, generator=g) < 0.2] = 0
        parts.append(Part(gaussians.at(torch.full((3,), offset, dtype=torch.float64)), cameras, depth.float()))
    return parts


@pytest.mark.parametrize("offset", [0.0, 5e5])
def test_fusion_decides_as_gaussian_by_gaussian(offset: float) -> None:
    parts, seen = random_parts(3, offset), set()
    for own in range(3):
        verdict = judge(parts, own)
        for index in range(60):
            expected = slow_verdict(parts, own, index)
            found = "duplicate" if verdict.duplicate[index] else "doubtful" if verdict.doubtful[index] else "kept"
            assert found == expected, (own, index)
            seen.add(expected)
    assert seen == {"duplicate", "doubtful", "kept"}
    fused = fuse(parts)
    assert len(fused.gaussians) + fused.duplicates + fused.doubtful == 180
    assert fused.duplicates > 0 < fused.doubtful


def plane(width: int, depth: float, centre: float) -> tuple[Cameras, Gaussians]:
    """A camera that looks along z at a plane, and a Gaussian at each of its pixels."""
    K = torch.tensor([[float(width), 0, width / 2], [0, width, width / 2], [0, 0, 1]])
    c2w = torch.eye(4)
    c2w[0, 3] = centre
    cameras = Cameras(c2w[None], K[None], width, width)
    origins, directions = cameras.rays()
    means = (origins + directions * (depth / directions[..., 2:])).reshape(-1, 3)
    count = len(means)
    quats = torch.tensor([1.0, 0, 0, 0]).repeat(count, 1)
    scales = torch.full((count, 3), depth / width)
    return cameras, Gaussians(means, scales, quats, torch.ones(count), torch.zeros(count, 1, 3))


def part_of(width: int, depth: float, centre: float = 0.0) -> Part:
    cameras, gaussians = plane(width, depth, centre)
    return Part(gaussians, cameras, torch.full((1, width, width), depth))


def test_a_surface_is_kept_once_by_the_finest_group() -> None:
    coarse, fine = part_of(8, 4.0), part_of(16, 4.0)
    for parts in ([coarse, fine], [fine, coarse]):
        fused = fuse(parts)
        assert len(fused.gaussians) == len(fine.gaussians)
        assert fused.duplicates == len(coarse.gaussians)
        assert fused.doubtful == 0
    twice = fuse([fine, fine])
    assert torch.equal(twice.gaussians.means, fine.gaussians.means)


def test_views_that_agree_count_more_than_fine_pixels() -> None:
    once, fine = part_of(8, 4.0), part_of(11, 4.0)
    twice = Part(once.gaussians, Cameras(*_twice(once.cameras)), once.depth.repeat(2, 1, 1))
    assert fuse([once, fine]).duplicates == len(once.gaussians)
    assert fuse([twice, fine]).duplicates == len(fine.gaussians)


def test_what_only_one_group_sees_stays() -> None:
    apart = fuse([part_of(8, 4.0), part_of(8, 4.0, centre=2.0)])  # the halves that both see are kept once
    assert len(apart.gaussians) == 64 + 32
    behind = fuse([part_of(8, 4.0), part_of(8, 6.0)])  # nobody looks through: both surfaces stay
    assert behind.duplicates == 0


def test_what_hides_others_surfaces_goes() -> None:
    wall = part_of(8, 4.0)
    one, floating = part_of(8, 1.0), part_of(8, 1.0)
    two = Part(wall.gaussians, Cameras(*_twice(wall.cameras)), wall.depth.repeat(2, 1, 1))
    fused = fuse([two, floating])
    assert fused.doubtful == len(floating.gaussians)
    assert len(fused.gaussians) == len(wall.gaussians)
    assert fuse([wall, one]).doubtful == 0  # a single view may be wrong itself


def _twice(cameras: Cameras) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    return cameras.c2w.repeat(2, 1, 1), cameras.K.repeat(2, 1, 1), cameras.width, cameras.height


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 small photos of a procedural scene."""
    from ilrm.datasets.procedural import ProceduralConfig, make_scene

    folder = tmp_path_factory.mktemp("walk") / "scene"
    save_scene(make_scene(1, ProceduralConfig(views=16, width=48, height=32, points=400, shadows=False)), folder)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    ILRM(TINY).save_pretrained(folder)
    return folder


def test_one_group_is_a_plain_forward_pass(walk: Path, weights: Path) -> None:
    scene, model = load_scene(walk).select(range(4)), ILRM.from_pretrained(weights)
    options: dict[str, Any] = {"precision": "fp32", "feedback": 0, "reporter": Silent()}
    whole = forward_pass(scene, model, [Group((0, 1, 2, 3))], **options)
    assert torch.equal(whole.gaussians.means, reconstruct(scene.loaded(), model, precision="fp32").means)
    assert (whole.groups, whole.merged, whole.dropped) == (1, 0, 0)


def test_groups_count_the_gaussians_of_their_own_photos(walk: Path, weights: Path) -> None:
    """Masked pixels make none, so a group's own Gaussians are not always the same share."""
    scene, model = load_scene(walk).select(range(5)).loaded(), ILRM.from_pretrained(weights)
    mask = torch.ones(5, 32, 48, dtype=torch.bool)
    mask[0, :, :20] = False
    mask[4, 5:20] = False
    groups = [Group((0, 1), (2,)), Group((2, 3, 4), (1,))]
    masked = replace(scene, mask=mask)
    alone = [reconstruct(masked.select(group.own), model, precision="fp32") for group in groups]
    made = forward_pass(masked, model, groups, precision="fp32", feedback=0, reporter=Silent())
    assert made.made == sum(map(len, alone))
    assert len(made.gaussians) == made.made - made.merged - made.dropped


def test_many_photos_are_reconstructed_in_groups(
    walk: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_MOST_INPUTS", 6)
    out = tmp_path / "out"
    options: dict[str, Any] = {"weights": str(weights), "device": "cpu", "export": ()}
    result = run(walk, out, views=14, refine=2, **options)
    metrics = result.metrics
    assert metrics["num_inputs"] == 14
    assert metrics["groups"] == 4
    assert metrics["gaussians_before_fusion"] == 14 * 24 * 16
    kept = metrics["gaussians_before_fusion"] - metrics["gaussians_merged"] - metrics["gaussians_dropped"]
    assert 0 < metrics["num_gaussians"] <= kept
    assert metrics["psnr"] > 5
    assert len(result.photos) == 14
    with pytest.raises(ConfigError, match="in 4 groups"):
        update_layers(result)
    again = run(walk, views=14, refine=2, **options)
    assert torch.equal(again.gaussians.means, result.gaussians.means)
    assert run(walk, views=6, **options).metrics["groups"] == 1


def test_refinement_of_many_photos_draws_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = (RefineConfig.for_steps(20, 3).for_views(views, 3) for views in (32, 33))
    assert few == RefineConfig.paper()
    assert (many.views_per_step, many.seed) == (16, 3)
    assert RefineConfig.long(3).for_views(500, 3) == RefineConfig.long(3)
    means, centers = torch.randn(50, 3), torch.randn(7, 3)
    whole = refine_state._nearest(means, centers)
    monkeypatch.setattr(refine_state, "_MOST_DISTANCES", 70)  # ten at a time
    assert torch.allclose(refine_state._nearest(means, centers), whole)
    assert torch.allclose(whole, (means[:, None] - centers).norm(dim=-1).amin(1), atol=1e-5)
