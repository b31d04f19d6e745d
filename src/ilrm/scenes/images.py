"""Photos on disk or in memory: the header at once, the pixels when asked for.

Every photo becomes uint8 RGB. Transparency is composited on white (as the Blender scenes need it), 16-bit
grey is scaled to 8 bits, and grey, palette and CMYK are converted. The EXIF orientation is applied unless the
camera file measured its intrinsics on the stored pixels (see ``open_photo``).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ilrm import paths
from ilrm.errors import SceneError
from ilrm.scenes.records import listing

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
# DL3DV lists full-size images and ships reduced ones beside them.
REDUCED_FOLDERS = ("images_2", "images_4", "images_8")
Size = tuple[int, int]

_ORIENTATION_TAG = 0x0112
# What brings the stored pixels upright (EXIF 2.3, tag 0x0112); 5 to 8 exchange width and height.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FIRST_TRANSPOSED_ORIENTATION = 5
# Relative difference below which two aspect ratios are the same photo at another resolution.
SAME_ASPECT = 0.01


@dataclass(frozen=True)
class Photo:
    """One image that is not decoded yet.

    Attributes:
        label: the file, for messages.
        width, height: size in pixels of what ``decode`` returns.
        decode: reads the pixels, uint8 (height, width, 3).
    """

    label: str
    width: int
    height: int
    decode: Callable[[], np.ndarray]


def find_images(listed: Sequence[Path], source: Path, images: str | None = None) -> list[Path]:
    """The files that a camera file means: as listed, or with the suffix it left out, or a reduced copy of it.

    Args:
        listed: where the file says they are.
        source: the file that lists them.
        images: the folder of reduced copies to look into first, one of ``REDUCED_FOLDERS``.

    Raises:
        SceneError: some exist in none of these forms; the message lists them.
        AccessError: a folder on the way is closed.
    """
    found = [next(filter(paths.is_file, image_candidates(path, images)), None) for path in listed]
    missing = [path for path, file in zip(listed, found, strict=True) if file is None]
    if missing:
        raise SceneError(
            f"{len(missing)} of the {len(listed)} images of {source} do not exist: {listing(missing)}.",
            expected="every listed image, relative to the file that lists it",
            fix="restore the images, or remove their frames from the file",
        )
    return [file for file in found if file is not None]


def image_candidates(path: Path, images: str | None = None) -> Iterator[Path]:
    """Where a listed image may lie: as listed, with a suffix added, in a sibling folder of reduced copies.

    The copies in the folder ``images`` come first if one is named.
    """
    if images is not None:
        yield from _reduced_copies(path, (images,))
    yield path
    if path.name and path.suffix.lower() not in SUFFIXES:
        for suffix in SUFFIXES:
            yield path.with_name(path.name + suffix)
    yield from _reduced_copies(path, REDUCED_FOLDERS)


def _reduced_copies(path: Path, names: Sequence[str]) -> Iterator[Path]:
    for folder in path.parents:
        if folder.name == "images":
            for name in names:
                yield folder.with_name(name) / path.relative_to(folder)
            return


def same_aspect(a: Size, b: Size) -> bool:
    """Whether two (width, height) can be one photo at two resolutions."""
    return abs(a[0] * b[1] / (a[1] * b[0]) - 1.0) < SAME_ASPECT


def open_photo(path: Path, declared: Size | None = None, *, stored_pixels: bool = False) -> Photo:
    """A photo whose header has been read.

    Args:
        path: an image file.
        declared: (width, height) that the intrinsics refer to. Where it has the shape of the stored pixels but
            not that of the upright photo, the intrinsics were measured before turning and nothing is turned.
        stored_pixels: whether to leave the photo as stored also where ``declared`` does not decide (COLMAP
            measures on stored pixels).

    Raises:
        SceneError: the file is missing, or is no image.
    """
    return _photo(str(path), lambda: Image.open(path), declared, stored_pixels)


def encoded_photo(data: Callable[[], bytes], label: str) -> Photo:
    """A photo out of encoded (JPEG, PNG) bytes, its pixels as stored."""
    return _photo(label, lambda: Image.open(io.BytesIO(data())), None, stored_pixels=True)


def _photo(label: str, opener: Callable[[], Image.Image], declared: Size | None, stored_pixels: bool) -> Photo:
    try:
        with opener() as image:
            stored = image.size
            # The base class's method: that of PNG files would decode the whole image to look behind it.
            orientation = Image.Image.getexif(image).get(_ORIENTATION_TAG, 1)
    except FileNotFoundError as error:
        raise SceneError(f"The image {label} does not exist.", fix="restore the file, or remove its frame") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SceneError(
            f"{label} cannot be opened as an image: {error}.",
            expected="a JPEG, PNG, WebP, TIFF or BMP file",
            fix="restore the file, or remove its frame",
        ) from error
    upright = _upright_size(stored, orientation)
    turn = _measured_upright(stored, upright, declared, stored_pixels)
    width, height = upright if turn else stored

    def decode() -> np.ndarray:
        try:
            with opener() as image:
                pixels = _rgb(image, label)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise SceneError(
                f"{label} cannot be decoded: {error}.",
                expected="a complete image file",
                fix="restore the file, or remove its frame",
            ) from error
        if turn and orientation in _TURNS:
            pixels = np.array(Image.fromarray(pixels).transpose(_TURNS[orientation]))
        if pixels.shape != (height, width, 3):
            raise SceneError(f"{label} changed its size while the scene was in use.", fix="load the scene again")
        return pixels

    return Photo(label, width, height, decode)


def _upright_size(stored: Size, orientation: int) -> Size:
    return (stored[1], stored[0]) if _FIRST_TRANSPOSED_ORIENTATION <= orientation <= 8 else stored


def _measured_upright(stored: Size, upright: Size, declared: Size | None, stored_pixels: bool) -> bool:
    if declared is not None and same_aspect(declared, stored) != same_aspect(declared, upright):
        return same_aspect(declared, upright)
    return not stored_pixels


def _rgb(image: Image.Image, label: str) -> np.ndarray:
    """uint8 (H, W, 3) of an opened image of any mode."""
    if image.mode.startswith("I"):  # 16-bit grey; Pillow gives PNGs as "I;16" or, in older versions, as "I"
        grey = np.asarray(image).astype(np.float64)
        if grey.min() < 0 or grey.max() > 65535:
            raise SceneError(f"{label} holds 32-bit integers.", expected="an 8-bit or 16-bit image")
        return np.repeat(np.rint(grey / 257.0).astype(np.uint8)[..., None], 3, axis=-1)
    if image.mode == "F":
        raise SceneError(f"{label} holds floating-point values.", expected="an 8-bit or 16-bit image")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.array(image.convert("RGB"))
