"""Camera-to-world matrices from directions: looking at a point, and the mean of several poses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Below this length the mean of unit vectors gives no reliable direction (cameras that face each other).
_DEGENERATE_DIRECTION = 1e-4


def look_at(centres: Tensor, target: Tensor, down: Tensor, roll: Tensor | None = None) -> Tensor:
    """Camera-to-world matrices (V, 4, 4) with OpenCV axes that look at a point, with image +y towards ``down``.

    Args:
        centres: (V, 3).
        target: (3,) or one per camera (V, 3).
        down: (3,) in the world; not parallel to a viewing direction.
        roll: (V,) rotation about the viewing axis in radians, from image +x towards +y; none by default.
    """
    forward = F.normalize(target - centres, dim=-1)
    right = F.normalize(torch.linalg.cross(down.expand_as(forward), forward, dim=-1), dim=-1)
    below = torch.linalg.cross(forward, right, dim=-1)
    if roll is not None:
        cos, sin = roll.cos()[:, None], roll.sin()[:, None]
        right, below = cos * right + sin * below, cos * below - sin * right
    c2w = torch.eye(4, dtype=centres.dtype, device=centres.device).repeat(len(centres), 1, 1)
    c2w[:, :3, :3] = torch.stack([right, below, forward], dim=-1)
    c2w[:, :3, 3] = centres
    return c2w


def mean_pose(c2w: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation (3, 3) and centre (3,), float64, of the frame between the given (V, 4, 4) cameras.

    Forward is the mean of the viewing directions; down is the mean of the down axes, made orthogonal to it (the
    released rule). If a mean vanishes or both are parallel, as for a ring of cameras that face each other, the axes of
    the first camera are used instead: like the means, they rotate with the cameras.
    """
    c2w = c2w.double()
    centre = c2w[:, :3, 3].mean(0)
    mean_forward, mean_down = c2w[:, :3, 2].mean(0), c2w[:, :3, 1].mean(0)
    forward = F.normalize(mean_forward, dim=0)
    down = mean_down - (mean_down @ forward) * forward
    if mean_forward.norm() < _DEGENERATE_DIRECTION or down.norm() < _DEGENERATE_DIRECTION:
        return c2w[0, :3, :3], centre
    down = F.normalize(down, dim=0)
    right = torch.linalg.cross(down, forward)
    return torch.stack([right, down, forward], dim=1), centre
