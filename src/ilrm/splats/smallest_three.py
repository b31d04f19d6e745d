"""The smallest-three encoding of unit quaternions: the largest component is left out and recomputed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def split(quats: FloatArray) -> tuple[NDArray[np.intp], FloatArray]:
    """Index (N,) of the largest component and the others (N, 3), in [-sqrt(1/2), sqrt(1/2)].

    q and -q are the same rotation; the sign is the one that makes the largest component positive.
    """
    largest = np.abs(quats).argmax(axis=1)
    signs = np.where(np.take_along_axis(quats, largest[:, None], axis=1) < 0, -1.0, 1.0)
    return largest, (quats * signs)[_others(largest)].reshape(-1, 3)


def join(largest: NDArray[np.integer], others: FloatArray) -> FloatArray:
    """Unit quaternions (N, 4) from the results of ``split``."""
    quats = np.empty((len(others), 4))
    quats[_others(largest)] = others.reshape(-1)
    rest = np.sqrt(np.maximum(0.0, 1.0 - np.square(others).sum(axis=1)))
    np.put_along_axis(quats, largest[:, None], rest[:, None], axis=1)
    return quats / np.linalg.norm(quats, axis=1, keepdims=True)


def _others(largest: NDArray[np.integer]) -> NDArray[np.bool_]:
    return np.arange(4) != largest[:, None]
