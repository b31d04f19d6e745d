"""A picture of a capture from above: points, cameras, and where they look."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from ilrm.core.cameras import Cameras

_SIDE, _MARGIN = 900, 60
_BACKGROUND, _PATH, _CAMERA, _TEXT = (250, 250, 248), (150, 150, 160), (200, 40, 40), (60, 60, 60)
_MOST_POINTS, _DENSE = 60_000, 20_000
# The share of the points at either end that may fall outside the picture.
_CUT = 0.03


def from_above(cameras: Cameras, points: Tensor, rgb: Tensor | None, text: str) -> bytes:
    """A PNG file: the world from above (+z towards the viewer), with a line of text.

    Args:
        cameras: V cameras in the order of the path.
        points: (P, 3) in the same world.
        rgb: (P, 3) in [0, 1], or None.
    """
    centres = cameras.centers.double().cpu().numpy()[:, :2]
    forward = cameras.forward.double().cpu().numpy()[:, :2]
    flat = points.double().cpu().numpy()
    step = max(1, len(flat) // _MOST_POINTS)
    flat, colours = flat[::step], None if rgb is None else rgb.double().cpu().numpy()[::step]
    low, high = _bounds(centres, flat)
    scale = (_SIDE - 2 * _MARGIN) / max((high - low).max(), 1e-9)
    middle = (low + high) / 2

    def place(xy: np.ndarray) -> np.ndarray:
        moved = (xy - middle) * scale
        return np.column_stack([_SIDE / 2 + moved[:, 0], _SIDE / 2 - moved[:, 1]])

    pixels = np.full((_SIDE, _SIDE, 3), _BACKGROUND, np.uint8)
    order = np.argsort(flat[:, 2])  # the highest last, as seen from above
    at = place(flat[order, :2]).round().astype(int)
    inside = ((at >= 0) & (at < _SIDE)).all(1)
    shade = np.full((len(order), 3), 120.0) if colours is None else colours[order] * 255
    at, shade = at[inside], shade[inside].clip(0, 235).astype(np.uint8)
    width = 1 if len(at) > _DENSE else 2
    for row in range(width):
        for column in range(width):
            pixels[np.minimum(at[:, 1] + row, _SIDE - 1), np.minimum(at[:, 0] + column, _SIDE - 1)] = shade
    image = Image.fromarray(pixels)
    _draw_cameras(ImageDraw.Draw(image), place(centres), forward)
    ImageDraw.Draw(image).text((12, _SIDE - 24), text, fill=_TEXT)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _bounds(centres: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The part of the ground that holds all cameras and most points."""
    if not len(points):
        return centres.min(0), centres.max(0)
    low, high = np.quantile(points[:, :2], [_CUT, 1 - _CUT], axis=0)
    # Far background would make the cameras a dot.
    span = max(np.ptp(centres, axis=0).max(), np.median(np.linalg.norm(points[:, :2] - centres.mean(0), axis=1)))
    low, high = np.maximum(low, centres.min(0) - 2 * span), np.minimum(high, centres.max(0) + 2 * span)
    return np.minimum(low, centres.min(0)), np.maximum(high, centres.max(0))


def _draw_cameras(draw: ImageDraw.ImageDraw, at: np.ndarray, forward: np.ndarray) -> None:
    draw.line([tuple(point) for point in at.tolist()], fill=_PATH, width=1)
    for (x, y), (right, up) in zip(at.tolist(), forward.tolist(), strict=True):
        length = float(np.hypot(right, up))
        if length > 0.2:  # it does not look straight down
            ahead = np.array([right, -up]) / length * 16
            side = np.array([-ahead[1], ahead[0]]) * 0.45
            corners = [(x + ahead[0] + s * side[0], y + ahead[1] + s * side[1]) for s in (1, -1)]
            draw.polygon([(x, y), *corners], outline=_CAMERA)
        draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=_CAMERA)
