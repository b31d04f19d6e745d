"""A scene: photos with cameras, and what else is known about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ilrm.core.cameras import Cameras, Similarity
from ilrm.core.errors import SceneError

if TYPE_CHECKING:
    from typing_extensions import Self

Index = int | slice | Sequence[int]


class _LazyViews:
    """V arrays of one size that are read when they are asked for.

    Args:
        readers: one function a view.
        height, width: the size that every reader returns.
    """

    dtype: torch.dtype
    channels: tuple[int, ...]

    def __init__(self, readers: Sequence[Callable[[], Tensor]], height: int, width: int) -> None:
        self.readers = tuple(readers)
        self.height, self.width = height, width

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.readers), self.height, self.width, *self.channels))

    def __len__(self) -> int:
        return len(self.readers)

    def _read(self, index: Index) -> Tensor:
        if isinstance(index, int):
            array = self.readers[index]()
            assert array.dtype == self.dtype, array.dtype
            assert tuple(array.shape) == (self.height, self.width, *self.channels), array.shape
            return array
        views = range(len(self))[index] if isinstance(index, slice) else index
        found = [self._read(int(i)) for i in views]
        return torch.stack(found) if found else torch.empty((0, *self.shape[1:]), dtype=self.dtype)

    def select(self, views: Sequence[int]) -> Self:
        """The same for some of the views, still unread."""
        return type(self)([self.readers[i] for i in views], self.height, self.width)


class LazyImages(_LazyViews):
    """V images of one size that are decoded when they are asked for.

    Behaves like a (V, H, W, 3) float tensor in [0, 1] under indexing by view: an integer gives (H, W, 3), a
    slice or list of integers gives (v, H, W, 3). Nothing is kept, so memory does not grow with V. Readers return
    uint8 (H, W, 3).
    """

    dtype, channels = torch.uint8, (3,)

    def __getitem__(self, index: Index) -> Tensor:
        return self._read(index).float() / 255.0


class LazyMasks(_LazyViews):
    """As ``LazyImages``, like a (V, H, W) bool tensor; readers return bool (H, W)."""

    dtype, channels = torch.bool, ()

    def __getitem__(self, index: Index) -> Tensor:
        return self._read(index)


@dataclass(frozen=True, eq=False)
class Scene:
    """V posed images of one size, in their own world frame.

    Scenes that come from files hold cameras and points in float64, as precise as the file, so that two worlds that
    differ by a similarity stay the same scene; made ones may hold float32.

    Attributes:
        images: (V, H, W, 3) float in [0, 1]; a tensor, or ``LazyImages`` that decode on access.
        cameras: V cameras of the same size.
        names: V file names or labels, unique.
        depth: optional (V, H, W) z-depth in world units, 0 where unknown.
        mask: optional (V, H, W) bool, True where a pixel counts: the others are in no loss and in no score.
        points: optional (P, 3) known surface points in the world.
        points_rgb: optional (P, 3) their colours in [0, 1].
    """

    images: Tensor | LazyImages
    cameras: Cameras
    names: tuple[str, ...]
    depth: Tensor | None = None
    points: Tensor | None = None
    points_rgb: Tensor | None = None
    mask: Tensor | LazyMasks | None = None

    def __post_init__(self) -> None:
        size = (len(self.cameras), self.cameras.height, self.cameras.width)
        if tuple(self.images.shape) != (*size, 3) or len(self.names) != size[0]:
            raise SceneError(
                f"A scene was given images {tuple(self.images.shape)}, {len(self.cameras)} cameras of "
                f"{self.cameras.width}x{self.cameras.height} and {len(self.names)} names.",
                expected="images (V, H, W, 3) with V cameras of that size and V names",
            )
        if self.depth is not None and tuple(self.depth.shape) != size:
            raise SceneError(f"A scene was given depth {tuple(self.depth.shape)}.", expected=f"{size}")
        if self.mask is not None and (tuple(self.mask.shape) != size or self.mask.dtype != torch.bool):
            given = f"{tuple(self.mask.shape)} of {self.mask.dtype}"
            raise SceneError(f"A scene was given a mask {given}.", expected=f"{size} of torch.bool")

    def __len__(self) -> int:
        return len(self.cameras)

    def select(self, views: Sequence[int]) -> Scene:
        """The scene with only these views, in this order; points are kept."""
        views = [int(i) for i in views]
        images = self.images.select(views) if isinstance(self.images, LazyImages) else self.images[views]
        return replace(
            self,
            images=images,
            cameras=self.cameras[views],
            names=tuple(self.names[i] for i in views),
            depth=None if self.depth is None else self.depth[views],
            mask=self.mask.select(views) if isinstance(self.mask, LazyMasks) else self.mask_of(views),
        )

    def mask_of(self, views: Sequence[int]) -> Tensor | None:
        """(v, H, W) bool of these views; None where all pixels of the scene count."""
        return None if self.mask is None else self.mask[list(views)]

    def loaded(self, most_bytes: int | None = None) -> Scene:
        """The scene with all its images and masks decoded in memory: what is looked at again and again should be.

        Args:
            most_bytes: a scene that needs more is returned as it is.
        """
        pixels = len(self) * self.cameras.height * self.cameras.width
        if most_bytes is not None and (12 + (self.mask is not None)) * pixels > most_bytes:
            return self
        return replace(self, images=self.images[:], mask=None if self.mask is None else self.mask[:])

    def transform(self, similarity: Similarity) -> Scene:
        """The same scene in another world frame: cameras, depth and points move along."""
        return replace(
            self,
            cameras=self.cameras.transform(similarity),
            depth=None if self.depth is None else self.depth * similarity.scale,
            points=None if self.points is None else similarity.apply_points(self.points),
        )
