"""Choosing between models of structure from motion, and reading the chosen one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ilrm.scenes.readers import colmap_binary
from ilrm.scenes.readers.colmap_model import Camera

# Below this share of registered photos the other mapper is tried, too.
ENOUGH = 0.9
_LEAST_PHOTOS = 3
# A model with worse figures is an accident: mean error in pixels, photos that see a point, points for each photo.
_MOST_ERROR_PX, _LEAST_TRACK, _LEAST_POINTS = 3.0, 2.05, 10


@dataclass(frozen=True, eq=False)
class Model:
    """Cameras and points, in the model's own frame.

    Attributes:
        mapper: "incremental" or "together".
        w2c: (4, 4) float64 for each registered photo, by the prepared copy's name.
        cameras: of each registered photo.
        points: (P, 3) float64.
        rgb: (P, 3) in 0 ... 255.
        error_px: mean reprojection error.
        track_length: mean number of photos that see a point.
        points_of: how many points each registered photo sees.
        shared: (photo, photo, points that both see).
    """

    mapper: str
    w2c: dict[str, np.ndarray]
    cameras: dict[str, Camera]
    points: np.ndarray
    rgb: np.ndarray
    error_px: float
    track_length: float
    points_of: dict[str, int]
    shared: tuple[tuple[str, str, int], ...]


def best(models: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The model with the most photos, the incremental one if several have as many; None if none makes sense.

    Reprojection errors do not decide between models: the smallest belongs to a model of two photos.
    """
    sound = [model for model in models if _is_sound(model)]
    if not sound:
        return None
    return max(sound, key=lambda model: (len(model["registered"]), model["mapper"] == "incremental", model["points"]))


def _is_sound(model: dict[str, Any]) -> bool:
    photos = len(model["registered"])
    return (
        photos >= _LEAST_PHOTOS
        and model["points"] >= _LEAST_POINTS * photos
        and model["error_px"] < _MOST_ERROR_PX
        and model["track_length"] > _LEAST_TRACK
    )


def load_model(chosen: dict[str, Any]) -> Model:
    """Read the files of a model."""
    folder = Path(chosen["folder"])
    cameras = colmap_binary.read_cameras(folder / "cameras.bin")
    images = colmap_binary.read_images(folder / "images.bin")
    points, rgb = colmap_binary.read_points(folder / "points3D.bin")
    registered = set(chosen["registered"])
    kept = sorted((image for image in images if image.name in registered), key=lambda image: image.name)
    return Model(
        mapper=chosen["mapper"],
        w2c={image.name: image.w2c for image in kept},
        cameras={image.name: cameras[image.camera] for image in kept},
        points=points,
        rgb=rgb,
        error_px=chosen["error_px"],
        track_length=chosen["track_length"],
        points_of=chosen["points_of"],
        shared=tuple((a, b, count) for a, b, count in chosen["shared"]),
    )
