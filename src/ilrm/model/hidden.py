"""Pixels that a mask hides from the network.

Shape suffixes: B batch, V views, H W rows and columns of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def hidden_pixels(mask_BVHW: Tensor, rows: int, columns: int) -> Tensor:
    """(B, V, rows, columns) bool on a coarser grid: where a pixel of the block does not count."""
    hidden = (~mask_BVHW).flatten(0, 1)[:, None].float()
    return F.adaptive_max_pool2d(hidden, (rows, columns))[:, 0].unflatten(0, mask_BVHW.shape[:2]) > 0


def fill_hidden(images_BVHW3: Tensor, mask_BVHW: Tensor) -> Tensor:
    """Images whose hidden pixels have the mean colours of ever wider surroundings; grey where nothing counts."""
    pixels = images_BVHW3.flatten(0, 1).permute(0, 3, 1, 2)
    counts = mask_BVHW.flatten(0, 1)[:, None].to(pixels)
    filled = _fill(pixels * counts, counts).permute(0, 2, 3, 1).unflatten(0, images_BVHW3.shape[:2])
    return torch.where(mask_BVHW[..., None], images_BVHW3, filled)


def _fill(sums: Tensor, counts: Tensor) -> Tensor:
    """Means (N, C, H, W) of sums (N, C, H, W) over counts (N, 1, H, W); from half the resolution where counts are 0."""
    if max(counts.shape[-2:]) == 1:
        return torch.where(counts > 0, sums / counts.clamp_min(1e-6), 0.5)
    halves = [F.avg_pool2d(x, 2, ceil_mode=True) for x in (sums, counts)]
    around = F.interpolate(_fill(*halves), counts.shape[-2:], mode="bilinear", align_corners=False)
    return torch.where(counts > 0, sums / counts.clamp_min(1e-6), around)
