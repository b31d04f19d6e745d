"""Parsing and checking options of images and videos: sizes, colours, output formats."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ilrm.core.checks import LARGEST_SIDE, SMALLEST_SIDE, check_size
from ilrm.core.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from ilrm.core.cameras import Cameras

_VIDEOS = (".mp4", ".webp", ".gif")
# The limit of H.264 encoders and most players.
_WIDEST_VIDEO = 16384


def parse_size(size: str, *, even: bool) -> int | tuple[int, int]:
    """The longer side, or width and height, of --size. Raises ConfigError."""
    expected = f"a longer side like 640, or WIDTHxHEIGHT like 640x360, of {SMALLEST_SIDE} to {LARGEST_SIDE} pixels"
    match = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", size.strip().lower())
    if match is None:
        raise ConfigError(f"--size {size} is not a valid size.", expected=expected)
    if match[2] is None:
        return check_size(int(match[1]))
    width, height = int(match[1]), int(match[2])
    if not all(SMALLEST_SIDE <= side <= LARGEST_SIDE for side in (width, height)):
        raise ConfigError(f"--size {size} is not a valid size.", expected=expected)
    if even and (width % 2 or height % 2):
        raise ConfigError(
            f"--size {size} is odd.", expected="even sides for .mp4", fix=f"give --size {_even(width)}x{_even(height)}"
        )
    return width, height


def parse_colour(name: str | None) -> tuple[float, float, float] | None:
    """Red, green and blue in [0, 1] of --background; None of None. Raises ConfigError."""
    if name is None:
        return None
    from PIL import ImageColor

    try:
        red, green, blue = ImageColor.getrgb(name)[:3]
    except ValueError:
        raise ConfigError(
            f"--background {name} is not a colour.", expected="a name like white, black or grey, or #rrggbb"
        ) from None
    return red / 255, green / 255, blue / 255


def resized(cameras: Cameras, size: str | int | tuple[int, int] | None, *, even: bool) -> Cameras:
    """The same cameras with images of another size.

    A single number scales the longer side. WIDTHxHEIGHT, or (width, height), scales the image to cover that size and
    crops the rest.

    Args:
        even: whether both sides have to be even, as for .mp4.

    Raises:
        ConfigError: an invalid size.
    """
    width, height = cameras.width, cameras.height
    if size is None:
        wanted = max(width, height)
    else:
        wanted = parse_size(size if isinstance(size, str) else _size_text(size), even=even)
    if isinstance(wanted, int):
        factor = wanted / max(width, height)
        sides = [max(1, round(side * factor)) for side in (width, height)]
        if even:
            sides = [_even(side) for side in sides]
        if max(sides) > LARGEST_SIDE:
            raise ConfigError(
                f"The cameras' images are {width}x{height}.", expected=f"up to {LARGEST_SIDE} pixels", fix="give --size"
            )
        return cameras.resize(sides[0], sides[1])
    factor = max(wanted[0] / width, wanted[1] / height)
    K = cameras.K.clone()
    K[:, :2] *= factor
    K[:, 0, 2] -= (width * factor - wanted[0]) / 2
    K[:, 1, 2] -= (height * factor - wanted[1]) / 2
    return replace(cameras, K=K, width=wanted[0], height=wanted[1])


def at_most(longest: int, cameras: Cameras) -> Cameras:
    """The same cameras, with images reduced so that the longer side is at most ``longest``."""
    factor = longest / max(cameras.width, cameras.height)
    if factor >= 1:
        return cameras
    return cameras.resize(*(max(1, round(side * factor)) for side in (cameras.width, cameras.height)))


def _size_text(size: int | tuple[int, int]) -> str:
    return str(size) if isinstance(size, int) else f"{size[0]}x{size[1]}"


def _even(side: int) -> int:
    return max(2, 2 * round(side / 2))


def check_output(path: Path, frames: int, width: int, height: int, fps: float) -> None:
    """Refuse an unknown output format, or one that cannot store the frames.

    Raises:
        OutputError: an unknown extension, or too many frames.
        ConfigError: an invalid frame rate, or frames larger than a video can be.
    """
    suffix = path.suffix.lower()
    if suffix in _VIDEOS:
        from ilrm.pictures.video import check_preview, check_video

        check_video(path, fps)
        check_preview(path, frames, width, height)
        if max(width, height) > _WIDEST_VIDEO:
            raise ConfigError(
                f"The frames of {path} would be {width}x{height}.",
                expected=f"up to {_WIDEST_VIDEO} pixels",
                fix="lower --size, or show fewer things side by side",
            )
    elif suffix not in ("", ".png"):
        raise OutputError(
            f"{path} has the extension {path.suffix!r}.",
            expected="a folder, or a name that ends in .mp4, .webp, .gif or .png",
        )
    elif suffix == ".png" and frames != 1:
        raise OutputError(
            f"{frames} frames cannot be written to the one file {path}.", fix="give a folder or an .mp4, or --frames 1"
        )
