"""Depth to look at."""

from __future__ import annotations

import torch
from torch import Tensor

# Near to far, roughly even steps of brightness, so that it also reads in grey; the last one is for unknown depth.
_COLOURS = ((1.0, 0.97, 0.75), (0.99, 0.68, 0.36), (0.87, 0.32, 0.40), (0.55, 0.16, 0.51), (0.2, 0.07, 0.42), (0, 0, 0))
_MOST_SAMPLES = 10_000


def depth_range(depth: Tensor) -> tuple[float, float] | None:
    """Near and far ends of depths of any shape but for a few outliers, which should not make the rest of one colour.

    Returns:
        (near, far) in the unit of the depths; None if all of them are unknown (0).
    """
    known = depth[depth > 0]
    if known.numel() == 0:
        return None
    sample = known[:: max(1, known.numel() // _MOST_SAMPLES)]
    near, far = torch.quantile(sample, sample.new_tensor([0.02, 0.98])).tolist()
    return near, far


def colour_depth(depth: Tensor, limits: tuple[float, float] | None = None) -> Tensor:
    """(..., H, W, 3) colours of z-depths (..., H, W): light is near, dark far, evenly in log-depth, black unknown.

    Args:
        depth: 0 where unknown.
        limits: near and far end of the colours; by default those of the depths themselves. Frames of one video should
            share them, or the colours flicker.
    """
    known = depth > 0
    if (limits := limits or depth_range(depth)) is None:
        return depth.new_zeros((*depth.shape, 3))
    low, high = depth.new_tensor(limits).clamp_min(1e-6).log()
    place = ((depth.clamp_min(1e-6).log() - low) / (high - low).clamp_min(1e-3)).clamp(0, 1) * (len(_COLOURS) - 2)
    colours = depth.new_tensor(_COLOURS)
    lower = place.floor().long().clamp_max(len(_COLOURS) - 3)
    share = (place - lower)[..., None]
    mixed = colours[lower] * (1 - share) + colours[lower + 1] * share
    return torch.where(known[..., None], mixed, colours[-1])
