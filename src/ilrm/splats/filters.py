"""Filters for Gaussians. Every function returns new Gaussians in the same order; the result may be empty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ilrm.core.gaussians import Gaussians


def keep_opaque(gaussians: Gaussians, least: float) -> Gaussians:
    """The Gaussians whose opacity is at least ``least``."""
    return gaussians[gaussians.opacities >= least]


def keep_small(gaussians: Gaussians, largest: float) -> Gaussians:
    """The Gaussians whose standard deviation along every axis is at most ``largest`` world units."""
    return gaussians[gaussians.scales.amax(dim=-1) <= largest]


def crop(gaussians: Gaussians, low: Sequence[float], high: Sequence[float]) -> Gaussians:
    """The Gaussians whose centre lies in the box between two corners (x, y, z) in world units."""
    given = [torch.as_tensor(corner, dtype=torch.float64) for corner in (low, high)]
    corners = [(corner - gaussians.origin).to(gaussians.means) for corner in given]
    inside = (gaussians.means >= corners[0]) & (gaussians.means <= corners[1])
    return gaussians[inside.all(dim=-1)]


def importance(gaussians: Gaussians) -> torch.Tensor:
    """(N,) opacity times the area of the ellipse of the two longer axes: a measure of the visible contribution."""
    longer = gaussians.scales.double().topk(2, dim=-1).values
    return gaussians.opacities.double() * longer.prod(dim=-1)


def keep_most_important(gaussians: Gaussians, count: int) -> Gaussians:
    """The ``count`` Gaussians with the largest ``importance``; all of them if there are fewer."""
    if len(gaussians) <= count:
        return gaussians
    chosen = torch.topk(importance(gaussians), count).indices
    return gaussians[chosen.sort().values]


def lower_sh_degree(gaussians: Gaussians, degree: int) -> Gaussians:
    """The same Gaussians without SH coefficients above ``degree``."""
    return replace(gaussians, sh=gaussians.sh[..., : (degree + 1) ** 2, :])
