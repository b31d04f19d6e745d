"""Worlds as batched tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ilrm.datasets.procedural import photographic, photos, table
from ilrm.datasets.procedural.casting import BACKDROP, Geometry
from ilrm.datasets.procedural.layout import MOST, World
from ilrm.datasets.procedural.photos import Photos
from ilrm.datasets.procedural.textures import Tables, tables

# Padding: tiny primitives far outside every world, where a world has fewer primitives than others in the batch.
_ABSENT_CENTRE, _ABSENT_HALF = 3e4, 1e-2
_OF_PRIMITIVES = ("to_local", "centre", "thickness")


@dataclass(frozen=True, eq=False)
class PackedWorld:
    """A world as a few float32 arrays, at most 30 KB that travel well between processes.

    Attributes:
        counts: how many ellipsoids, boxes and cylinders there are.
        arrays: by name what ``Geometry`` and ``Worlds`` hold, of one world and without padding; "rows" (P, WIDTH) are
            the surfaces of the primitives, "backdrop" (BACKDROP, WIDTH) the others. "photos" are the rows of photos of
            both in this order; left out in the plain style.
    """

    counts: tuple[int, int, int]
    arrays: dict[str, NDArray[np.float32]]

    @staticmethod
    def pack(world: World) -> PackedWorld:
        """The arrays of a world."""
        of_shape = [sum(p.shape == shape for p in world.primitives) for shape in range(3)]
        values = {
            "to_local": np.array([(p.axes / p.half).T for p in world.primitives]).reshape(-1, 3, 3),
            "centre": np.array([p.centre for p in world.primitives]).reshape(-1, 3),
            "thickness": np.array([np.median(p.half) for p in world.primitives]),
            **{"rows": world.rows, "backdrop": world.backdrop, "lights": world.lights, "ambient": world.ambient},
            **{"room": world.room, "room_centre": world.room_centre, "dome": world.dome, "ground": world.ground},
        }
        if world.laid is not None:
            values["photos"] = world.laid
        arrays = {name: np.asarray(value, dtype=np.float32) for name, value in values.items()}
        return PackedWorld((of_shape[0], of_shape[1], of_shape[2]), arrays)

    def padded(self, counts: tuple[int, int, int]) -> dict[str, NDArray[np.float32]]:
        """The arrays with so many primitives of each shape, and all surfaces in one."""
        total, present_in_all = sum(counts), sum(self.counts)
        shown = self.arrays.get("photos", np.zeros((present_in_all + BACKDROP, photos.WIDTH), np.float32))
        given = {**self.arrays, "photos": shown}
        absent = {
            "to_local": np.tile(np.eye(3, dtype=np.float32) / np.float32(_ABSENT_HALF), (total, 1, 1)),
            "centre": np.full((total, 3), _ABSENT_CENTRE, np.float32),
            "thickness": np.full(total, _ABSENT_HALF, np.float32),
            "rows": np.zeros((total, table.WIDTH), np.float32),
            "photos": np.zeros((total, photos.WIDTH), np.float32),
        }
        first = slot = 0
        for present, room in zip(self.counts, counts, strict=True):
            for name, values in absent.items():
                values[slot : slot + present] = given[name][first : first + present]
            first, slot = first + present, slot + room
        surfaces = np.concatenate([absent.pop("rows"), self.arrays["backdrop"]])
        laid = np.concatenate([absent.pop("photos"), shown[present_in_all:]])
        return {**self.arrays, **absent, "surfaces": surfaces, "laid": laid}


@dataclass(frozen=True, eq=False)
class Worlds:
    """N worlds on one device, with the primitives of each shape padded to the same number.

    Attributes:
        geometry: the surfaces.
        surfaces: (N, P + BACKDROP, table.WIDTH).
        lights: (N, 2, 7) position, colour, radius.
        ambient: (N, 2, 3) light from above and from below.
        tables: what the textures of all worlds are made of.
        laid: (N, P + BACKDROP, photos.WIDTH) photos on the surfaces; None where no world has any.
        photos: the photos themselves, where there are any.
    """

    geometry: Geometry
    surfaces: Tensor
    lights: Tensor
    ambient: Tensor
    tables: Tables
    laid: Tensor | None = None
    photos: Photos | None = None

    def select(self, index: Tensor) -> Worlds:
        """The worlds at ``index`` (N',)."""
        chosen = {name: getattr(self, name)[index] for name in ("surfaces", "lights", "ambient")}
        laid = None if self.laid is None else self.laid[index]
        return Worlds(self.geometry.select(index), tables=self.tables, laid=laid, photos=self.photos, **chosen)

    @staticmethod
    def stack(
        worlds: Sequence[PackedWorld], device: torch.device, counts: tuple[int, int, int] | None = None
    ) -> Worlds:
        """Tensors of several worlds.

        Args:
            counts: primitives of each shape. By default as many as one of the worlds has; on a GPU as many as any world
                can have, because what is compiled for one number would be compiled again for the next.
        """
        has_photos = any("photos" in world.arrays for world in worlds)
        if counts is None and device.type == "cuda":
            counts = photographic.MOST if has_photos else MOST
        if counts is None:
            most = [max(1, *(world.counts[shape] for world in worlds)) for shape in range(3)]
            counts = most[0], most[1], most[2]
        arrays = [world.padded(counts) for world in worlds]

        def tensor(name: str) -> Tensor:
            return torch.from_numpy(np.stack([a[name] for a in arrays])).to(device)

        names = (*_OF_PRIMITIVES, "room", "room_centre", "dome", "ground")
        geometry = Geometry(counts=counts, **{name: tensor(name) for name in names})
        others = {name: tensor(name) for name in ("surfaces", "lights", "ambient")}
        laid, shown = (tensor("laid"), photos.load(device)) if has_photos else (None, None)
        return Worlds(geometry, tables=tables(device), laid=laid, photos=shown, **others)
