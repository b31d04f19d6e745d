"""Image and depth metrics, per view.

The protocol is that of the published numbers: PSNR clamps images to [0, 1] first; SSIM does not, and equals
scikit-image's ``structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=True, data_range=1)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from ilrm.core.errors import SceneError

SSIM_WINDOW = 11
_SIGMA = 1.5
_LARGE = 400  # pixels
SSIM_CONSTANTS = _C1, _C2 = 0.01**2, 0.03**2
SSIM_SAMPLE = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1)  # from population to sample covariance


def _check(prediction: Tensor, truth: Tensor) -> None:
    if prediction.shape != truth.shape or truth.ndim != 4 or truth.shape[-1] != 3:
        raise SceneError(
            f"Images of shapes {tuple(prediction.shape)} and {tuple(truth.shape)} cannot be compared.",
            expected="two tensors of one shape (V, H, W, 3)",
        )


def psnr(prediction: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """(V,) peak signal-to-noise ratio in dB of images (V, H, W, 3), both clamped to [0, 1]; equal images give inf.

    Args:
        mask: (V, H, W) bool, the pixels that count; all by default. A view without such pixels gives NaN.
    """
    _check(prediction, truth)
    error = (prediction.clamp(0, 1).double() - truth.clamp(0, 1).double()).square()
    if mask is None:
        return -10 * error.mean((1, 2, 3)).log10()
    return -10 * torch.stack([masked_mean(*view) for view in zip(error, mask, strict=True)]).log10()


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of values (..., H, W, C) over the pixels that count and all channels; NaN if no pixel counts.

    Args:
        mask: (..., H, W) bool; None if all pixels count.
    """
    if mask is None:
        return values.mean()
    # Not values[mask], whose size a device would have to tell first.
    return torch.where(mask[..., None], values, 0.0).sum() / (values.shape[-1] * mask.sum())


def mean_of_known(values: Sequence[float]) -> float | None:
    """Mean of the values that are not NaN; None if there is none."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else None


def ssim(prediction: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """(V,) structural similarity of images (V, H, W, 3) with data range 1, not clamped, in float64.

    Args:
        mask: (V, H, W) bool, the pixels that count; all by default. The mean is over windows in which all pixels count;
            a view without such windows gives NaN.

    Raises:
        SceneError: the images are smaller than the 11-pixel window, or of different shapes.
    """
    _check(prediction, truth)
    height, width = truth.shape[1:3]
    if min(height, width) < SSIM_WINDOW:
        raise SceneError(
            f"Images of {width}x{height} pixels are too small for SSIM.",
            expected=f"at least {SSIM_WINDOW}x{SSIM_WINDOW}, the size of its window",
        )
    pairs = zip(prediction.double(), truth.double(), strict=True)  # one view at a time bounds the memory
    if mask is None:
        return torch.stack([ssim_map(p[None], t[None]).mean() for p, t in pairs])
    maps = (ssim_map(p[None], t[None])[0].permute(1, 2, 0) for p, t in pairs)
    return torch.stack([masked_mean(m, whole) for m, whole in zip(maps, whole_windows(mask), strict=True)])


def whole_windows(mask: Tensor) -> Tensor:
    """(V, H - 10, W - 10) bool: the windows of ``ssim_map`` in which all pixels of a mask (V, H, W) count."""
    return F.max_pool2d((~mask).float()[:, None], SSIM_WINDOW, stride=1)[:, 0] == 0


def ssim_map(prediction: Tensor, truth: Tensor) -> Tensor:
    """(V, 3, H - 10, W - 10) similarity at every pixel whose window lies inside the images (V, H, W, 3).

    Differentiable, in the dtype of its arguments. Only the border is dropped, as the metric's mean does.
    """
    x, y = prediction.permute(0, 3, 1, 2), truth.permute(0, 3, 1, 2)
    blurred = _blur(torch.cat([x, y, x * x, y * y, x * y], dim=1))
    mx, my, mxx, myy, mxy = blurred.chunk(5, dim=1)
    vx, vy, cov = SSIM_SAMPLE * (mxx - mx * mx), SSIM_SAMPLE * (myy - my * my), SSIM_SAMPLE * (mxy - mx * my)
    return ((2 * mx * my + _C1) * (2 * cov + _C2)) / ((mx * mx + my * my + _C1) * (vx + vy + _C2))


def _blur(x: Tensor) -> Tensor:
    """Gaussian blur of (V, C, H, W) without the border."""
    # Measured with gradients on a CPU: in float32, two convolutions are 2 times (256 px) to 4 times (540x960) as fast
    # as products with banded matrices; in float64 only from 400 px on. On a GPU, convolutions may use TF32, whose few
    # digits are not enough for differences of squares.
    large = max(x.shape[-2:]) > _LARGE
    return (
        _blur_by_convolution(x) if x.device.type == "cpu" and (x.dtype == torch.float32 or large) else _blur_by_bands(x)
    )


def _blur_by_convolution(x: Tensor) -> Tensor:
    kernel = ssim_weights().to(x).expand(x.shape[1], 1, 1, SSIM_WINDOW)
    down = F.conv2d(x, kernel.transpose(-1, -2), groups=x.shape[1])
    return F.conv2d(down, kernel, groups=x.shape[1])


def _blur_by_bands(x: Tensor) -> Tensor:
    rows, columns = (_band(size, x.dtype, x.device) for size in x.shape[-2:])
    return rows @ x @ columns.T


def ssim_weights() -> Tensor:
    """(11,) float64 window along one axis."""
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    weights = torch.exp(-0.5 * (offsets / _SIGMA) ** 2)
    return weights / weights.sum()


@lru_cache(maxsize=8)
def _band(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(size - 10, size) matrix that blurs a column of ``size`` values wherever the whole window fits."""
    band = torch.zeros(size - SSIM_WINDOW + 1, size, dtype=torch.float64)
    for i, weight in enumerate(ssim_weights()):
        band.diagonal(i).fill_(weight)
    return band.to(device, dtype)


def depth_abs_rel(depth: Tensor, truth: Tensor, *, median_scaled: bool = False) -> Tensor:
    """(V,) mean of |depth - truth| / truth over the pixels where truth (V, H, W) is known (above 0 and finite).

    Args:
        median_scaled: first multiply each predicted map by the ratio of the medians, to ignore a wrong scale.

    Raises:
        SceneError: a view has no pixel of known depth, or the shapes differ.
    """
    if depth.shape != truth.shape or truth.ndim != 3:
        raise SceneError(
            f"Depth maps of shapes {tuple(depth.shape)} and {tuple(truth.shape)} cannot be compared.",
            expected="two tensors of one shape (V, H, W)",
        )
    errors = []
    for view, (d, t) in enumerate(zip(depth.double(), truth.double(), strict=True)):
        known = torch.isfinite(t) & (t > 0)
        if not known.any():
            raise SceneError(f"The true depth of view {view} has no known pixel.", expected="positive z-depths")
        d, t = d[known], t[known]
        if median_scaled:
            d = d * (t.median() / d.median().clamp_min(1e-12))
        errors.append(((d - t).abs() / t).mean())
    return torch.stack(errors)
