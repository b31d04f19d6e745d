"""Mini-batch cross-attention: each layer works on a share of both token sets (paper section 3.3, Figure 4).

The paper leaves open which tokens. Here the share is a lattice over the whole image, so every layer sees all of
it coarsely, and the lattice moves from layer to layer, so that two ("half") or four ("quarter") consecutive
layers visit every token once. The image tokens of a layer are those under its viewpoint tokens.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ilrm.model.config import MiniBatch

# Order in which the four cells of a 2x2 block are visited: diagonal neighbours first, they share least.
_QUARTER_PHASES = ((0, 0), (1, 1), (0, 1), (1, 0))


def subset(
    kind: MiniBatch, layer: int, rows: int, columns: int, factor: int, *, training: bool, device: torch.device
) -> tuple[Tensor, Tensor] | None:
    """Indices of the viewpoint tokens (of rows * columns) and image tokens that a layer works on; None means all.

    Args:
        rows, columns: patches of the viewpoint grid; the image has ``factor`` times as many each way.
        training: "random" draws a quarter anew at every call in training (from torch's global generator);
            otherwise each layer has its own fixed draw, so that the same input gives the same output.
    """
    if kind == "none":
        return None
    if kind == "random" and training:
        return _draw(kind, layer, rows, columns, factor, None, device)
    period = {"half": 2, "quarter": 4}.get(kind)
    return _kept(kind, layer if period is None else layer % period, rows, columns, factor, device)


@lru_cache(maxsize=256)
def _kept(
    kind: MiniBatch, layer: int, rows: int, columns: int, factor: int, device: torch.device
) -> tuple[Tensor, Tensor] | None:
    """What does not change from call to call stays on the device: copying it there makes the host wait."""
    with torch.inference_mode(mode=False):  # tensors of inference could not be used in training
        return _draw(kind, layer, rows, columns, factor, layer, device)


def _draw(
    kind: MiniBatch, layer: int, rows: int, columns: int, factor: int, seed: int | None, device: torch.device
) -> tuple[Tensor, Tensor] | None:
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    if kind == "half":
        chosen = (row + column) % 2 == layer % 2
    elif kind == "quarter":
        phase = _QUARTER_PHASES[layer % 4]
        chosen = (row % 2 == phase[0]) & (column % 2 == phase[1])
    else:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        order = torch.randperm(rows * columns, generator=generator)
        chosen = torch.zeros(rows * columns, dtype=torch.bool)
        chosen[order[: max(1, rows * columns // 4)]] = True
        chosen = chosen.reshape(rows, columns)
    if not chosen.any():  # a grid of one row or column has no token on this lattice
        return None
    image = chosen.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
    return chosen.flatten().nonzero()[:, 0].to(device), image.flatten().nonzero()[:, 0].to(device)
