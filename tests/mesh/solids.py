"""Objects with a known surface, as Gaussians and as exact depth."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ilrm.core.cameras import Cameras
from ilrm.core.gaussians import Gaussians, matrix_to_quaternion
from ilrm.mesh.fusion import pixel_weights
from ilrm.mesh.tsdf import DepthViews
from tests.conftest import look_at


def lattice_on_sphere(count: int) -> Tensor:
    """(N, 3) unit vectors spread evenly."""
    k = torch.arange(count, dtype=torch.float64)
    z, angle = 1 - (2 * k + 1) / count, k * math.pi * (3 - 5**0.5)
    r = (1 - z * z).sqrt()
    return torch.stack([r * angle.cos(), r * angle.sin(), z], dim=-1)


def paint(normals: Tensor) -> Tensor:
    """(N, 3) a smooth colour for each direction."""
    return 0.5 + 0.35 * normals


def sphere(count: int = 3000, radius: float = 1.0, centre: tuple[float, float, float] = (0, 0, 0)) -> Gaussians:
    """Flat opaque Gaussians that cover a sphere."""
    normals = lattice_on_sphere(count).float()
    across = torch.nn.functional.normalize(torch.linalg.cross(normals, torch.tensor([[0.3, 0.5, 0.8]]), dim=-1), dim=-1)
    frame = torch.stack([across, torch.linalg.cross(normals, across, dim=-1), normals], dim=-1)
    spacing = radius * (4 * math.pi / count) ** 0.5
    return Gaussians(
        means=radius * normals + torch.tensor(centre, dtype=torch.float32),
        scales=spacing * torch.tensor([0.6, 0.6, 0.05]).expand(count, 3),
        quats=matrix_to_quaternion(frame),
        opacities=torch.full((count,), 0.99),
        sh=((paint(normals) - 0.5) / 0.2820948)[:, None],
    )


def cameras_on_sphere(views: int = 14, distance: float = 4.0, pixels: int = 80) -> Cameras:
    """Cameras all around that look at the origin."""
    centres = distance * lattice_on_sphere(views)[:, [0, 2, 1]]
    turned = centres + 0.01  # none exactly above, where down is undefined
    c2w = torch.stack([look_at(c, torch.zeros(3, dtype=torch.float64)) for c in turned])
    K = torch.tensor([[1.4 * pixels, 0, pixels / 2], [0, 1.4 * pixels, pixels / 2], [0, 0, 1]], dtype=torch.float64)
    return Cameras(c2w, K.repeat(views, 1, 1), pixels, pixels)


def depth_of_plane(cameras: Cameras, normal: Tensor, offset: float) -> DepthViews:
    """Exact depth of the plane normal . x = offset; colours are grey."""
    origins, directions = cameras.to(dtype=torch.float64).rays()
    along = (offset - origins @ normal) / (directions @ normal)
    z = along * (directions * cameras.forward.double()[:, None, None]).sum(-1)
    K = cameras.K.double().numpy()
    views = DepthViews(
        weight=np.zeros(z.shape, np.float32),
        depth=torch.where(along > 0, z, 0.0).float().numpy(),
        rgb=np.full((*z.shape, 3), 128, np.uint8),
        w2c=np.ascontiguousarray(cameras.c2w.double().inverse().numpy()[:, :3]),
        pinhole=np.stack([K[:, 0, 0], K[:, 1, 1], K[:, 0, 2], K[:, 1, 2]], axis=1),
    )
    return replace(views, weight=pixel_weights(views))
