"""Smoothing of camera paths."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ilrm.core.cameras import Cameras
from ilrm.core.errors import ConfigError


def stabilise(cameras: Cameras, window: int = 50, *, closed: bool = False) -> Cameras:
    """Smooth a path: filter right axis, down axis and centre over time with a Gaussian, as the released code does.

    In the released code the axes are no longer orthogonal afterwards; here the down axis is corrected, so that the
    results are valid cameras. Intrinsics are not changed.

    Args:
        cameras: F cameras, one per frame.
        window: length of the filter in frames; the standard deviation is 0.3 ((window - 1) / 2 - 1) + 0.8, OpenCV's
            rule.
        closed: whether the path is a loop. Otherwise time is mirrored at both ends, without repeating them.

    Raises:
        ConfigError: a window of less than one frame.
    """
    if window < 1:
        raise ConfigError(f"A filter of {window} frames was requested.", expected="at least 1")
    c2w = cameras.c2w.double().cpu()
    right, down = (F.normalize(_filtered(c2w[:, :3, axis], window, closed), dim=-1) for axis in (0, 1))
    forward = F.normalize(torch.linalg.cross(right, down, dim=-1), dim=-1)
    moved = c2w.clone()
    moved[:, :3, :3] = torch.stack([right, torch.linalg.cross(forward, right, dim=-1), forward], dim=-1)
    moved[:, :3, 3] = _filtered(c2w[:, :3, 3], window, closed)
    return replace(cameras, c2w=moved.to(cameras.c2w))


def _filtered(values: Tensor, window: int, closed: bool) -> Tensor:
    """(F, C) values, each replaced by the weighted mean of its neighbours in time."""
    sigma = 0.3 * ((window - 1) / 2 - 1) + 0.8
    place = torch.arange(window, dtype=torch.float64)
    weights = torch.exp(-((place - (window - 1) / 2) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    frames = len(values)
    index = torch.arange(frames)[:, None] + place.long() - window // 2  # (F, window)
    if closed:
        index = index % frames
    else:
        period = max(2 * (frames - 1), 1)
        index = index % period
        index = torch.minimum(index, period - index).clamp_max(frames - 1)
    return torch.einsum("fkc,k->fc", values[index], weights)
