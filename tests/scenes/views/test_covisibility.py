"""Which views see which points, and choosing inputs by it."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch

from ilrm.core.cameras import Cameras, Similarity
from ilrm.core.scene import Scene
from ilrm.scenes.views import choose_inputs, covered_share, select_inputs
from ilrm.scenes.views.covisibility import Covisibility, coverage, covisibility, see_points
from tests.conftest import look_at, make_cameras


def scene_of(cameras: Cameras, points: torch.Tensor | None) -> Scene:
    images = torch.zeros(len(cameras), cameras.height, cameras.width, 3)
    return Scene(images, cameras, tuple(map(str, range(len(cameras)))), points=points)


def cloud(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def walk(views: int) -> Cameras:
    """Cameras side by side along x, all looking along z: neighbours see much of the same."""
    c2w = torch.eye(4).repeat(views, 1, 1)
    c2w[:, 0, 3] = torch.arange(views) * 0.5
    K = torch.tensor([[40.0, 0, 20], [0, 40, 15], [0, 0, 1]])
    return Cameras(c2w, K.repeat(views, 1, 1), 40, 30)


def wall(views: int, count: int = 300) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    xy = torch.rand(count, 2, generator=g) * torch.tensor([views * 0.5 + 2, 2.0]) - torch.tensor([1.0, 1.0])
    return torch.cat([xy, torch.full((count, 1), 3.0)], dim=1)


def test_points_in_the_frame_are_seen_point_by_point() -> None:
    cameras, points = make_cameras(5, 48, 32), cloud(40)
    seen = see_points(cameras, points).seen
    side, farther = 48 / 32, 1.3
    for view in range(5):
        w2c, K = torch.linalg.inv(cameras.c2w[view].double()), cameras.K[view].double()
        place = []
        for point in points.double():
            x, y, z = (w2c[:3, :3] @ point + w2c[:3, 3]).tolist()
            column, row = (K[0, 0] * x / z + K[0, 2]).item(), (K[1, 1] * y / z + K[1, 2]).item()
            inside = z > 0 and 0 <= column < 48 and 0 <= row < 32
            place.append((int(column / side), int(row / side), z) if inside else None)
        for index, own in enumerate(place):
            near = [o[2] for o in place if o and own and abs(o[0] - own[0]) <= 1 and abs(o[1] - own[1]) <= 1]
            assert seen[view, index] == (own is not None and own[2] <= farther * min(near))


def test_points_behind_a_surface_are_hidden() -> None:
    cameras = walk(4)
    front, behind = wall(4, 4000), wall(4, 500) + torch.tensor([0.0, 0.0, 4.0])
    seen = see_points(cameras, torch.cat([front, behind])).seen
    alone = see_points(cameras, behind).seen
    assert alone.float().mean() > 0.2
    assert seen[:, len(front) :].float().mean() < 0.02 * alone.float().mean()
    inside = see_points(cameras, front).seen
    assert torch.equal(seen[:, : len(front)], inside)


def test_overlap_is_a_share_of_the_view_that_sees_fewer() -> None:
    seen = torch.tensor([[1, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)
    overlap = Covisibility(seen, torch.zeros(4, 4, 3)).overlap
    expected = torch.eye(4)
    expected[0, 1] = expected[1, 0] = 1.0  # of the one point that view 1 sees
    assert torch.equal(overlap, expected)
    neighbours = see_points(walk(6), wall(6)).overlap
    assert neighbours[0, 1] > neighbours[0, 3] >= neighbours[0, 5]
    assert torch.equal(neighbours, neighbours.T)


def slow_coverage(found: Covisibility, chosen: tuple[int, ...]) -> float:
    """Point by point and pair by pair."""

    def told(a: int, b: int, point: int) -> bool:
        cosine = (found.directions[a, point].double() @ found.directions[b, point].double()).item()
        both = bool(found.seen[a, point] and found.seen[b, point])
        return both and 2 <= math.degrees(math.acos(max(-1.0, min(1.0, cosine)))) <= 35

    points = [point for point in range(found.seen.shape[1]) if found.seen[:, point].any()]
    useful = [
        a
        for a in chosen
        if any(
            sum(told(a, b, point) for point in points) >= 0.2 * max(1, int(found.seen[a].sum()))
            for b in chosen
            if b != a
        )
    ]
    total = 0.0
    for point in points:
        total += any(found.seen[view, point] for view in useful)
        total += 0.5 * any(told(a, b, point) for a, b in combinations(chosen, 2))
    return total / len(points)


@pytest.mark.parametrize("seed", range(3))
def test_no_exchange_of_a_view_would_cover_clearly_more(seed: int) -> None:
    """Of all choices, some may; but not many, and not by much."""
    cameras = make_cameras(8, 48, 32, seed=seed, distance=1.5)
    found = see_points(cameras, cloud(600, seed))
    values = {pick: coverage(found, pick) for pick in combinations(range(8), 4)}
    chosen = choose_inputs(scene_of(cameras, cloud(600, seed)), 4)
    start = select_inputs(cameras, 4)
    assert coverage(found, chosen) == pytest.approx(slow_coverage(found, tuple(chosen)), abs=1e-6)
    value = coverage(found, chosen)
    assert value >= coverage(found, start)
    assert value >= max(values[pick] for pick in values if len({*pick} & {*chosen}) == 3) - 0.005
    assert value >= 0.9 * max(values.values())
    assert value > sum(values.values()) / len(values)


def test_inputs_see_the_same_things() -> None:
    """Four views of a walk along a wall, of which each two must show something together."""
    cameras, points = walk(24), wall(24, 2000)
    overlap = see_points(cameras, points).overlap.fill_diagonal_(0)
    spread, chosen = select_inputs(cameras, 4), choose_inputs(scene_of(cameras, points), 4)
    assert overlap[spread][:, spread].max() == 0
    assert (overlap[chosen][:, chosen].amax(1) > 0.2).all()


def test_the_choice_is_repeatable_and_independent_of_the_world() -> None:
    cameras, points = make_cameras(12, 48, 32, distance=1.5), cloud(300)
    rest = [1, 2, 3, 5, 6, 7, 9, 10, 11]
    chosen = choose_inputs(scene_of(cameras, points), 4, rest)
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(rest)
    assert chosen == choose_inputs(scene_of(cameras, points), 4, rest[::-1])
    g = torch.Generator().manual_seed(3)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=torch.float64)).Q
    moved = Similarity(40.0, rotation * torch.linalg.det(rotation), torch.tensor([9.0, -3, 2], dtype=torch.float64))
    cameras64 = cameras.to(dtype=torch.float64)
    there = scene_of(cameras64.transform(moved), moved.apply_points(points.double()))
    assert choose_inputs(there, 4, rest) == chosen
    assert choose_inputs(scene_of(cameras, points), 9, rest) == rest


def test_without_enough_points_the_cameras_decide() -> None:
    cameras = make_cameras(12, 48, 32)
    expected = select_inputs(cameras, 4, seed=1)
    away = cloud(500) - torch.tensor([0.0, 0.0, 50.0])  # behind all cameras
    broken = torch.full((200, 3), torch.nan)
    assert choose_inputs(scene_of(cameras, cloud(500)), 3, seed=1) == select_inputs(cameras, 3, seed=1)
    for points in (None, cloud(20), away, broken):
        scene = scene_of(cameras, points)
        assert covisibility(scene) is None
        assert choose_inputs(scene, 4, seed=1) == expected


def test_one_camera_turned_away_sees_nothing() -> None:
    c2w = torch.stack([look_at(torch.tensor([0.0, 0, -4]), torch.zeros(3))] * 3)
    c2w[2, :3, :3] = c2w[2, :3, :3] @ torch.diag(torch.tensor([1.0, -1, -1]))
    K = torch.tensor([[40.0, 0, 20], [0, 40, 15], [0, 0, 1]])
    found = see_points(Cameras(c2w, K.repeat(3, 1, 1), 40, 30), cloud(100))
    assert found.seen[0].sum() > 50
    assert not found.seen[2].any()
    assert found.overlap[0, 2] == 0


def test_of_many_candidates_some_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = scene_of(walk(40), wall(40, 3000))
    monkeypatch.setattr("ilrm.scenes.views.covisibility._MOST_CANDIDATES", 10)
    chosen = choose_inputs(scene, 6)
    assert len(set(chosen)) == 6
    assert chosen == choose_inputs(scene, 6)
    assert 0.2 < covered_share(scene, chosen, range(40)) < 1
    assert covered_share(scene, range(40), range(40)) == 1
    assert covered_share(scene_of(walk(40), None), chosen, range(40)) == 1
