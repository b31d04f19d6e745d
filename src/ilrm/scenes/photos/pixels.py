"""Decoded images of any mode as arrays, converted in bands of rows so that memory holds no second copy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from ilrm.core.errors import SceneError
from ilrm.files.image_files import is_transparent

_BAND_PIXELS = 1 << 20
_OPAQUE = 250  # of 255: lossy compression does not keep 255 exactly


def rgb_pixels(image: Image.Image, label: str) -> np.ndarray:
    """uint8 (H, W, 3): transparency on white, 16-bit grey scaled to 8 bits, other modes converted.

    Raises:
        SceneError: an image of 32-bit integers or of floating-point values.
    """
    if image.mode == "F":
        raise SceneError(f"{label} holds floating-point values.", expected="an 8-bit or 16-bit image")
    if image.mode.startswith("I"):  # 16-bit grey; Pillow gives PNGs as "I;16" or, in older versions, as "I"
        return _by_bands(image, lambda band: _scaled_grey(band, label), 3)
    if is_transparent(image):
        return _by_bands(image, _on_white, 3)
    return _by_bands(image, lambda band: np.asarray(band.convert("RGB")), 3)


def opaque_pixels(image: Image.Image) -> np.ndarray:
    """uint8 (H, W, 1): 255 where an image is opaque, with a tolerance for lossy compression."""
    return _by_bands(image, lambda band: _where(np.asarray(band.convert("RGBA").getchannel("A")) >= _OPAQUE), 1)


def marked_pixels(image: Image.Image) -> np.ndarray:
    """uint8 (H, W, 1): 255 where a mask is not black. In a JPEG, whose black is noisy, dark grey counts as black."""
    least = 128 if image.format in ("JPEG", "MPO") else 1

    def marked(band: Image.Image) -> np.ndarray:
        if band.mode == "F" or band.mode.startswith("I"):
            return _where(np.asarray(band) > 0)
        rgba = np.asarray(band.convert("RGBA"))
        return _where((rgba[..., :3].max(-1) >= least) & (rgba[..., 3] > 0))

    return _by_bands(image, marked, 1)


def _where(counts: np.ndarray) -> np.ndarray:
    return np.where(counts, np.uint8(255), np.uint8(0))[..., None]


def draft(image: Image.Image, reduce: int) -> int:
    """Let a JPEG be decoded at 1/2, 1/4 or 1/8 of its size, but not below 1 / ``reduce``.

    The decoder then computes the means over blocks itself and reads only part of the data.

    Returns:
        the denominator; 1 if the image is decoded at full size.
    """
    width, height = image.size
    if reduce == 1 or image.draft(None, (max(width // reduce, 1), max(height // reduce, 1))) is None:
        return 1
    return next(share for share in (8, 4, 2, 1) if image.size == (-(-width // share), -(-height // share)))


def reduced_pixels(decoded: Image.Image | np.ndarray, extent: tuple[float, float], reduce: int) -> np.ndarray:
    """uint8 (rows, columns, 1 or 3): means over blocks of an RGB image, or of pixels (H, W, 1 or 3).

    Args:
        extent: (width, height) that the photo fills; a drafted image is padded to a whole block.
        reduce: side of a block in pixels. If it does not divide the extent, the means are spread evenly over it.
    """
    if isinstance(decoded, np.ndarray):
        decoded = Image.fromarray(decoded[..., 0] if decoded.shape[-1] == 1 else decoded)
    size = (math.ceil(extent[0] / reduce), math.ceil(extent[1] / reduce))
    whole = (size[0] * reduce, size[1] * reduce) == extent
    if not whole or reduce > 1:
        kernel = Image.Resampling.BOX if whole else Image.Resampling.LANCZOS
        decoded = decoded.resize(size, kernel, box=(0.0, 0.0, *extent))
    pixels = np.array(decoded)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _by_bands(image: Image.Image, convert: Callable[[Image.Image], np.ndarray], channels: int) -> np.ndarray:
    width, height = image.size
    out = np.empty((height, width, channels), np.uint8)
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        out[top:bottom] = convert(image.crop((0, top, width, bottom)))
    return out


def _scaled_grey(band: Image.Image, label: str) -> np.ndarray:
    grey = np.asarray(band).astype(np.float32)
    if grey.min() < 0 or grey.max() > 65535:
        raise SceneError(f"{label} holds 32-bit integers.", expected="an 8-bit or 16-bit image")
    return np.rint(grey / 257.0).astype(np.uint8)[..., None]


def _on_white(band: Image.Image) -> np.ndarray:
    rgba = band.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))
