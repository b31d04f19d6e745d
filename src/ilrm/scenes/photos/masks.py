"""Masks: which pixels of a photo count. The others are ignored by every loss and every score.

There are three sources: an image beside the photo whose black pixels do not count (nerfstudio's "mask_path", COLMAP's
``masks/``), instant-ngp's ``dynamic_mask_NAME.png``, in which only the black pixels count, and the photo's own
transparency. What transparency means depends on the capture. Rendered objects (Blender, opencv_cameras.json, chunks)
are in front of an empty, white background; that the background is empty is known, so it counts. In photographs (COLMAP,
transforms with a focal length) somebody has cut out what should not count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ilrm.core.errors import SceneError, warn
from ilrm.files import paths
from ilrm.files.image_files import check_budget
from ilrm.scenes.framing import Framing
from ilrm.scenes.photos.images import Photo, open_photo, same_aspect, turn_upright

MASK_FOLDER = "masks"


@dataclass(frozen=True)
class MaskFile:
    """An image that says which pixels of a photo count: all but the black ones, or, if ``removes``, only those."""

    path: Path
    removes: bool = False


@dataclass(frozen=True, eq=False)
class Mask:
    """A mask whose header has been read.

    Attributes:
        image: the mask; for ``kind`` "opaque" the photo itself.
        kind: which of its pixels count: those that are not black, the black ones, or the opaque ones.
        turn: the EXIF orientation to apply to match the photo's pixels.
    """

    image: Photo
    kind: Literal["not black", "black", "opaque"]
    turn: int = 1

    def decode(self, reduce: int) -> np.ndarray:
        """Decode to uint8 (h, w, 1): 255 where all pixels of a block of reduce x reduce count. Raises SceneError."""
        if self.kind == "opaque":
            return self.image.decode_opaque(reduce)
        marked = self.image.decode_marked(reduce)
        return turn_upright(marked if self.kind == "not black" else 255 - marked, self.turn)


def listed_mask(folder: Path, text: str) -> MaskFile:
    """The mask that a camera file in that folder lists, with / or \\ as separator."""
    path = folder / text
    return MaskFile(path if paths.is_file(path) else folder / text.replace("\\", "/"))


def dynamic_mask(photo: Path) -> tuple[MaskFile, ...]:
    """instant-ngp's mask of moving objects, if there is one beside the photo."""
    path = photo.with_name(f"dynamic_mask_{photo.stem}.png")
    return (MaskFile(path, removes=True),) if paths.is_file(path) else ()


def colmap_mask(images: Path, name: str) -> tuple[MaskFile, ...]:
    """The mask of a photo in a COLMAP project, if there is one.

    It is masks/NAME.png beside or in the folder of photos; NAME may include the photo's suffix, as in COLMAP, or not.
    """
    for folder in (images.parent / MASK_FOLDER, images / MASK_FOLDER):
        for file in (folder / f"{name}.png", (folder / name).with_suffix(".png")):
            if paths.is_file(file):
                return (MaskFile(file),)
    return ()


def open_masks(
    photos: Sequence[Photo], files: Sequence[Sequence[MaskFile]], cut: Sequence[bool], max_pixels: int | None
) -> list[list[Mask]]:
    """The masks of each photo. Unusable ones are left out with one warning.

    Args:
        files: the mask files of each photo.
        cut: for each photo, True if its transparent pixels do not count.
    """
    masks, problems = [], []
    for photo, listed, transparent in zip(photos, files, cut, strict=True):
        opened = [Mask(photo, "opaque")] if transparent and photo.header.transparent else []
        for file in listed:
            try:
                opened.append(_open(file, photo, max_pixels))
            except SceneError as error:
                problems.append(error.problem)
        masks.append(opened)
    if problems:
        total = sum(len(listed) for listed in files)
        warn(f"{len(problems)} of {total} masks are left out: {problems[0]}")
    return masks


def _open(file: MaskFile, photo: Photo, max_pixels: int | None) -> Mask:
    image = open_photo(file.path, photo.size)
    if max_pixels is not None:
        check_budget(image.label, image.header.cost, max_pixels)
    kind = "black" if file.removes else "not black"
    if same_aspect(image.size, photo.size):
        return Mask(image, kind)
    if photo.turned and same_aspect(image.size, photo.header.size):  # drawn on the stored pixels
        return Mask(image, kind, photo.header.orientation)
    raise SceneError(
        f"{file.path} is {image.width}x{image.height}, but its image is {photo.width}x{photo.height}.",
        expected="a mask of the image's shape",
    )


def read_mask(masks: Sequence[Mask], framing: Framing) -> Tensor:
    """The view's mask (height, width) bool: True where every contributing photo pixel counts in all masks.

    Raises:
        SceneError: a mask that cannot be decoded.
    """
    width, height = framing.size
    counts = torch.ones(height, width, dtype=torch.bool)
    for mask in masks:
        finer = framing.reduction * mask.image.width / framing.lens.width
        counts &= framing.coverage(mask.decode(2 ** math.floor(math.log2(max(finer, 1.0)))))
    return counts
