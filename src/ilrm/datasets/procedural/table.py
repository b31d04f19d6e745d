"""The parameters of all surfaces in one matrix, so that one gather fetches all parameters for a ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Number of values per column. Lengths before "texture" are in world units, those after it in texture units.
COLUMNS: dict[str, int] = {
    "frame": 9,  # world offset -> unit shape, row-major
    "origin": 3,
    "shape": 3,  # one-hot ellipsoid / box / cylinder; zeros on the backdrop
    "normal": 3,  # constant normal of the backdrop
    "texture": 12,  # affine world -> texture, row-major 3x4
    "palette": 12,  # four linear RGB colours
    "noise": 2,  # frequency of the first octave, gain per octave
    "ramp": 2,  # contrast of the blend between the first two colours, and its bias
    "patch": 3,  # threshold, contrast and strength of the blend to the third colour
    "mix": 4,  # weights of noise, stripes, checkers and random cells in the blend
    "cell": 4,  # cells per texture unit, warp by noise, row shift, use of the third axis
    "line": 2,  # half width of the lines between cells, strength of the fourth colour
    "dot": 2,  # radius of dots in the cells, strength of the fourth colour
    "detail": 4,  # fine grain, coarse stain, tint per cell, bump of the normal
    "gloss": 2,  # strength and exponent of the highlight
    "glow": 1,  # share of emitted light
}
WIDTH = sum(COLUMNS.values())
Row = Mapping[str, object]


def place(name: str) -> slice:
    """Where a column stands in a row."""
    names = list(COLUMNS)
    start = sum(COLUMNS[before] for before in names[: names.index(name)])
    return slice(start, start + COLUMNS[name])


def pack(row: Row) -> NDArray[np.float32]:
    """(WIDTH,) values of one surface; every column must be given."""
    assert set(row) == set(COLUMNS), set(row) ^ set(COLUMNS)
    parts = [np.asarray(row[name], dtype=np.float32).reshape(size) for name, size in COLUMNS.items()]
    return np.concatenate(parts)


@dataclass(frozen=True, eq=False)
class Fetched:
    """The columns (WIDTH, R) of the surfaces that R rays hit."""

    columns: Tensor

    @staticmethod
    def fetch(table: Tensor, index: Tensor) -> Fetched:
        """Look up surfaces index (N, R) in table (N, S, WIDTH); the result runs over N * R rays."""
        offset = torch.arange(table.shape[0], device=index.device)[:, None] * table.shape[1]
        columns = table.flatten(0, 1).T.contiguous()
        return Fetched(columns.index_select(1, (index + offset).flatten()))

    def __getitem__(self, name: str) -> Tensor:
        """(size, R) values of a column."""
        return self.columns[place(name)]
