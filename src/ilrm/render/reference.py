"""The slow, readable renderer: plain torch, gradients by autograd, any floating dtype. The oracle of the fast ones."""

from __future__ import annotations

import torch
from torch import Tensor

from ilrm.core.cameras import Cameras, pixel_centres
from ilrm.core.gaussians import Gaussians
from ilrm.render.projection import Pinhole, Projected, project
from ilrm.render.rules import ALPHA_CAP, ALPHA_MIN, TRANSMITTANCE_MIN

# Pixels that are composited at once: bounds the (pixels, M) intermediates.
_CHUNK = 1024


def render_views(
    gaussians: Gaussians, cameras: Cameras, background: Tensor, near: float, far: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Of a batch (B, N), (B, V): colour (B, V, H, W, 3), alpha and sum of weight times depth (B, V, H, W)."""
    elements = zip(gaussians, cameras, strict=True)
    views = [(one, view) for one, seen_by in elements for view in Pinhole.of(seen_by, gaussians.means)]
    images = [_render_view(one, view, background, near, far) for one, view in views]
    rgb, alpha, depth = (torch.stack(x).unflatten(0, (len(gaussians), -1)) for x in zip(*images, strict=True))
    return rgb, alpha, depth


def _render_view(
    gaussians: Gaussians, view: Pinhole, background: Tensor, near: float, far: float
) -> tuple[Tensor, Tensor, Tensor]:
    projected = project(gaussians, view, near, far)
    pixels = pixel_centres(view.width, view.height, gaussians.means).reshape(-1, 2)
    parts = [_composite(projected, chunk, background) for chunk in pixels.split(_CHUNK)]
    rgb, alpha, depth = (torch.cat(x) for x in zip(*parts, strict=True))
    size = (view.height, view.width)
    return rgb.reshape(*size, 3), alpha.reshape(size), depth.reshape(size)


def _composite(projected: Projected, pixels: Tensor, background: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Colour (P, 3), alpha (P,) and weighted depth (P,) at image positions (P, 2)."""
    offsets = pixels[:, None] - projected.means  # (P, M, 2)
    precision = torch.linalg.inv(projected.covariances)
    distance = torch.einsum("pmi,mij,pmj->pm", offsets, precision, offsets)
    alpha = (projected.opacities * torch.exp(-0.5 * distance)).clamp_max(ALPHA_CAP)
    alpha = torch.where(alpha < ALPHA_MIN, 0.0, alpha)  # (P, M), front to back
    after = torch.cumprod(1 - alpha, dim=1)
    # Transmittance only falls, so this keeps everything up to the Gaussian that would go too far.
    kept = after.detach() > TRANSMITTANCE_MIN
    alpha = torch.where(kept, alpha, 0.0)
    after = torch.cat([alpha.new_ones(len(pixels), 1), torch.cumprod(1 - alpha, dim=1)], dim=1)  # (P, M + 1)
    weight = alpha * after[:, :-1]
    rgb = weight @ projected.colours + after[:, -1:] * background
    return rgb, 1 - after[:, -1], weight @ projected.depths
