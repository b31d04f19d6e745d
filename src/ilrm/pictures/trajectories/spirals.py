"""Spirals and wobbles about a camera, and turntables."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ilrm.core.cameras import Cameras
from ilrm.core.errors import ConfigError
from ilrm.core.poses import look_at, mean_pose
from ilrm.pictures.trajectories.orbits import looks_from_all_around

# The spiral of LLFF: two turns per oscillation in depth; its size on each axis is a quantile of the cameras' offsets.
_TURNS, _REACH = 2, 0.9
# Limits on the size of a spiral on each axis, as shares of the distance to the focus.
_LEAST_SHARE, _MOST_SHARE = 0.04, 0.1
# The radius of the released wobble as a share of the distance between the cameras, and its limit as a share of the
# distance to the focus.
_WOBBLE_SHARE, _MOST_WOBBLE = 0.25, 0.05


def middle_view(cameras: Cameras) -> int:
    """Index of the camera nearest to the mean centre."""
    centres = cameras.centers.double().cpu()
    return int((centres - centres.mean(0)).norm(dim=-1).argmin())


def spiral(cameras: Cameras, frames: int, focus: Tensor, about: int | None = None) -> Cameras:
    """A closed spiral about the mean pose that always looks at one point, as in LLFF.

    Cameras from all around have no useful mean pose; the spiral is then about the first camera.

    Args:
        cameras: V cameras; the first gives intrinsics and size.
        frames: number of poses.
        focus: (3,) the point to look at, in front of the cameras.
        about: index of a camera to use instead of the mean pose.

    Raises:
        ConfigError: fewer than one frame.
    """
    _check_frames(frames)
    if about is None and looks_from_all_around(cameras):
        about = 0
    focus = focus.double().cpu()
    c2w = cameras.c2w.double().cpu()
    rotation, middle = mean_pose(c2w if about is None else c2w[[about]])
    distance = (focus - middle).norm()
    reach = torch.quantile(((c2w[:, :3, 3] - middle) @ rotation).abs(), _REACH, dim=0)
    reach = reach.clamp(_LEAST_SHARE * distance, _MOST_SHARE * distance)
    angle = 2 * math.pi * _TURNS * torch.arange(frames, dtype=torch.float64) / frames
    local = torch.stack([angle.cos(), angle.sin(), (angle / _TURNS).sin()], dim=-1) * reach  # (F, 3)
    path = look_at(middle + local @ rotation.T, focus, rotation[:, 1])
    return Cameras(path.to(cameras.c2w), cameras.K[:1].expand(frames, 3, 3), cameras.width, cameras.height)


def wobble(cameras: Cameras, radius: float, times: Tensor, turns: int = 1, *, growing: bool = True) -> Cameras:
    """The released wobble: every camera is moved on a circle in its own image plane.

    The offset at time t is rho (sin(2 pi turns t), -cos(2 pi turns t), 0).

    Args:
        cameras: F cameras, one for each time, or a single one.
        radius: rho, in world units.
        times: (F,).
        growing: whether rho is radius * t, so that the path starts at the camera itself.
    """
    times = times.double().cpu()
    angle = 2 * math.pi * turns * times
    rho = radius * times if growing else torch.full_like(times, radius)
    offset = torch.stack([rho * angle.sin(), -rho * angle.cos(), torch.zeros_like(rho)], dim=-1)
    c2w = cameras.c2w.double().cpu().expand(len(times), 4, 4).clone()
    c2w[:, :3, 3] += (c2w[:, :3, :3] @ offset[..., None])[..., 0]
    return replace(cameras, c2w=c2w.to(cameras.c2w), K=cameras.K.expand(len(times), 3, 3))


def wobble_about(cameras: Cameras, frames: int, focus: Tensor) -> Cameras:
    """A wobble of the camera nearest to the mean centre, with a quarter of its median distance to the others as radius.

    Args:
        cameras: V cameras.
        frames: number of poses on the closed circle.
        focus: (3,) a visible point; the radius is limited to a share of its distance.

    Raises:
        ConfigError: fewer than one frame.
    """
    _check_frames(frames)
    centres, base = cameras.centers.double().cpu(), middle_view(cameras)
    most = _MOST_WOBBLE * (focus.double().cpu() - centres[base]).norm()
    others = (centres - centres[base]).norm(dim=-1)[torch.arange(len(centres)) != base]
    radius = torch.minimum(_WOBBLE_SHARE * others.median(), most) if len(others) else most
    return wobble(cameras[base], radius.item(), torch.arange(frames).double() / frames, growing=False)


def spin(frames: int, radius: float, elevation_deg: float = 0.0) -> Tensor:
    """The released turntable: (F, 4, 4) float64 camera-to-world, once around the origin and looking at it, y up.

    The pose of frame i is Ry(2 pi i / F) Rx(elevation) diag(-1, -1, 1, 1), where the last matrix has -radius as its z
    translation.

    Args:
        radius: distance to the origin in world units.
        elevation_deg: degrees above the plane y = 0.

    Raises:
        ConfigError: fewer than one frame.
    """
    _check_frames(frames)
    start = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64))
    start[2, 3] = -radius
    raised = torch.eye(4, dtype=torch.float64)
    cos, sin = math.cos(math.radians(elevation_deg)), math.sin(math.radians(elevation_deg))
    raised[1:3, 1:3] = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
    angle = 2 * math.pi * torch.arange(frames, dtype=torch.float64) / frames
    turned = torch.eye(4, dtype=torch.float64).repeat(frames, 1, 1)
    turned[:, 0, 0] = turned[:, 2, 2] = angle.cos()
    turned[:, 0, 2], turned[:, 2, 0] = angle.sin(), -angle.sin()
    return turned @ raised @ start


def _check_frames(frames: int) -> None:
    if frames < 1:
        raise ConfigError(f"A path of {frames} frames was requested.", expected="at least 1")
