"""A small world with a formula for every colour, photographed through any lens, and how well a loaded scene agrees.

A textured ground (z = 0) with a raised disc (z = 0.5, radius 0.6) under a grey sky; z is up, units are metres.
``agreement`` casts the world again through the cameras of a loaded scene: about 59 dB is exact but for 8 bits, 27 to
40 dB is right but resampled or JPEG, about 10 dB is wrong.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ilrm.core.scene import Scene

WIDTH, HEIGHT, FOCAL = 160, 120, 150.0
_SKY = 0.9
_BORDER = 4  # pixels that resampling may mix with what lies outside


def cast(origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Colours (..., 3) in [0, 1] along rays (..., 3) of any length from one origin, in the world's axes."""
    with np.errstate(divide="ignore", invalid="ignore"):
        to_disc, to_ground = ((level - origin[2]) / rays[..., 2] for level in (0.5, 0.0))
        on_disc = origin[:2] + to_disc[..., None] * rays[..., :2]
        on_ground = origin[:2] + to_ground[..., None] * rays[..., :2]
    disc = (to_disc > 0) & ((on_disc**2).sum(-1) < 0.36)
    ground = (to_ground > 0) & (np.abs(on_ground).max(-1) < 6)
    place = np.where(disc[..., None], on_disc, np.where(ground[..., None], on_ground, 0.0))
    colour = _texture(place[..., 0], place[..., 1])
    colour = np.where(disc[..., None], colour[..., [2, 0, 1]] * 0.6 + 0.35, colour)
    return np.where((disc | ground)[..., None], colour, _SKY).clip(0, 1)


def _texture(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Smooth colours without repetition nearby."""
    red = 0.25 * np.sin(5.1 * x + 1.7 * y) + 0.2 * np.sin(11.3 * y - 3.0 * x)
    green = 0.25 * np.sin(4.3 * y - 2.9 * x + 1.0) + 0.2 * np.sin(9.7 * x + 2.0 * y)
    blue = 0.25 * np.sin(3.7 * x + 4.9 * y + 2.0) + 0.2 * np.sin(13.1 * x - 7.0 * y)
    return 0.5 + np.stack([red, green, blue], -1)


def look_at(eye: Sequence[float], target: Sequence[float] = (0, 0, 0.2)) -> np.ndarray:
    """(4, 4) camera-to-world, OpenCV axes."""
    forward = np.subtract(target, eye) / np.linalg.norm(np.subtract(target, eye))
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    c2w = np.eye(4)
    c2w[:3] = np.stack([right, np.cross(forward, right), forward, np.asarray(eye, float)], axis=1)
    return c2w


def arc(count: int, radius: float = 2.2, height: float = 1.6, sweep: float = 1.2) -> list[np.ndarray]:
    """Poses (4, 4) on an arc around the disc."""
    angles = np.linspace(-sweep / 2, sweep / 2, count) - math.pi / 2
    return [look_at((radius * math.cos(a), radius * math.sin(a), height + 0.1 * math.sin(3 * a))) for a in angles]


def pinhole_rays(width: int = WIDTH, height: int = HEIGHT, focal: float = FOCAL) -> np.ndarray:
    """(height, width, 3) rays of a centred pinhole, in the camera's axes."""
    x, y = pixel_centres(width, height)
    return np.stack([(x - width / 2) / focal, (y - height / 2) / focal, np.ones_like(x)], -1)


def pixel_centres(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """x, y (height, width) of all pixels' centres."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return x, y


def radial_rays(
    width: int, height: int, focal: float, distort: Callable[[np.ndarray], np.ndarray], *, fold: float
) -> np.ndarray:
    """Rays of a lens that moves what lies at radius r (tangent of the angle) to ``distort(r)``, in focal lengths.

    Beyond the fold, the largest r that the lens shows, rays look straight up at the sky: no light comes from there.
    """
    x, y = pixel_centres(width, height)
    x, y = (x - width / 2) / focal, (y - height / 2) / focal
    table = np.linspace(0, fold, 20_001)
    seen = np.hypot(x, y)
    true = np.interp(seen, distort(table), table)
    stretch = np.divide(true, seen, out=np.ones_like(seen), where=seen > 0)
    rays = np.stack([x * stretch, y * stretch, np.ones_like(x)], -1)
    return np.where((seen > distort(table[-1:]))[..., None], [0.0, -1.0, 0.0], rays)


def photograph(c2w: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3): what a camera there sees along rays in its own axes."""
    return np.rint(cast(c2w[:3, 3], rays @ c2w[:3, :3].T) * 255).astype(np.uint8)


def save_photo(path: Path, pixels: np.ndarray, **options: Any) -> None:
    """Write an image and the folders above it; ``options`` are Pillow's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def write_capture(
    folder: Path,
    views: int = 4,
    *,
    rays: np.ndarray | None = None,
    file: str = "images/{:04d}.png",
    listed: str | None = None,
    drop: Sequence[str] = (),
    **top: Any,
) -> list[np.ndarray]:
    """Photos on an arc with transforms.json, pinhole unless ``rays`` and ``top`` say otherwise.

    Args:
        file, listed: name of the view's number on disk, and in the file if another.
        drop: top-level keys to leave out.
        top: top-level values to add or replace.

    Returns:
        the poses (4, 4), OpenCV axes.
    """
    rays = pinhole_rays() if rays is None else rays
    poses = arc(views)
    for view, c2w in enumerate(poses):
        save_photo(folder / file.format(view), photograph(c2w, rays))
    height, width = rays.shape[:2]
    lens = {"fl_x": FOCAL, "fl_y": FOCAL, "cx": width / 2, "cy": height / 2, "w": width, "h": height}
    values = {key: value for key, value in {**lens, **top}.items() if key not in drop}
    frames = [
        {"file_path": (listed or file).format(view), "transform_matrix": opengl(c2w)} for view, c2w in enumerate(poses)
    ]
    (folder / "transforms.json").write_text(json.dumps({**values, "frames": frames}), encoding="utf-8")
    return poses


def opengl(c2w: np.ndarray) -> list[list[float]]:
    """The pose as transforms.json has it."""
    return (c2w * [1.0, -1.0, -1.0, 1.0]).tolist()


def agreement(scene: Scene) -> list[float]:
    """PSNR in dB of each view of a loaded scene against the world itself, but for a narrow border."""
    return [_psnr(scene, view) for view in range(len(scene))]


def _psnr(scene: Scene, view: int) -> float:
    cameras = scene.cameras
    K, c2w = cameras.K[view].double().numpy(), cameras.c2w[view].double().numpy()
    x, y = pixel_centres(cameras.width, cameras.height)
    rays = np.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], np.ones_like(x)], -1)
    difference = cast(c2w[:3, 3], rays @ c2w[:3, :3].T) - scene.images[view].double().numpy()
    inside = difference[_BORDER:-_BORDER, _BORDER:-_BORDER]
    return -10 * math.log10((inside**2).mean() + 1e-12)
