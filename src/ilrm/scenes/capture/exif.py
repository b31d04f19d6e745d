"""What a photo's EXIF data say about its camera: focal length, device, direction of gravity."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

_EXIF_FOLDER, _MAKE, _MODEL, _LENS_MODEL = 0x8769, 0x010F, 0x0110, 0xA434
_FOCAL_MM, _FOCAL_35MM, _MAKER_NOTE = 0x920A, 0xA405, 0x927C
_PLANE_X, _PLANE_Y, _PLANE_UNIT = 0xA20E, 0xA20F, 0xA210
_FILM_WIDTH_MM = 36.0
_PLANE_UNITS_MM = {2: 25.4, 3: 10.0, 4: 1.0}
# Focal lengths as shares of the longer side: from fisheyes to long lenses. Others are mistakes.
_PLAUSIBLE = (0.2, 30.0)
_LEAST_UPRIGHT = 0.3
_APPLE, _ACCELERATION, _SIGNED_RATIONAL = b"Apple iOS\x00", 8, 10


@dataclass(frozen=True)
class PhotoData:
    """What EXIF says; None where it says nothing that can be used.

    Attributes:
        focal: focal length as a share of the photo's longer side.
        device: make, model and lens.
        up: (3,) unit vector away from the ground in the axes of the upright photo (x right, y down, z forward).
    """

    focal: float | None = None
    device: str | None = None
    up: tuple[float, float, float] | None = None


def photo_data(image: Image.Image, orientation: int) -> PhotoData:
    """Read the EXIF data of an opened photo; damaged data count as absent."""
    try:
        exif = image.getexif()
        details = exif.get_ifd(_EXIF_FOLDER)
    except Exception:  # malformed EXIF raises anything; the photo itself may be whole
        return PhotoData()
    words = [_text(exif.get(_MAKE)), _text(exif.get(_MODEL)), _text(details.get(_LENS_MODEL))]
    device = " ".join(word for word in words if word) or None
    return PhotoData(_focal(details, max(image.size)), device, _up(details.get(_MAKER_NOTE), orientation))


def _focal(details: Any, longer: int) -> float | None:
    film = _number(details.get(_FOCAL_35MM))
    if film and (share := _plausible(film / _FILM_WIDTH_MM)):
        return share
    focal, density = _number(details.get(_FOCAL_MM)), _number(details.get(_PLANE_X)) or _number(details.get(_PLANE_Y))
    unit = _PLANE_UNITS_MM.get(int(_number(details.get(_PLANE_UNIT)) or 2))
    if focal and density and unit:
        return _plausible(focal * density / unit / longer)
    return None


def _plausible(share: float) -> float | None:
    return share if _PLAUSIBLE[0] <= share <= _PLAUSIBLE[1] else None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def _text(value: Any) -> str:
    return "".join(c for c in value if c.isprintable()).strip()[:80] if isinstance(value, str) else ""


def _up(note: Any, orientation: int) -> tuple[float, float, float] | None:
    """From Apple's note: its vector counts to the left, the bottom and into a phone that one looks at upright."""
    if not isinstance(note, bytes) or (found := _acceleration(note)) is None:
        return None
    x, y, z = -found[0], found[1], found[2]  # now right, down, forward of an upright phone, seen from behind
    turned = {1: (y, -x), 3: (-y, x), 6: (x, y), 8: (-x, -y)}.get(orientation)
    if turned is None:
        return None
    up = np.array([*turned, z])
    length = float(np.linalg.norm(up))
    if not 0.5 < length < 2:  # in units of gravity: a phone that is shaken says little
        return None
    up /= length
    # Whichever sign the vector has, up is where the top of the photo is; a photo of the floor does not tell.
    if abs(up[1]) < _LEAST_UPRIGHT:
        return None
    right, down, forward = (up if up[1] <= 0 else -up).tolist()
    return right, down, forward


def _acceleration(note: bytes) -> list[float] | None:
    """The three numbers of the tag in Apple's note: a TIFF folder whose offsets count from the note's start."""
    if not note.startswith(_APPLE) or len(note) < 16:
        return None
    order = {b"MM": ">", b"II": "<"}.get(note[12:14])
    if order is None:
        return None
    try:
        (count,) = struct.unpack_from(order + "H", note, 14)
        for entry in range(count):
            tag, kind, values, offset = struct.unpack_from(order + "HHII", note, 16 + 12 * entry)
            if (tag, kind, values) == (_ACCELERATION, _SIGNED_RATIONAL, 3):
                numbers = struct.unpack_from(order + "6i", note, offset)
                return [numbers[i] / numbers[i + 1] for i in (0, 2, 4)]
    except (struct.error, ZeroDivisionError):
        return None
    return None
