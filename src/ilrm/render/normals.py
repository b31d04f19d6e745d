"""Surface normals of rendered depth, and their colours."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ilrm.core.cameras import Cameras, camera_points, pixel_centres

# Across a jump of depth larger than this share of it lie two surfaces, not a slope.
_JUMP = 0.1


def normals(depth: Tensor, cameras: Cameras, axes: Literal["camera", "world"] = "camera") -> Tensor:
    """Unit normals of the surface that depth maps show, by finite differences, facing the camera.

    Differences are central; beside unknown depth, a jump or the border of the image they are one-sided.

    Args:
        depth: (V, H, W) z-depth in world units, 0 where unknown.
        cameras: the V cameras that saw it. Skew is ignored.
        axes: the frame of the result: the camera's (OpenCV axes) or the world's.

    Returns:
        (V, H, W, 3); zero where the depth is unknown or no neighbour goes with it.
    """
    pixels = pixel_centres(cameras.width, cameras.height, depth).flatten(0, 1)
    points = camera_points(depth.flatten(1), pixels, cameras.K.to(depth)).view(*depth.shape, 3)
    normal = torch.linalg.cross(_slope(points, 1), _slope(points, 2), dim=-1)
    normal = F.normalize(normal, dim=-1)
    normal = torch.where((normal * points).sum(-1, keepdim=True) > 0, -normal, normal)
    if axes == "world":
        normal = (cameras.c2w[:, None, None, :3, :3].to(depth) @ normal[..., None])[..., 0]
    return normal


def _slope(points: Tensor, axis: int) -> Tensor:
    """(V, H, W, 3) change of points along rows (axis 1) or columns (axis 2); zero where no neighbour is usable."""
    step = points.diff(dim=axis)
    depth = points[..., 2]
    near, far = depth.narrow(axis, 0, depth.shape[axis] - 1), depth.narrow(axis, 1, depth.shape[axis] - 1)
    usable = (near > 0) & (far > 0) & ((far - near).abs() < _JUMP * torch.minimum(near, far))
    step = torch.where(usable[..., None], step, 0.0)
    border = torch.zeros_like(points.narrow(axis, 0, 1))
    return torch.cat([border, step], dim=axis) + torch.cat([step, border], dim=axis)


def colour_normals(normal: Tensor) -> Tensor:
    """(..., 3) colours of unit normals in camera axes: red is right, green is up, blue faces the camera.

    Unknown normals (zero) are mid grey.
    """
    return 0.5 + 0.5 * normal * normal.new_tensor([1.0, -1.0, -1.0])
