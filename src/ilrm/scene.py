"""A scene: photos with cameras, and what else is known about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ilrm.cameras import Cameras, Similarity
from ilrm.errors import SceneError

Index = int | slice | Sequence[int]


class LazyImages:
    """V images of one size that are decoded when they are asked for.

    Behaves like a (V, H, W, 3) float tensor in [0, 1] under indexing by view: an integer gives (H, W, 3), a
    slice or list of integers gives (v, H, W, 3). Nothing is kept, so memory does not grow with V.

    Args:
        readers: one function a view, each returning uint8 (H, W, 3).
        height, width: the size that every reader returns.
    """

    def __init__(self, readers: Sequence[Callable[[], Tensor]], height: int, width: int) -> None:
        self.readers = tuple(readers)
        self.height, self.width = height, width

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.readers), self.height, self.width, 3))

    def __len__(self) -> int:
        return len(self.readers)

    def _read(self, view: int) -> Tensor:
        image = self.readers[view]()
        assert image.dtype == torch.uint8, image.dtype
        assert tuple(image.shape) == (self.height, self.width, 3), image.shape
        return image

    def __getitem__(self, index: Index) -> Tensor:
        if isinstance(index, int):
            return self._read(index).float() / 255.0
        views = range(len(self))[index] if isinstance(index, slice) else index
        return torch.stack([self._read(int(i)) for i in views]).float() / 255.0

    def select(self, views: Sequence[int]) -> LazyImages:
        """The same images for some of the views, still undecoded."""
        return LazyImages([self.readers[i] for i in views], self.height, self.width)


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
        points: optional (P, 3) known surface points in the world.
        points_rgb: optional (P, 3) their colours in [0, 1].
    """

    images: Tensor | LazyImages
    cameras: Cameras
    names: tuple[str, ...]
    depth: Tensor | None = None
    points: Tensor | None = None
    points_rgb: Tensor | None = None

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
        )

    def loaded(self) -> Scene:
        """The scene with all its images decoded in memory: what is looked at again and again should be."""
        return replace(self, images=self.images[:])

    def transform(self, similarity: Similarity) -> Scene:
        """The same scene in another world frame: cameras, depth and points move along."""
        return replace(
            self,
            cameras=self.cameras.transform(similarity),
            depth=None if self.depth is None else self.depth * similarity.scale,
            points=None if self.points is None else similarity.apply_points(self.points),
        )
