"""The one door for image files: listed formats only, no more pixels than a budget, no decoder's own exceptions.

Pillow knows some forty formats. One of them (EPS) starts another program, whatever the file is called, and nobody has
asked for most of the others; so every image is opened here.
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

from ilrm.core.errors import IlrmError, SceneError
from ilrm.files import write_bytes

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP", "GIF", "AVIF")
# Photos of 100-megapixel cameras pass; decoding one of this size takes about 1 GB.
MAX_PIXELS = 120_000_000

Source = Path | bytes | Callable[[], bytes]

_ORIENTATION_TAG = 0x0112
# Decoders that need about twice the memory of the others (16 to 20 bytes a pixel in place of 4 to 8).
_HEAVY_FORMATS = ("WEBP", "AVIF")
_HEAVY_BITS = 32  # a TIFF with more bits a pixel is unpacked from a buffer of that depth
_LONGEST_EXIF = 1 << 20
_pillow_limit = threading.Lock()


@dataclass(frozen=True)
class ImageHeader:
    """What is known of an image before its pixels are.

    Attributes:
        size: (width, height) of the stored pixels.
        orientation: 1 to 8 as in EXIF (tag 0x0112): how the stored pixels are to be turned.
        cost: pixels, counted twice where decoding needs twice the memory; what a budget is compared with.
        transparent: whether some pixels may be transparent.
    """

    size: tuple[int, int]
    orientation: int
    cost: int
    transparent: bool


@contextmanager
def open_image(source: Source, label: str = "", *, max_pixels: int | None = MAX_PIXELS) -> Iterator[Image.Image]:
    """A Pillow image that is not decoded yet; its decoder's errors become ours as long as it is open.

    Args:
        source: a file, or the content of one, or what reads that content.
        label: what to call it in messages; the path by default.
        max_pixels: refuse images that cost more, before they are decoded; None for those that never will be.

    Raises:
        SceneError: no such file, not an image of ``FORMATS``, damaged, or larger than the budget.
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
            expected="a complete JPEG, PNG, WebP, AVIF, TIFF, BMP or GIF file",
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
    """What can be known without decoding. Raises SceneError as ``open_image``, but for the budget."""
    with open_image(source, label, max_pixels=None) as image:
        return header_of(image)


def header_of(image: Image.Image) -> ImageHeader:
    """The same of an image that has been opened but not decoded."""
    return ImageHeader(_stored_size(image), orientation(image), _cost(image), is_transparent(image))


def is_transparent(image: Image.Image) -> bool:
    """Whether the format has a place for transparency and the file uses it."""
    return "A" in image.mode or "a" in image.mode or "transparency" in image.info


def orientation(image: Image.Image) -> int:
    """1 to 8: how the pixels, as they are now, are to be turned. 1 where the file says nothing that makes sense.

    In PNG files it is also found behind the pixels, where the third edition of the specification allows it.
    """
    try:
        # The base class's method: that of PNG files would decode the whole image to look behind it.
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
    # By equality, as decoders do: the value may have any type.
    return next((known for known in range(1, 9) if value == known), 1)


def _open(source: Source) -> Image.Image:
    file = source if isinstance(source, Path) else io.BytesIO(source if isinstance(source, bytes) else source())
    # Pillow's own limit is a global one that cannot be lifted for a file; ours is checked before anything is decoded.
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=_formats())
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@lru_cache
def _formats() -> tuple[str, ...]:
    """Those of the list that this Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _stored_size(image: Image.Image) -> tuple[int, int]:
    if image.format == "TIFF":  # Pillow turns these while it decodes, and announces the turned size
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
    """The content of an eXIf chunk anywhere in a PNG file; its position is left as it was."""
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
    """Write an image (H, W, 3) uint8 as a PNG file, whole or not at all. Raises OutputError."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())
