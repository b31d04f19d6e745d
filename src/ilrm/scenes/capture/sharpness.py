"""How blurred a photo is, and which photos show the same picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

_BLUR_WINDOW = 11
THUMBNAIL = 32
# Mean difference of two thumbnails, in grey levels of 255, below which two photos are one picture.
_SAME = 0.7
# A photo is blurred beyond use above the first, or this much above the median of its capture.
_BLURRED, _ABOVE_MEDIAN = 0.72, 0.2


def blur(grey: np.ndarray) -> float:
    """0 (sharp) to 1 (blurred), of a photo (H, W) in any unit, along its worse axis.

    A second blur changes a sharp photo much and a blurred one little (Crété et al., 2007).
    """
    return max(_blur_along(grey.astype(np.float32)), _blur_along(grey.T.astype(np.float32)))


def _blur_along(grey: np.ndarray) -> float:
    if grey.shape[1] <= _BLUR_WINDOW:
        return 0.0
    sums = np.cumsum(np.pad(grey, ((0, 0), (1, 0))), axis=1, dtype=np.float64)
    smooth = (sums[:, _BLUR_WINDOW:] - sums[:, :-_BLUR_WINDOW]) / _BLUR_WINDOW
    half = _BLUR_WINDOW // 2
    sharp = np.abs(np.diff(grey[:, half : half + smooth.shape[1]], axis=1))
    lost = np.maximum(0.0, sharp - np.abs(np.diff(smooth, axis=1)))
    total = sharp.sum()
    return float(1.0 - lost.sum() / total) if total > 0 else 1.0


def thumbnail(image: Image.Image) -> bytes:
    """A tiny grey copy, for comparing."""
    return image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX).tobytes()


def duplicates(thumbnails: Sequence[bytes], blurs: Sequence[float]) -> dict[int, int]:
    """Photos that show the same picture as a sharper (or the first equally sharp) one: {photo: the one to keep}."""
    pictures = np.frombuffer(b"".join(thumbnails), np.uint8).reshape(len(thumbnails), -1).astype(np.float32)
    kept: list[int] = []
    same: dict[int, int] = {}
    for i in sorted(range(len(pictures)), key=lambda i: (blurs[i], i)):
        if kept:
            difference = np.abs(pictures[kept] - pictures[i]).mean(1)
            nearest = int(difference.argmin())
            if difference[nearest] < _SAME:
                same[i] = kept[nearest]
                continue
        kept.append(i)
    return same


def blurred(blurs: Sequence[float]) -> list[int]:
    """Photos that are blurred beyond use, for themselves or beside the others."""
    limit = min(_BLURRED, float(np.median(blurs)) + _ABOVE_MEDIAN) if len(blurs) else _BLURRED
    return [i for i, value in enumerate(blurs) if value > limit]
