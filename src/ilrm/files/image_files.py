"""The only place that opens image files: a few formats, a limit on pixels, and our own errors.

Pillow supports some forty formats and chooses by content, not by extension. One of them (EPS) runs another program.
Every image is therefore opened here, with a list of allowed formats.
"""

from __future__ import annotations

import io
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ilrm.core.checks import MAX_PIXELS
from ilrm.core.errors import IlrmError, SceneError
from ilrm.files import write_bytes

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "HEIF")
# How the names of photos and videos end.
PHOTO_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".heic", ".heif", ".avif", ".tif", ".tiff", ".bmp")
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")

Source = Path | bytes | Callable[[], bytes]

_ORIENTATION_TAG = 0x0112
# Decoders that need about twice the memory of the others: 16 to 20 bytes per pixel instead of 4 to 8.
_HEAVY_FORMATS = ("WEBP", "AVIF", "HEIF")
_HEAVY_BITS = 32  # a TIFF with more bits per pixel is decoded through a second buffer
_LONGEST_EXIF = 1 << 20
_pillow_limit = threading.Lock()


@dataclass(frozen=True)
class ImageHeader:
    """What is known of an image without decoding it.

    Attributes:
        size: (width, height) of the stored pixels.
        orientation: 1 to 8 as in EXIF (tag 0x0112): how to rotate or flip the stored pixels.
        cost: number of pixels, doubled for formats that need twice the memory; compared with ``max_pixels``.
        transparent: whether some pixels may be transparent.
    """

    size: tuple[int, int]
    orientation: int
    cost: int
    transparent: bool


@contextmanager
def open_image(source: Source, label: str = "", *, max_pixels: int | None = MAX_PIXELS) -> Iterator[Image.Image]:
    """Open an image without decoding it. Errors of the decoder are converted while it is open.

    Args:
        source: a path, the content of a file, or a function that returns the content.
        label: name in error messages; the path by default.
        max_pixels: refuse images of a larger ``cost`` before they are decoded; None if the image will not be decoded.

    Raises:
        SceneError: no such file, a format that is not in ``FORMATS``, a damaged file, or one above ``max_pixels``.
    """
    label = label or str(source)
    failed = "opened as an image"
    try:
        with _open(source) as image:
            if max_pixels is not None:
                check_budget(label, _cost(image), max_pixels)
            failed = "decoded"
            yield image
    except (IlrmError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise SceneError(f"The image {label} does not exist.", fix="restore the file, or remove its frame") from error
    except Exception as error:  # decoders raise anything on malformed files
        raise SceneError(
            f"{label} cannot be {failed}: {str(error) or type(error).__name__}.",
            expected="a complete JPEG, PNG, WebP, HEIC, AVIF, TIFF, BMP or GIF file",
            fix="restore the file, or remove its frame",
        ) from error


def check_budget(label: str, cost: int, max_pixels: int) -> None:
    """Raise SceneError if decoding an image costs more pixels than allowed."""
    if cost > max_pixels:
        raise SceneError(
            f"{label} would take the memory of {cost / 1e6:.0f} million pixels to decode.",
            expected=f"at most {max_pixels / 1e6:g} million (WebP, AVIF, progressive JPEG and 16-bit TIFF count twice)",
            fix=f"reduce the photo; or allow more with --max-pixels {cost} (in Python max_pixels={cost})",
        )


def read_header(source: Source, label: str = "") -> ImageHeader:
    """Read the header of an image without decoding it. Raises SceneError as ``open_image`` does."""
    with open_image(source, label, max_pixels=None) as image:
        return header_of(image)


def header_of(image: Image.Image) -> ImageHeader:
    """The header of an image that has been opened but not decoded."""
    return ImageHeader(_stored_size(image), orientation(image), _cost(image), is_transparent(image))


def is_transparent(image: Image.Image) -> bool:
    """Whether the file contains transparency: an alpha channel or a transparent colour."""
    return "A" in image.mode or "a" in image.mode or "transparency" in image.info


def orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8 that still has to be applied; 1 if the file gives none or an invalid one.

    In PNG files the EXIF chunk may also follow the pixels: the third edition of the specification allows it.
    """
    try:
        # The base class's method: that of PNG files would decode the whole image to find a chunk behind the pixels.
        exif = Image.Image.getexif(image)
        if (
            image.format == "PNG"
            and "exif" not in image.info
            and (late := _exif_behind_pixels(getattr(image, "fp", None)))
        ):
            exif.load(late)
        value = exif.get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged EXIF data; the photo itself may be whole
        return 1
    # Compared by equality, as decoders do, because a damaged tag may hold a value of any type.
    return next((known for known in range(1, 9) if value == known), 1)


def _open(source: Source) -> Image.Image:
    file = source if isinstance(source, Path) else io.BytesIO(source if isinstance(source, bytes) else source())
    # Pillow's limit is a global variable, not a parameter. It is off while a file is opened; ours is checked before the
    # pixels are decoded.
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=_formats())
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@lru_cache
def _formats() -> tuple[str, ...]:
    """The allowed formats that the installed Pillow supports."""
    from pillow_heif import register_heif_opener

    Image.init()
    register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _stored_size(image: Image.Image) -> tuple[int, int]:
    if image.format == "TIFF":  # Pillow applies the orientation while decoding and reports the rotated size
        tags: Any = image.tag_v2  # pyright: ignore[reportAttributeAccessIssue]
        return tags[0x0100], tags[0x0101]
    return image.size


def _cost(image: Image.Image) -> int:
    pixels = image.size[0] * image.size[1]
    heavy = image.format in _HEAVY_FORMATS or "progressive" in image.info
    if image.format == "TIFF":
        bits: Any = image.tag_v2.get(0x0102, (1,))  # pyright: ignore[reportAttributeAccessIssue]
        heavy = sum(bits) > _HEAVY_BITS
    return pixels * (2 if heavy else 1)


def _exif_behind_pixels(file: IO[bytes] | None) -> bytes | None:
    """The content of the eXIf chunk of a PNG file, wherever it is; the file position is restored."""
    if file is None:
        return None
    before = file.tell()
    try:
        file.seek(8)
        while len(start := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", start)
            if name == b"eXIf":
                return file.read(length) if length <= _LONGEST_EXIF else None
            if name == b"IEND":
                return None
            file.seek(length + 4, io.SEEK_CUR)
        return None
    finally:
        file.seek(before)


def save_png(pixels: NDArray[np.uint8], path: Path) -> None:
    """Write an image (H, W, 3) uint8 as a PNG file, atomically. Raises OutputError."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())
