"""Closed paths around the point that the cameras look at."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ilrm.core.cameras import Cameras
from ilrm.core.errors import ConfigError
from ilrm.core.poses import look_at, mean_pose

# If the mean viewing direction is shorter than this, the cameras look from all around rather than from one side.
_ALL_AROUND = 0.5
# If the mean down axis is longer than this, the cameras agree on the up direction.
_UPRIGHT = 0.2
# Viewing directions with a smaller horizontal part (straight up or down) have no heading.
_LEVEL = 0.1
# For cameras on one side, the half axes of the ellipse as a share of the cameras' spread, and at least of the distance.
_SPREAD_SHARE, _LEAST_SHARE = 0.7, 0.05


def focus_point(cameras: Cameras) -> Tensor | None:
    """(3,) point nearest to all viewing axes, float64; None if they are parallel or meet behind the cameras."""
    centres, axes = cameras.centers.double().cpu(), cameras.forward.double().cpu()
    across = (
        torch.eye(3, dtype=torch.float64) - axes[:, :, None] * axes[:, None]
    )  # (V, 3, 3) removes the part along the axis
    system = across.sum(0)
    if torch.linalg.svdvals(system)[-1] < 1e-4 * len(cameras):
        return None
    point = torch.linalg.solve(system, (across @ centres[..., None]).sum(0)[:, 0])
    in_front = ((point - centres) * axes).sum(-1) > 0
    return point if in_front.float().mean() > 0.5 else None


def looks_from_all_around(cameras: Cameras) -> bool:
    """Whether the headings of the cameras cover all directions, at any elevation, rather than one side."""
    forward, down = cameras.forward.double().cpu(), cameras.c2w[:, :3, 1].double().cpu().mean(0)
    if down.norm() > _UPRIGHT:
        down = F.normalize(down, dim=0)
        level = forward - (forward @ down)[:, None] * down
        forward = F.normalize(level[level.norm(dim=-1) > _LEVEL], dim=-1)
    return len(forward) > 1 and forward.mean(0).norm().item() < _ALL_AROUND


def orbit(cameras: Cameras, frames: int, focus: Tensor | None = None) -> Cameras:
    """A closed loop around the point that the cameras look at.

    For cameras on one side it is an ellipse about their mean pose, sized by their spread. For cameras from all around
    it is a full circle at their median distance and height.

    Args:
        cameras: V cameras; the first gives intrinsics and size.
        frames: number of poses on the loop.
        focus: (3,) the point to look at; by default the point nearest to all viewing axes.

    Returns:
        ``frames`` cameras.

    Raises:
        ConfigError: fewer than one frame, or no focus given and none found.
    """
    if frames < 1:
        raise ConfigError(f"A path of {frames} frames was requested.", expected="at least 1")
    focus = focus_point(cameras) if focus is None else focus.double().cpu()
    if focus is None:
        raise ConfigError("The cameras' viewing axes do not meet in front of them.", fix="give the point to look at")
    angle = 2 * math.pi * torch.arange(frames, dtype=torch.float64)[:, None] / frames  # (F, 1)
    centres = cameras.centers.double().cpu()
    if looks_from_all_around(cameras):
        path, down = _circle(centres, cameras.c2w[:, :3, 1].double().cpu(), focus, angle)
    else:
        path, down = _ellipse(cameras, centres, focus, angle)
    return Cameras(
        look_at(path, focus, down).to(cameras.c2w), cameras.K[:1].expand(frames, 3, 3), cameras.width, cameras.height
    )


def _circle(centres: Tensor, downs: Tensor, focus: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    down = F.normalize(downs.mean(0), dim=0)
    height = ((centres - focus) @ down).median()
    outward = (centres - focus) - ((centres - focus) @ down)[:, None] * down
    radius, first = outward.norm(dim=-1).median(), F.normalize(outward[0], dim=0)
    side = torch.linalg.cross(down, first, dim=-1)
    return focus + height * down + radius * (angle.cos() * first + angle.sin() * side), down


def _ellipse(cameras: Cameras, centres: Tensor, focus: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    rotation, middle = (x.cpu() for x in mean_pose(cameras.c2w))
    spread = ((centres - middle) @ rotation).abs().amax(0)
    half = (_SPREAD_SHARE * spread).clamp_min(_LEAST_SHARE * (focus - middle).norm())
    return middle + half[0] * angle.cos() * rotation[:, 0] + half[1] * angle.sin() * rotation[:, 1], rotation[:, 1]
