"""Paths through given cameras, by the two interpolations of the released code."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ilrm.core.cameras import Cameras
from ilrm.core.errors import ConfigError
from ilrm.core.gaussians import matrix_to_quaternion, quaternion_to_matrix, slerp

# Viewing directions count as parallel if their cosine is this close to 1 or -1 (the released threshold).
_PARALLEL = 1e-4


def interpolate(cameras: Cameras, steps: int = 16) -> Cameras:
    """The released video path: through all cameras in order and back to the first.

    Each pair has ``steps`` poses including both ends, so that every camera appears twice. Rotations follow the shortest
    arc at constant speed; centres and intrinsics are interpolated linearly.

    Args:
        cameras: V cameras, in the order of the path.
        steps: poses per pair.

    Returns:
        V * steps cameras.

    Raises:
        ConfigError: no camera, or fewer than one step.
    """
    _check(cameras, steps)
    pairs = torch.arange(len(cameras), dtype=torch.float64)[:, None]
    return _at(cameras, (pairs + torch.linspace(0, 1, steps, dtype=torch.float64)).flatten())


def interpolate_evenly(cameras: Cameras, frames: int) -> Cameras:
    """``frames`` poses on the closed path of ``interpolate``, without repeating each camera.

    Raises:
        ConfigError: no camera, or fewer than one frame.
    """
    _check(cameras, frames)
    return _at(cameras, torch.arange(frames, dtype=torch.float64) * (len(cameras) / frames))


def _check(cameras: Cameras, frames: int) -> None:
    if len(cameras) == 0:
        raise ConfigError("A path through no cameras was requested.", expected="at least 1 camera")
    if frames < 1:
        raise ConfigError(f"A path of {frames} frames was requested.", expected="at least 1")


def _at(cameras: Cameras, times: Tensor) -> Cameras:
    """Poses at times (F,) in [0, V] on the closed path; camera i is at time i, the first camera also at V."""
    first = times.floor().clamp(0, len(cameras) - 1).long()
    second, share = (first + 1) % len(cameras), times - first
    c2w, K = cameras.c2w.double().cpu(), cameras.K.double().cpu()
    quats = matrix_to_quaternion(c2w[:, :3, :3])
    path = torch.eye(4, dtype=torch.float64).repeat(len(times), 1, 1)
    path[:, :3, :3] = quaternion_to_matrix(slerp(quats[first], quats[second], share))
    path[:, :3, 3] = torch.lerp(c2w[first, :3, 3], c2w[second, :3, 3], share[:, None])
    between = torch.lerp(K[first], K[second], share[:, None, None])
    return Cameras(path.to(cameras.c2w), between.to(cameras.K), cameras.width, cameras.height)


def interpolate_pair(pair: Cameras, times: Tensor) -> Cameras:
    """The released path between two cameras, around the point that both look at.

    A pose is described by the vector to this pivot, in axes that rotate with the viewing direction, and by two angles
    relative to a frame spanned by both viewing directions. These are interpolated linearly, angles in the shorter
    direction.

    Args:
        pair: two cameras.
        times: (F,), 0 at the first camera and 1 at the second; other values extrapolate.

    Returns:
        F cameras.

    Raises:
        ConfigError: not two cameras.
    """
    if len(pair) != 2:
        raise ConfigError(f"A path between {len(pair)} cameras was requested.", expected="two")
    times = times.double().cpu()
    rotation, centre = pair.c2w[:, :3, :3].double().cpu(), pair.centers.double().cpu()
    look = rotation[:, :, 2]
    frame, pivot = _common_frame(look), _pivot(centre, look)
    to_pivot = (_turned(frame, look).transpose(-1, -2) @ (pivot - centre)[..., None])[..., 0]  # (2, 3)
    local = frame.T @ rotation  # = Ry(yaw) Rx(0) Rz(roll), since viewing directions are orthogonal to the frame's y
    angles = torch.stack([local[:, 0, 2].atan2(local[:, 2, 2]), local[:, 1, 0].atan2(local[:, 1, 1])], -1)  # (2, 2)
    start, end = _shorter_way(angles[0], angles[1])
    yaw, roll = torch.lerp(start, end, times[:, None]).unbind(-1)
    path = torch.eye(4, dtype=torch.float64).repeat(len(times), 1, 1)
    path[:, :3, :3] = frame @ _turn_y(yaw) @ _turn_z(roll)
    offset = torch.lerp(to_pivot[0], to_pivot[1], times[:, None])[..., None]
    path[:, :3, 3] = pivot - (_turned(frame, path[:, :3, 2]) @ offset)[..., 0]
    K = torch.lerp(pair.K[0].double().cpu(), pair.K[1].double().cpu(), times[:, None, None])
    return Cameras(path.to(pair.c2w), K.to(pair.K), pair.width, pair.height)


def smooth_time(times: Tensor) -> Tensor:
    """Ease in and out: times in [0, 1] mapped to (cos(pi (t + 1)) + 1) / 2."""
    return ((math.pi * (times + 1)).cos() + 1) / 2


def _parallel(a: Tensor, b: Tensor) -> bool:
    return abs(abs((a @ b).item()) - 1) < _PARALLEL


def _pivot(centre: Tensor, look: Tensor) -> Tensor:
    """(3,) point nearest to two lines through centres (2, 3) along look (2, 3); the mean of the centres if parallel."""
    if _parallel(look[0], look[1]):
        return centre.mean(0)
    along = look[:, :, None] * look[:, None] - torch.eye(3, dtype=look.dtype)  # (2, 3, 3)
    return torch.linalg.solve(along.sum(0), (along @ centre[..., None]).sum(0)[:, 0])


def _common_frame(look: Tensor) -> Tensor:
    """(3, 3) axes as columns: z along the first viewing direction, y orthogonal to both."""
    across = look[1]
    for fallback in ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0)):
        if _parallel(look[0], across):
            across = look.new_tensor(fallback)
    # With dim given: by default torch uses the first axis of length 3, which may be that of the frames.
    y = F.normalize(torch.linalg.cross(look[0], across, dim=-1), dim=-1)
    return torch.stack([torch.linalg.cross(y, look[0], dim=-1), y, look[0]], dim=-1)


def _turned(frame: Tensor, look: Tensor) -> Tensor:
    """(V, 3, 3) the frame rotated about its y so that its z is the viewing direction (V, 3)."""
    y = frame[:, 1].expand_as(look)
    return torch.stack([torch.linalg.cross(y, look, dim=-1), y, look], dim=-1)


def _shorter_way(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """The same angles in [0, 2 pi), the start shifted by a full turn if it is then closer (ties as released)."""
    start, end = start % (2 * math.pi), end % (2 * math.pi)
    less, more = start - 2 * math.pi, start + 2 * math.pi
    here, below, above = (start - end).abs(), (less - end).abs(), (more - end).abs()
    return torch.where((here < below) & (here < above), start, torch.where(below < above, less, more)), end


def _turn_y(angle: Tensor) -> Tensor:
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([cos, zero, sin, zero, one, zero, -sin, zero, cos], -1).unflatten(-1, (3, 3))


def _turn_z(angle: Tensor) -> Tensor:
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], -1).unflatten(-1, (3, 3))
