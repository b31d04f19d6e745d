"""Cameras on a sphere around Gaussians, for depth renderings of all sides."""

from __future__ import annotations

import math

import torch

from ilrm.core.cameras import Cameras
from ilrm.core.errors import GaussiansError
from ilrm.core.gaussians import Gaussians
from ilrm.core.poses import look_at

_FIELD_OF_VIEW = math.radians(50)
_SHARE_IN_SIGHT = 0.95


def cameras_from_all_sides(gaussians: Gaussians, views: int = 32, size: int = 384) -> Cameras:
    """Cameras spread evenly over a sphere around N Gaussians, with 95 % of the opaque ones in view.

    They see an object from outside. The inside of a room needs the cameras of its photos.

    Args:
        views: number of cameras.
        size: width and height of each in pixels.

    Raises:
        GaussiansError: there are no finite Gaussians with an opacity of at least 0.5.
    """
    chosen = gaussians.finite() & (gaussians.opacities >= 0.5)
    centres = gaussians[chosen].detach().world_means.cpu()
    if len(centres) == 0:
        raise GaussiansError("No Gaussian has an opacity of at least 0.5, so there is no surface to look at.")
    middle = centres.median(dim=0).values
    radius = torch.quantile(_sample(centres - middle).norm(dim=-1), _SHARE_IN_SIGHT).clamp_min(1e-9)
    distance = radius / math.sin(_FIELD_OF_VIEW / 2)
    # A Fibonacci lattice: equal steps in height, the golden angle around the axis.
    height = 1 - (2 * torch.arange(views, dtype=torch.float64) + 1) / views
    angle = torch.arange(views, dtype=torch.float64) * math.pi * (3 - 5**0.5)
    level = (1 - height**2).sqrt()
    directions = torch.stack([level * angle.cos(), height, level * angle.sin()], dim=-1)
    c2w = look_at(middle + distance * directions, middle, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    focal = size / 2 / math.tan(_FIELD_OF_VIEW / 2)
    K = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], dtype=torch.float64)
    return Cameras(c2w, K.expand(views, 3, 3), size, size)


def _sample(points: torch.Tensor, most: int = 1 << 20) -> torch.Tensor:
    """An even subset of the rows, because torch.quantile accepts at most 16 million values."""
    return points[:: max(1, len(points) // most)]
