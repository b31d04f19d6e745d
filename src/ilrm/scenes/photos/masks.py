"""Masks: which pixels of a photo count. Those that do not are left out of every loss and every score.

Three kinds of files say it: an image beside the photo whose black pixels do not count (nerfstudio's "mask_path",
COLMAP's ``masks/``), instant-ngp's ``dynamic_mask_NAME.png`` whose black pixels are the ones that do, and the photo's
own transparency. What transparency means depends on the capture: rendered objects (Blender, opencv_cameras.json,
chunks) stand before an empty, white background, which is knowledge and counts; in photographs (COLMAP, transforms
with a focal length) somebody has cut away what shall not count.
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
    """An image that says which pixels of a photo count: the black ones do not or, if ``removes``, only they do."""

    path: Path
    removes: bool = False


@dataclass(frozen=True, eq=False)
class Mask:
    """A mask whose header has been read.

    Attributes:
        image: the mask; for ``kind`` "opaque" the photo itself.
        kind: which of its pixels count: those that are not black, the black ones, or those that are opaque.
        turn: the orientation (EXIF) that brings it to the photo's pixels.
    """

    image: Photo
    kind: Literal["not black", "black", "opaque"]
    turn: int = 1

    def decode(self, reduce: int) -> np.ndarray:
        """uint8 (h, w, 1): 255 where all of the ``reduce`` squared pixels count. Raises SceneError."""
        if self.kind == "opaque":
            return self.image.decode_opaque(reduce)
        marked = self.image.decode_marked(reduce)
        return turn_upright(marked if self.kind == "not black" else 255 - marked, self.turn)


def listed_mask(folder: Path, text: str) -> MaskFile:
    """The mask that a camera file in that folder lists, with the slashes of any system."""
    path = folder / text
    return MaskFile(path if paths.is_file(path) else folder / text.replace("\\", "/"))


def dynamic_mask(photo: Path) -> tuple[MaskFile, ...]:
    """instant-ngp's mask of what moves in a photo, if it lies beside it."""
    path = photo.with_name(f"dynamic_mask_{photo.stem}.png")
    return (MaskFile(path, removes=True),) if paths.is_file(path) else ()


def colmap_mask(images: Path, name: str) -> tuple[MaskFile, ...]:
    """The mask of a photo of a COLMAP project, if there is one: masks/NAME.png beside the folder of the photos or in
    it, NAME with its suffix (as COLMAP has it) or without."""
    for folder in (images.parent / MASK_FOLDER, images / MASK_FOLDER):
        for file in (folder / f"{name}.png", (folder / name).with_suffix(".png")):
            if paths.is_file(file):
                return (MaskFile(file),)
    return ()


def open_masks(
    photos: Sequence[Photo], files: Sequence[Sequence[MaskFile]], cut: Sequence[bool], max_pixels: int | None
) -> list[list[Mask]]:
    """The masks of each photo. Those that cannot be used are left out, with one warning.

    Args:
        files: the mask files of each photo.
        cut: for each photo, whether its transparent pixels do not count.
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
    if photo.turned and same_aspect(image.size, photo.header.size):  # made for the stored pixels
        return Mask(image, kind, photo.header.orientation)
    raise SceneError(
        f"{file.path} is {image.width}x{image.height}, but its image is {photo.width}x{photo.height}.",
        expected="a mask of the image's shape",
    )


def read_mask(masks: Sequence[Mask], framing: Framing) -> Tensor:
    """bool (height, width): where everything that a pixel of the view is made of counts in all masks.

    Raises:
        SceneError: a mask that cannot be decoded.
    """
    width, height = framing.size
    counts = torch.ones(height, width, dtype=torch.bool)
    for mask in masks:
        finer = framing.reduction * mask.image.width / framing.lens.width
        counts &= framing.coverage(mask.decode(2 ** math.floor(math.log2(max(finer, 1.0)))))
    return counts
