"""A scene: photos with cameras, and optionally depth, masks and points."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ilrm.core.cameras import Cameras, Similarity
from ilrm.core.errors import SceneError

if TYPE_CHECKING:
    from typing_extensions import Self

Index = int | slice | Sequence[int]


class _LazyViews:
    """V arrays of one size that are read on access.

    Args:
        readers: one function per view.
        height, width: the size that every reader returns.
        device: where the arrays are moved after reading.
    """

    dtype: torch.dtype
    channels: tuple[int, ...]

    def __init__(
        self,
        readers: Sequence[Callable[[], Tensor]],
        height: int,
        width: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.readers = tuple(readers)
        self.height, self.width = height, width
        self.device = torch.device(device)

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
            return array.to(self.device)
        views = range(len(self))[index] if isinstance(index, slice) else index
        found = [self._read(int(i)) for i in views]
        if found:
            return torch.stack(found)
        return torch.empty((0, *self.shape[1:]), dtype=self.dtype, device=self.device)

    def select(self, views: Sequence[int]) -> Self:
        """Some of the views, without reading them."""
        return type(self)([self.readers[i] for i in views], self.height, self.width, self.device)

    def to(self, device: torch.device | str) -> Self:
        """The same views, without reading them; they are moved to another device after reading."""
        return type(self)(self.readers, self.height, self.width, device)


class LazyImages(_LazyViews):
    """V images of one size that are decoded on access.

    Indexing by view works as for a (V, H, W, 3) float tensor in [0, 1]: an integer gives (H, W, 3), a slice or a list
    of integers gives (v, H, W, 3). Decoded images are not cached, so memory does not grow with V. Readers return uint8
    (H, W, 3).
    """

    dtype, channels = torch.uint8, (3,)

    def __getitem__(self, index: Index) -> Tensor:
        return self._read(index).float() / 255.0


class LazyMasks(_LazyViews):
    """As ``LazyImages``, for a (V, H, W) bool tensor; readers return bool (H, W)."""

    dtype, channels = torch.bool, ()

    def __getitem__(self, index: Index) -> Tensor:
        return self._read(index)


Photo = str | Path
Array = Tensor | NDArray[Any]
PhotoOpener = Callable[[Sequence[Path], Cameras], LazyImages]

# The function that opens photos. It is set when ``ilrm.scenes`` is imported, because ``core`` must not import it.
_photo_openers: list[PhotoOpener] = []


def open_photos_with(opener: PhotoOpener) -> None:
    """Set the function by which ``Scene.from_images`` opens paths: from V paths and V cameras to V images."""
    _photo_openers[:] = [opener]


@dataclass(frozen=True, eq=False)
class Scene:
    """V posed images of one size, in their own world frame.

    Scenes read from files have cameras and points in float64, so that two files that differ by a similarity stay the
    same scene. Other scenes may have float32.

    Attributes:
        images: (V, H, W, 3) float in [0, 1]; a tensor, or ``LazyImages`` that decode on access.
        cameras: V cameras of the same size.
        names: V file names or labels, unique.
        depth: optional (V, H, W) z-depth in world units, 0 where unknown.
        mask: optional (V, H, W) bool, True where a pixel counts; other pixels are ignored by losses and scores.
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

    @staticmethod
    def from_images(
        images: Sequence[Photo] | Sequence[Array] | Array, cameras: Cameras, names: Sequence[str] | None = None
    ) -> Scene:
        """A scene of given photos with known cameras.

        Args:
            images: V paths of image files, or V images (H, W, 3) of the cameras' size: one array or tensor
                (V, H, W, 3), or a sequence of V; uint8, or float in [0, 1]. Files are decoded when they are used, and
                rotated by their EXIF orientation unless only the stored pixels have the cameras' shape. Files of
                another resolution are resized to the cameras' size, if width / height is the same within 1 %.
            cameras: V cameras of pinhole images without distortion.
            names: V unique labels; by default the names of the files, else "view 0", "view 1", ...

        Raises:
            SceneError: images of another shape or number, or a file that is not an image.
            CameraError: an invalid pose or intrinsic.
        """
        if isinstance(images, str | Path):
            raise SceneError(
                f"Scene.from_images was given the one path {images}.",
                expected="a sequence of paths, one per camera",
                fix="read a folder or a camera file with load_scene",
            )
        if cameras.batch_shape:
            raise SceneError(
                f"Scene.from_images was given cameras with batch dimensions {tuple(cameras.batch_shape)}.",
                expected="the V cameras of one scene",
            )
        given = images if isinstance(images, Tensor | np.ndarray) else list(images)
        if len(given) != len(cameras):
            raise SceneError(
                f"{len(given)} images and {len(cameras)} cameras were given.", expected="one image per camera"
            )
        files = [Path(image) for image in given if isinstance(image, str | Path)]
        if files and len(files) != len(given):
            raise SceneError("Paths and arrays were given in one sequence.", expected="either paths or arrays")
        labels = tuple(names) if names is not None else _names(files, len(cameras))
        if len(labels) != len(cameras) or len({*labels}) != len(labels):
            raise SceneError(f"{len(labels)} names were given for {len(cameras)} images.", expected="V unique names")
        cameras.check(labels)
        if not files:
            return Scene(_as_images(given, cameras), cameras, labels)
        if not _photo_openers:
            raise SceneError("Scene.from_images was given paths.", fix="import ilrm.scenes first, which opens them")
        return Scene(_photo_openers[0](files, cameras), cameras, labels)

    def __len__(self) -> int:
        return len(self.cameras)

    def to(self, device: torch.device | str) -> Scene:
        """The same scene with all tensors on another device; lazy images stay lazy."""
        known = {
            name: value.to(device)
            for name in ("images", "cameras", "depth", "points", "points_rgb", "mask")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **known)

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
        """(v, H, W) bool of these views; None if the scene has no mask."""
        return None if self.mask is None else self.mask[list(views)]

    def loaded(self, most_bytes: int | None = None) -> Scene:
        """The scene with all images and masks decoded in memory, for repeated use.

        Args:
            most_bytes: a scene that needs more memory is returned unchanged.
        """
        pixels = len(self) * self.cameras.height * self.cameras.width
        if most_bytes is not None and (12 + (self.mask is not None)) * pixels > most_bytes:
            return self
        return replace(self, images=self.images[:], mask=None if self.mask is None else self.mask[:])

    def transform(self, similarity: Similarity) -> Scene:
        """The same scene in another world frame: cameras, depth and points are transformed."""
        return replace(
            self,
            cameras=self.cameras.transform(similarity),
            depth=None if self.depth is None else self.depth * similarity.scale,
            points=None if self.points is None else similarity.apply_points(self.points),
        )


def _names(files: Sequence[Path], count: int) -> tuple[str, ...]:
    """File names, or paths if those are not unique; "view 0", "view 1", ... for images without files."""
    short = tuple(file.name for file in files)
    if not files:
        return tuple(f"view {view}" for view in range(count))
    return short if len({*short}) == len(short) else tuple(str(file) for file in files)


def _as_images(given: Iterable[Any], cameras: Cameras) -> Tensor:
    """(V, H, W, 3) float in [0, 1] of images of the cameras' size. Raises SceneError."""
    size = (cameras.height, cameras.width, 3)
    views = [image if isinstance(image, Tensor) else torch.from_numpy(np.array(image)) for image in given]
    for view, image in enumerate(views):
        if tuple(image.shape) != size:
            channels_first = image.ndim == 3 and image.shape[0] == 3
            raise SceneError(
                f"Image {view} has the shape {tuple(image.shape)}.",
                expected=f"{size}, the size of the cameras",
                fix="permute the channels to the end" if channels_first else "resize the image, or Cameras.resize",
            )
        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise SceneError(f"Image {view} is of {image.dtype}.", expected="uint8, or float in [0, 1]")
    if not views:
        return torch.zeros(0, *size)
    images = torch.stack([image.float() / 255 if image.dtype == torch.uint8 else image.float() for image in views])
    least, most = images.amin().item(), images.amax().item()
    if not (least >= 0 and most <= 1):  # also true for NaN
        raise SceneError(
            f"The images have values from {least:.4g} to {most:.4g}.",
            expected="0 to 1 in floating point, or uint8",
            fix="divide by the largest possible value, or clamp",
        )
    return images
