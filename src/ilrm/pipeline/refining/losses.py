"""What a refinement makes small: absolute and squared error of pixels, and dissimilarity (Wang et al. 2004)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ilrm.evaluate.metrics import SSIM_WINDOW, ssim_map, whole_windows


def photometric(rgb: Tensor, truth: Tensor, mask: Tensor | None, l1: float, ssim: float) -> Tensor:
    """Mean over views (V, H, W, 3); pixels outside the mask (V, H, W) count in none of the terms.

    Args:
        l1: share of the absolute error; the rest is squared error.
        ssim: weight of 1 - SSIM beside it; images smaller than its window do without.
    """
    if rgb.device.type == "cpu" and rgb.dtype == torch.float32:
        return _ByKernels.apply(rgb, truth, mask, l1, ssim)  # type: ignore[no-any-return]
    return photometric_reference(rgb, truth, mask, l1, ssim)


def photometric_reference(rgb: Tensor, truth: Tensor, mask: Tensor | None, l1: float, ssim: float) -> Tensor:
    """``photometric`` by differentiable operations of torch, on any device."""
    difference = rgb - truth
    error = difference.square()
    if l1:
        error = (1 - l1) * error + l1 * difference.abs()
    loss = _mean(error, mask)
    if ssim and min(truth.shape[1:3]) >= SSIM_WINDOW:
        dissimilarity = 1 - ssim_map(rgb, truth).permute(0, 2, 3, 1)
        loss = loss + ssim * _mean(dissimilarity, None if mask is None else whole_windows(mask))
    return loss


def squared_error(rgb: Tensor, truth: Tensor, mask: Tensor | None) -> Tensor:
    """The loss of ``RefineConfig.paper``."""
    return photometric(rgb, truth, mask, 0.0, 0.0)


def load_loss_kernels() -> None:
    """Compile or load the CPU's kernels: what comes after it can be timed."""
    image = torch.zeros(1, SSIM_WINDOW, SSIM_WINDOW, 3)
    photometric(image, image, None, 1.0, 1.0)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the views of each one's mean over the pixels that count; 0 for a view in which none does."""
    if mask is None:
        return values.mean()
    counted = torch.where(mask[..., None], values, 0.0).sum((1, 2, 3))
    return (counted / (values.shape[-1] * mask.sum((1, 2))).clamp_min(1)).mean()


class _ByKernels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        from ilrm.pipeline.refining.numba_loss import loss_and_gradient

        rgb, truth, mask, l1, ssim = args
        views, height, width = rgb.shape[:3]
        with_ssim = ssim != 0 and min(height, width) >= SSIM_WINDOW
        nothing = np.zeros((0, 0), np.bool_)
        loss, gradient = 0.0, np.empty((views, height, 3 * width), np.float32)
        windows = None if mask is None or not with_ssim else whole_windows(mask)
        for view in range(views):
            pixels = nothing if mask is None else mask[view].numpy()
            whole = nothing if windows is None else windows[view].numpy()
            counts = (
                height * width if mask is None else max(int(pixels.sum()), 1),
                (height - SSIM_WINDOW + 1) * (width - SSIM_WINDOW + 1) if windows is None else max(int(whole.sum()), 1),
            )
            weights = 1 / (3 * views * counts[0]), ssim / (3 * views * counts[1]) if with_ssim else 0.0
            flat = [np.ascontiguousarray(x[view].detach().float().numpy()).reshape(height, -1) for x in (rgb, truth)]
            one, gradient[view] = loss_and_gradient(*flat, pixels, whole, weights, float(l1))
            loss += one
        ctx.save_for_backward(torch.from_numpy(gradient).reshape(rgb.shape))
        return rgb.new_tensor(loss)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradients[0] * gradient, None, None, None, None
