"""Worlds as batched tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ilrm.datasets.procedural import photos, table
from ilrm.datasets.procedural.casting import Geometry
from ilrm.datasets.procedural.layout import World

# Padding: tiny primitives far outside every world, where a world has fewer primitives than others in the batch.
_ABSENT_CENTRE, _ABSENT_HALF = 3e4, 1e-2
_Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Worlds:
    """N worlds on one device, with the primitives of each shape padded to the same number.

    Attributes:
        geometry: the surfaces.
        surfaces: (N, P + BACKDROP, table.WIDTH).
        lights: (N, 2, 7) position, colour, radius.
        ambient: (N, 2, 3) light from above and from below.
        laid: (N, P + BACKDROP, photos.WIDTH); None where no world has any.
    """

    geometry: Geometry
    surfaces: Tensor
    lights: Tensor
    ambient: Tensor
    laid: Tensor | None = None

    def select(self, index: Tensor) -> Worlds:
        """The worlds at ``index`` (N',)."""
        laid = None if self.laid is None else self.laid[index]
        return Worlds(self.geometry.select(index), self.surfaces[index], self.lights[index], self.ambient[index], laid)

    @staticmethod
    def stack(worlds: Sequence[World], device: torch.device) -> Worlds:
        """Tensors of several worlds."""
        counts = tuple(max(1, *(sum(p.shape == k for p in w.primitives) for w in worlds)) for k in range(3))
        arrays = [_padded(world, counts) for world in worlds]

        def tensor(name: str) -> Tensor:
            return torch.from_numpy(np.stack([a[name] for a in arrays])).to(device)

        names = ("to_local", "centre", "thickness", "room", "room_centre", "dome", "ground")
        geometry = Geometry(counts=(counts[0], counts[1], counts[2]), **{name: tensor(name) for name in names})
        laid = tensor("laid") if any(world.laid is not None for world in worlds) else None
        return Worlds(geometry, tensor("surfaces"), tensor("lights"), tensor("ambient"), laid)


def _padded(world: World, counts: Sequence[int]) -> _Arrays:
    total = sum(counts)
    to_local = np.tile(np.eye(3) / _ABSENT_HALF, (total, 1, 1))
    centre, thickness = np.full((total, 3), _ABSENT_CENTRE), np.full(total, _ABSENT_HALF)
    rows = np.zeros((total, table.WIDTH))
    shown = np.zeros((total, photos.WIDTH))
    given = np.zeros((len(world.rows) + len(world.backdrop), photos.WIDTH)) if world.laid is None else world.laid
    filled = [0, counts[0], counts[0] + counts[1]]
    for primitive, row, photo in zip(world.primitives, world.rows, given[: len(world.rows)], strict=True):
        slot = filled[primitive.shape]
        filled[primitive.shape] += 1
        to_local[slot], centre[slot] = (primitive.axes / primitive.half).T, primitive.centre
        thickness[slot], rows[slot], shown[slot] = np.median(primitive.half), row, photo
    values = {
        **{"to_local": to_local, "centre": centre, "thickness": thickness},
        **{"surfaces": np.concatenate([rows, world.backdrop]), "lights": world.lights, "ambient": world.ambient},
        **{"room": world.room, "room_centre": world.room_centre, "dome": world.dome, "ground": world.ground},
        "laid": np.concatenate([shown, given[len(world.rows) :]]),
    }
    return {name: np.asarray(value, dtype=np.float32) for name, value in values.items()}
