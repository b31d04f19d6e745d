"""A path through keyframes passes them, smoothly and with valid rotations."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial.transform import Rotation, Slerp

from ilrm.core.errors import ConfigError
from ilrm.view.flight import fly
from ilrm.view.splats import Pose


def pose(centre: list[float], angle: float, fov: float = 1.0, distance: float = 2.0) -> Pose:
    """Turned about y by an angle in degrees."""
    c2w = torch.eye(4, dtype=torch.float64)
    c2w[:3, :3] = torch.from_numpy(Rotation.from_euler("y", angle, degrees=True).as_matrix())
    c2w[:3, 3] = torch.tensor(centre, dtype=torch.float64)
    return Pose(c2w, fov, distance)


KEYFRAMES = [pose([0, 0, 0], 0), pose([1, 0, 0], 80, 0.5), pose([1, 2, 0], 170, 2.0), pose([0, 2, 3], 260)]


def test_it_passes_the_keyframes() -> None:
    way = fly(KEYFRAMES, 31)
    assert len(way) == 31
    for i, keyframe in enumerate(KEYFRAMES):
        assert torch.allclose(way[10 * i].c2w, keyframe.c2w, atol=1e-9)
        assert way[10 * i].fov == pytest.approx(keyframe.fov)


def test_rotations_agree_with_scipy() -> None:
    way = fly(KEYFRAMES, 31)
    matrices = torch.stack([keyframe.c2w[:3, :3] for keyframe in KEYFRAMES]).numpy()
    expected = Slerp([0, 1, 2, 3], Rotation.from_matrix(matrices))([i / 10 for i in range(31)]).as_matrix()
    assert torch.allclose(torch.stack([p.c2w[:3, :3] for p in way]), torch.from_numpy(expected), atol=1e-9)


def test_speed_has_no_jumps_at_keyframes() -> None:
    centres = torch.stack([p.c2w[:3, 3] for p in fly(KEYFRAMES, 601)])
    speed = (centres[1:] - centres[:-1]) * 200
    assert (speed[1:] - speed[:-1]).norm(dim=1).max() < 0.15
    middle = fly([KEYFRAMES[0], KEYFRAMES[1]], 3)[1]
    assert middle.c2w[:3, 3].tolist() == pytest.approx([0.5, 0, 0])
    assert middle.fov == pytest.approx(math.sqrt(0.5))


def test_one_keyframe_and_none() -> None:
    assert all(torch.allclose(p.c2w, KEYFRAMES[1].c2w) for p in fly(KEYFRAMES[1:2], 4))
    assert torch.allclose(fly(KEYFRAMES, 1)[0].c2w, KEYFRAMES[0].c2w)
    with pytest.raises(ConfigError):
        fly([], 3)
    with pytest.raises(ConfigError):
        fly(KEYFRAMES, 0)
