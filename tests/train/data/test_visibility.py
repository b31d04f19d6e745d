"""Which points views see."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ilrm.train.data.visibility import project, seen_points
from tests.train.data.worlds import HEIGHT, VIEWS, WIDTH, world


@pytest.mark.parametrize("seed", [1, 3, 6])
def test_points_behind_surfaces_are_not_seen(seed: int) -> None:
    scene = world(seed)
    assert scene.points is not None
    assert scene.depth is not None
    seen = seen_points(scene.images[:].mean(-1), scene.cameras, scene.points)
    xy, z = project(scene.points, scene.cameras)
    size = torch.tensor([WIDTH, HEIGHT])
    inside = (z > 0) & (xy > 3).all(-1) & (xy < size - 3).all(-1)
    column, row = (xy.floor().long()[..., k].clamp(0, int(size[k]) - 1) for k in (0, 1))
    surface = scene.depth[torch.arange(VIEWS)[:, None], row, column]
    shown, hidden = inside & (z < 1.03 * surface), inside & (z > 1.1 * surface)
    assert not (seen & ~inside).any()
    # Many of these random points lie where there is no texture to compare; feature points have some.
    assert seen[shown].float().mean() > 0.4
    assert hidden.sum() > 100
    assert seen[hidden].float().mean() < 0.02


def test_what_is_seen_does_not_depend_on_the_number_of_threads() -> None:
    scene, threads = world(6), torch.get_num_threads()
    assert scene.points is not None
    try:
        found = []
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(seen_points(scene.images[:].mean(-1), scene.cameras, scene.points))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_worlds_far_from_their_origin_see_the_same() -> None:
    scene = world(0)
    cameras, points = scene.cameras.to(dtype=torch.float64), scene.points
    assert points is not None
    away = torch.tensor([4e5, -5e6, 1e2], dtype=torch.float64)
    c2w = cameras.c2w.clone()
    c2w[:, :3, 3] += away
    grey = scene.images[:].mean(-1)
    here, there = (
        seen_points(grey, cameras, points),
        seen_points(grey, replace(cameras, c2w=c2w), points.double() + away),
    )
    assert (here != there).float().mean() < 1e-3
