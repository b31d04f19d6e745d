"""Renderings beside photos: what differs, and what each Gaussian has to do with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ilrm.core.cameras import Cameras
from ilrm.core.errors import GaussiansError
from ilrm.core.gaussians import PER_GAUSSIAN, Gaussians
from ilrm.core.spherical_harmonics import C0
from ilrm.render import Backend, Rendering, background_of, expected_depth, render

# The range of ``render``.
_NEAR, _FAR = 0.01, 1e6
# Gaussians times views that are drawn at once outside of the CPU's own kernels: a gradient keeps 200 bytes of each.
_AT_A_TIME = 1 << 24


@dataclass(frozen=True, eq=False)
class Comparison:
    """Renderings of (..., N) Gaussians beside the photos of (..., V) cameras. Nothing here has a gradient itself.

    Attributes:
        rendering: what the cameras see.
        residual: (..., V, H, W, 3) photo minus rendering; 0 where a pixel does not count.
        gradients: of half the summed squared residual, by the five parameters' names and with their shapes; empty if
            they were not asked for.
        weights: (..., N) sum of each Gaussian's blending weights over all pixels of all views; zeros likewise.
    """

    rendering: Rendering
    residual: Tensor
    gradients: dict[str, Tensor]
    weights: Tensor


@torch.no_grad()
def compare(
    gaussians: Gaussians,
    cameras: Cameras,
    photos: Tensor,
    background: Sequence[float] | Tensor | None = None,
    *,
    mask: Tensor | None = None,
    gradients: bool = True,
    backend: Backend = "auto",
) -> Comparison:
    """Render Gaussians into cameras whose photos are known, and differentiate the error.

    The gradient of each Gaussian sums over all pixels and views, each with the weight that it was blended with. Memory
    is that of a few views, however many there are.

    Args:
        gaussians: (B, N).
        cameras: (B, V).
        photos: (B, V, H, W, 3).
        mask: (B, V, H, W) bool, the pixels that count; all by default.
        gradients: whether the error is differentiated, which takes longer than rendering.
        background, backend: as for ``render``.

    Raises:
        GaussiansError: photos of another shape than the cameras'. As ``render``, too.
    """
    size = (*cameras.c2w.shape[:2], cameras.height, cameras.width, 3)
    if gaussians.means.ndim != 3 or tuple(photos.shape) != size:
        raise GaussiansError(
            f"compare was given photos {tuple(photos.shape)} and Gaussians {tuple(gaussians.means.shape)}.",
            expected=f"{size} for these cameras, and Gaussians (B, N)",
        )
    gaussians = gaussians.detach()
    if not gradients:
        seen = render(gaussians, cameras, background, near=_NEAR, far=_FAR, backend=backend)
        residual = _residual(seen.rgb, photos.to(seen.rgb), mask)
        return Comparison(seen, residual, {}, torch.zeros_like(gaussians.opacities))
    if backend == "numba" or (backend == "auto" and gaussians.device.type == "cpu"):
        return _by_kernels(gaussians, cameras, photos, background, mask)
    together = max(1, _AT_A_TIME // max(1, gaussians.opacities.numel()))
    parts = [slice(i, i + together) for i in range(0, cameras.views, together)]
    found = [
        _by_autograd(
            gaussians,
            replace(cameras, c2w=cameras.c2w[:, part], K=cameras.K[:, part]),
            photos[:, part],
            background,
            None if mask is None else mask[:, part],
            backend,
        )
        for part in parts
    ]
    images = [torch.cat([getattr(one.rendering, name) for one in found], dim=1) for name in ("rgb", "alpha", "depth")]
    return Comparison(
        Rendering(*images),
        torch.cat([one.residual for one in found], dim=1),
        {name: torch.stack([one.gradients[name] for one in found]).sum(0) for name in PER_GAUSSIAN},
        torch.stack([one.weights for one in found]).sum(0),
    )


def _by_kernels(
    gaussians: Gaussians,
    cameras: Cameras,
    photos: Tensor,
    background: Sequence[float] | Tensor | None,
    mask: Tensor | None,
) -> Comparison:
    """One pass of the CPU's kernels over each view: forward, difference, backward."""
    # Imported here so that nothing waits for numba where it is not needed.
    from ilrm.render.numba_cpu import compare_views

    photos = photos.to("cpu", torch.float32)
    residual = torch.empty_like(photos)

    def difference(b: int, v: int, rgb: Tensor) -> Tensor:
        residual[b, v] = _residual(rgb, photos[b, v], None if mask is None else mask[b, v])
        return -residual[b, v]

    local = cameras.relative_to(gaussians.origin)
    colour = torch.as_tensor(background_of(gaussians, background), dtype=torch.float32)
    images, gradients, weights = compare_views(gaussians, local, difference, colour, _NEAR, _FAR)
    rgb, alpha, weighted = images
    rendering = Rendering(rgb, alpha, expected_depth(weighted, alpha))
    return Comparison(rendering, residual, dict(zip(PER_GAUSSIAN, gradients, strict=True)), weights)


def _by_autograd(
    gaussians: Gaussians,
    cameras: Cameras,
    photos: Tensor,
    background: Sequence[float] | Tensor | None,
    mask: Tensor | None,
    backend: Backend,
) -> Comparison:
    """The same with any renderer: one backward pass for the error, one more for the weights."""
    with torch.enable_grad():
        leaves = gaussians.map(lambda x: x.clone().requires_grad_())
        seen = render(leaves, cameras, background, near=_NEAR, far=_FAR, backend=backend)
        residual = _residual(seen.rgb, photos.to(seen.rgb), mask)
        wanted = [getattr(leaves, name) for name in PER_GAUSSIAN]
        found = torch.autograd.grad(0.5 * residual.square().sum(), wanted, allow_unused=True)
        # The derivative of a picture of grey Gaussians by their grey values is what each was blended with.
        grey = torch.zeros_like(gaussians.sh[..., :1, :]).requires_grad_()
        picture = render(replace(gaussians, sh=grey), cameras, background, near=_NEAR, far=_FAR, backend=backend)
        (weights,) = torch.autograd.grad(picture.rgb[..., 0].sum() / C0, [grey])
    gradients = {
        name: torch.zeros_like(leaf) if one is None else one
        for name, leaf, one in zip(PER_GAUSSIAN, wanted, found, strict=True)
    }
    rendering = Rendering(seen.rgb.detach(), seen.alpha.detach(), seen.depth.detach())
    return Comparison(rendering, residual.detach(), gradients, weights[..., 0, 0])


def _residual(rgb: Tensor, photo: Tensor, mask: Tensor | None) -> Tensor:
    difference = photo - rgb
    return difference if mask is None else torch.where(mask[..., None].to(rgb.device), difference, 0.0)
