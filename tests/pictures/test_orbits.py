"""Paths keep looking at what the cameras look at."""

from __future__ import annotations

import math

import pytest
import torch

from ilrm.core.cameras import Cameras, Similarity
from ilrm.core.errors import ConfigError
from ilrm.core.poses import look_at
from ilrm.pictures.trajectories import focus_point, looks_from_all_around, orbit
from tests.conftest import make_cameras

FOCUS = torch.tensor([1.0, 0.5, 3.0], dtype=torch.float64)
DOWN = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)


def ring(count: int, radius: float = 2.0, height: float = 0.7) -> Cameras:
    angle = torch.linspace(0, 2 * math.pi, count + 1, dtype=torch.float64)[:-1]
    centres = FOCUS + torch.stack([radius * angle.cos(), torch.full_like(angle, -height), radius * angle.sin()], -1)
    return Cameras(look_at(centres, FOCUS, DOWN), make_cameras(1, 40, 30).K.double().expand(count, 3, 3), 40, 30)


def test_focus_is_where_the_axes_meet() -> None:
    torch.testing.assert_close(focus_point(ring(7)), FOCUS, atol=1e-9, rtol=0)


def test_no_focus_for_parallel_or_diverging_cameras() -> None:
    centres = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]], dtype=torch.float64)
    parallel = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    parallel[:, :3, 3] = centres
    K = make_cameras(1, 40, 30).K.double().expand(3, 3, 3)
    assert focus_point(Cameras(parallel, K, 40, 30)) is None
    outward = parallel.clone()
    outward[:, :3, :3] = look_at(centres, torch.tensor([0.3, 0.3, -2.0]).double(), DOWN)[:, :3, :3]
    outward[:, :3, [0, 2]] *= -1  # turned about their own down axis: looking away from where they met
    assert focus_point(Cameras(outward, K, 40, 30)) is None
    with pytest.raises(ConfigError, match="do not meet"):
        orbit(Cameras(parallel, K, 40, 30), 5)
    assert len(orbit(Cameras(parallel, K, 40, 30), 5, focus=FOCUS)) == 5


def test_ring_gives_the_same_ring() -> None:
    path = orbit(ring(9), 12).check()
    offset = path.centers - FOCUS
    torch.testing.assert_close(offset[:, 1], torch.full((12,), -0.7).double())
    torch.testing.assert_close(offset[:, [0, 2]].norm(dim=-1), torch.full((12,), 2.0).double())
    torch.testing.assert_close(path.c2w[0], ring(9).c2w[0], atol=1e-9, rtol=0)


@pytest.mark.parametrize("cameras", [ring(9), make_cameras(6, 40, 30)], ids=["ring", "one side"])
def test_every_frame_looks_at_the_focus(cameras: Cameras) -> None:
    focus = focus_point(cameras)
    assert focus is not None
    path = orbit(cameras, 10).check()
    toward = torch.nn.functional.normalize(focus - path.centers.double(), dim=-1)
    torch.testing.assert_close((toward * path.forward.double()).sum(-1), torch.ones(10).double(), atol=1e-6, rtol=0)
    assert (path.width, path.height) == (40, 30)


def test_one_sided_path_stays_among_the_cameras() -> None:
    cameras = make_cameras(6, 40, 30)
    path = orbit(cameras, 16)
    middle = cameras.centers.mean(0)
    assert (path.centers - middle).norm(dim=-1).max() <= (cameras.centers - middle).norm(dim=-1).max()


def test_path_moves_along_with_the_world() -> None:
    cameras = make_cameras(6, 40, 30)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    world = Similarity(3.0, turn * torch.linalg.det(turn), torch.tensor([5.0, -2.0, 1.0], dtype=torch.float64))
    expected = orbit(cameras, 8).transform(world)
    torch.testing.assert_close(orbit(cameras.transform(world), 8).c2w, expected.c2w, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("height", [0.0, 0.7, 3.0, 9.0])
def test_a_ring_is_one_however_steeply_it_looks_down(height: float) -> None:
    cameras = ring(9, height=height)
    assert looks_from_all_around(cameras)
    offset = orbit(cameras, 12).centers - FOCUS
    torch.testing.assert_close(offset[:, [0, 2]].norm(dim=-1), torch.full((12,), 2.0).double())
    assert not looks_from_all_around(cameras[:3])
    assert not looks_from_all_around(cameras[0])
    assert not looks_from_all_around(make_cameras(6, 40, 30))
