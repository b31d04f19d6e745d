"""What our own renderer sees: colours with all of their spherical harmonics, depth, normals, opacity."""

from __future__ import annotations

import threading
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ilrm.cameras import Cameras
from ilrm.gaussians import Gaussians
from ilrm.render import render
from ilrm.view.splats import Array

Kind = Literal["colour", "depth", "normals", "opacity"]

# The threads of a compiled kernel must not be asked from two places at once.
_ONE_AT_A_TIME = threading.Lock()
_VISIBLE = 0.5  # opacity from which a pixel has a depth worth showing
_DEPTH_SHARES = (0.02, 0.98)  # of the visible pixels, between which inverse depth runs from dark to bright


@torch.no_grad()
def picture(gaussians: Gaussians, camera: Cameras, kind: Kind, near: float) -> Array:
    """One view as (H, W, 3) uint8.

    Args:
        gaussians: N Gaussians; N may be 0.
        camera: one camera.
        kind: "depth" is brighter where it is nearer, scaled to the view; "normals" are those of the depth, in the
            camera's axes with right as red, up as green and towards the camera as blue; "opacity" is white where full.
        near: the near plane in world units.
    """
    with _ONE_AT_A_TIME:
        seen = render(gaussians, camera, near=near)
    alpha, depth = seen.alpha[0].cpu(), seen.depth[0].cpu()
    visible = alpha > _VISIBLE
    if kind == "colour":
        image = seen.rgb[0].cpu()
    elif kind == "opacity":
        image = alpha[..., None].expand(-1, -1, 3)
    elif kind == "depth":
        image = torch.where(visible, _relative_nearness(depth, visible), 0.0)[..., None].expand(-1, -1, 3)
    else:
        image = torch.where(visible[..., None], 0.5 + 0.5 * depth_normals(depth, camera), 1.0)
    return image.clamp(0, 1).mul(255).round().byte().numpy()


def _relative_nearness(depth: Tensor, visible: Tensor) -> Tensor:
    """Inverse depth (H, W), 0.1 to 1 between the farthest and the nearest of what is visible."""
    inverse = 1 / depth.clamp_min(1e-12)
    values = inverse[visible].sort().values
    if len(values) == 0:
        return torch.zeros_like(depth)
    far, near = (values[int(share * (len(values) - 1))] for share in _DEPTH_SHARES)
    return 0.1 + 0.9 * ((inverse - far) / (near - far).clamp_min(1e-12)).clamp(0, 1)


def depth_normals(depth: Tensor, camera: Cameras) -> Tensor:
    """Unit normals (H, W, 3) of a depth map (H, W), in axes right, up, towards the camera; the border repeats."""
    K = camera.K[0].cpu().to(depth)
    y, x = torch.meshgrid(
        torch.arange(depth.shape[0], dtype=depth.dtype) + 0.5,
        torch.arange(depth.shape[1], dtype=depth.dtype) + 0.5,
        indexing="ij",
    )
    points = torch.stack([(x - K[0, 2]) / K[0, 0] * depth, (y - K[1, 2]) / K[1, 1] * depth, depth], dim=-1)
    padded = F.pad(points.permute(2, 0, 1)[None], (1, 1, 1, 1), mode="replicate")[0].permute(1, 2, 0)
    across, down = padded[1:-1, 2:] - padded[1:-1, :-2], padded[2:, 1:-1] - padded[:-2, 1:-1]
    # down x across faces the camera: x right, y down, z forward.
    return F.normalize(torch.linalg.cross(down, across, dim=-1), dim=-1) * torch.tensor([1.0, -1.0, -1.0]).to(depth)
