"""Which sparse points lie next to each other, and which lie astray. Shape suffixes: P points, k neighbours of each."""

from __future__ import annotations

import torch
from torch import Tensor

# Distances that are computed at a time.
_MOST_PAIRS = 1 << 24
# Neighbours whose mean distance says how densely points lie, and those that are asked how densely they do.
_NEAREST, _ASKED = 3, 8
# A point is astray if it is so much farther from its neighbours than these are from theirs.
_FARTHER = 4.0


def nearest_others(xyz: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Distances (P, k) of the points (P, 3) nearest to each, in order, and which they are; k is ``count`` or P - 1."""
    distances, indices = [], []
    for first in range(0, len(xyz), step := max(1, _MOST_PAIRS // max(1, len(xyz)))):
        part = xyz[first : first + step]
        # By differences: products of large coordinates would cancel.
        apart = torch.cdist(part, xyz, compute_mode="donot_use_mm_for_euclid_dist")
        apart.diagonal(first).fill_(torch.inf)
        found = apart.topk(min(count, len(xyz) - 1), largest=False)
        distances.append(found.values)
        indices.append(found.indices)
    return torch.cat(distances), torch.cat(indices)


def spacing(distances: Tensor) -> Tensor:
    """(P,) how far apart points lie around each one, from the distances of ``nearest_others``."""
    return distances[:, :_NEAREST].mean(1)


def is_astray(xyz: Tensor) -> Tensor:
    """(P,) bool: points that stand alone beside dense ones, as wrong ones do in free space; of few points, none."""
    if len(xyz) <= _ASKED:
        return torch.zeros(len(xyz), dtype=torch.bool, device=xyz.device)
    distances, others = nearest_others(xyz, _ASKED)
    apart = spacing(distances)
    return apart > _FARTHER * apart[others].median(1).values
