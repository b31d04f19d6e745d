"""The CUDA rasteriser: gsplat, called with the settings of ``rules``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ilrm.core import spherical_harmonics
from ilrm.core.cameras import Cameras, rigid_inverse
from ilrm.core.errors import ConfigError, MissingExtraError
from ilrm.core.gaussians import PER_GAUSSIAN, Gaussians
from ilrm.render.rules import BLUR


def render_views(
    gaussians: Gaussians, cameras: Cameras, background: Tensor, near: float, far: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Of a batch (B, N), (B, V): colour (B, V, H, W, 3), alpha and sum of weight times depth (B, V, H, W), float32."""
    try:
        from gsplat import rasterization  # type: ignore[import-not-found]
    except ImportError as error:
        raise MissingExtraError("gsplat", "cuda", "Rendering on CUDA") from error
    if gaussians.device.type != "cuda":
        raise ConfigError(
            f"The gsplat backend was given Gaussians on {gaussians.device}.",
            expected="a CUDA device",
            fix="move them with gaussians.to('cuda'), or leave the backend at 'auto'",
        )
    return draw(rasterization, gaussians, cameras, background, near, far)


def draw(
    rasterization: Callable[..., tuple[Tensor, Tensor, object]],
    gaussians: Gaussians,
    cameras: Cameras,
    background: Tensor,
    near: float,
    far: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """``render_views`` with gsplat's function of that name, or another that keeps its promises."""
    drawn = _without_broken(gaussians.to(dtype=torch.float32))
    (batch, views), height, width = cameras.c2w.shape[:2], cameras.height, cameras.width
    colour = background.float().expand(batch, views, 3)
    if drawn.count == 0:
        # gsplat's kernels do not take empty sets. Each parameter has a gradient all the same: one without elements.
        nothing = sum(getattr(drawn, name).sum() for name in PER_GAUSSIAN)
        empty = nothing + colour.new_zeros(batch, views, height, width)
        return colour[:, :, None, None].expand(*empty.shape, 3) + empty[..., None], empty, empty
    c2w = cameras.c2w.detach().to(drawn.device, torch.float64)
    # Evaluated here: how gsplat takes batches of harmonics differs between its releases.
    directions = F.normalize(drawn.means[:, None] - c2w[:, :, None, :3, 3].to(drawn.means), dim=-1)
    colours = spherical_harmonics.colours(drawn.sh[:, None], directions)
    images, alpha, _ = rasterization(
        means=drawn.means,
        quats=drawn.quats,
        scales=drawn.scales,
        opacities=drawn.opacities,
        colors=colours,
        viewmats=rigid_inverse(c2w).to(drawn.means),
        Ks=cameras.K.detach().to(drawn.means),
        width=width,
        height=height,
        near_plane=near,
        far_plane=far,
        eps2d=BLUR,
        sh_degree=None,
        packed=False,
        backgrounds=colour,
        render_mode="RGB+D",
        rasterize_mode="antialiased" if drawn.antialiased else "classic",
    )
    return images[..., :3], alpha[..., 0], images[..., 3]


def _without_broken(gaussians: Gaussians) -> Gaussians:
    """Gaussians with NaN or infinite values become invisible ones without a gradient; nothing waits for the GPU."""
    sound = gaussians.finite()
    shown = gaussians.map(lambda x: torch.where(sound.reshape(sound.shape + (1,) * (x.ndim - sound.ndim)), x, 0.0))
    w, xyz = shown.quats.split((1, 3), dim=-1)
    return replace(shown, quats=torch.cat([torch.where(sound[..., None], w, 1.0), xyz], dim=-1))
