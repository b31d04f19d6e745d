"""The CUDA rasteriser: gsplat, called with the settings of ``rules``."""

from __future__ import annotations

import torch
from torch import Tensor

from ilrm.cameras import Cameras
from ilrm.errors import ConfigError, MissingExtraError
from ilrm.gaussians import Gaussians
from ilrm.render.rules import BLUR


def render_views(
    gaussians: Gaussians, cameras: Cameras, background: Tensor, near: float, far: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Colour (V, H, W, 3), alpha (V, H, W) and sum of weight times depth (V, H, W), float32."""
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
    drawn = gaussians.to(dtype=torch.float32)[gaussians.finite()]
    views, height, width = len(cameras), cameras.height, cameras.width
    colour = background.float().expand(views, 3)
    if len(drawn) == 0:
        # gsplat's kernels do not take empty sets.
        empty = drawn.means.sum() + colour.new_zeros(views, height, width)
        return colour[:, None, None].expand(views, height, width, 3) + empty[..., None], empty, empty
    images, alpha, _ = rasterization(
        means=drawn.means,
        quats=drawn.quats,
        scales=drawn.scales,
        opacities=drawn.opacities,
        colors=drawn.sh,
        viewmats=cameras.c2w.detach().double().inverse().to(drawn.means),
        Ks=cameras.K.detach().to(drawn.means),
        width=width,
        height=height,
        near_plane=near,
        far_plane=far,
        eps2d=BLUR,
        sh_degree=drawn.sh_degree,
        packed=False,
        backgrounds=colour,
        render_mode="RGB+D",
        rasterize_mode="antialiased" if drawn.antialiased else "classic",
    )
    return images[..., :3], alpha[..., 0], images[..., 3]
