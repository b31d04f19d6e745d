"""Interpolation of the camera through keyframes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ilrm.core.errors import ConfigError
from ilrm.core.gaussians import matrix_to_quaternion, quaternion_to_matrix, slerp
from ilrm.view.splats import Pose


def fly(keyframes: Sequence[Pose], frames: int) -> list[Pose]:
    """Poses on a smooth path through all keyframes, with the same number of frames between any two.

    Centres follow a Catmull-Rom spline and rotations the shortest arc; the logarithms of field of view and distance are
    interpolated linearly.

    Args:
        keyframes: at least one.
        frames: number of poses, including the first and the last keyframe.

    Raises:
        ConfigError: no keyframe, or no frame.
    """
    if not keyframes or frames < 1:
        raise ConfigError(
            f"A path of {frames} frames through {len(keyframes)} keyframes was requested.",
            expected="at least 1 of each",
        )
    centres = torch.stack([pose.c2w[:3, 3] for pose in keyframes])  # (P, 3)
    quats = matrix_to_quaternion(torch.stack([pose.c2w[:3, :3] for pose in keyframes]))  # (P, 4)
    logs = torch.tensor([[math.log(pose.fov), math.log(pose.distance)] for pose in keyframes], dtype=torch.float64)
    last = len(keyframes) - 1
    way = []
    for time in torch.linspace(0, last, frames, dtype=torch.float64).tolist():
        i = min(int(time), max(last - 1, 0))
        j, t = min(i + 1, last), time - i
        c2w = torch.eye(4, dtype=torch.float64)
        c2w[:3, :3] = quaternion_to_matrix(slerp(quats[i], quats[j], torch.tensor(t, dtype=torch.float64)))
        c2w[:3, 3] = _spline(centres[max(i - 1, 0)], centres[i], centres[j], centres[min(j + 1, last)], t)
        fov, distance = ((1 - t) * logs[i] + t * logs[j]).exp().tolist()
        way.append(Pose(c2w, fov, distance))
    return way


def _spline(before: Tensor, a: Tensor, b: Tensor, after: Tensor, t: float) -> Tensor:
    """Catmull-Rom: the cubic from a to b whose slopes are half the chords of the neighbours."""
    start, end = (b - before) / 2, (after - a) / 2
    t2, t3 = t * t, t * t * t
    return (2 * t3 - 3 * t2 + 1) * a + (t3 - 2 * t2 + t) * start + (3 * t2 - 2 * t3) * b + (t3 - t2) * end
