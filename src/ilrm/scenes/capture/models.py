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
# Shares of matches that fit: of a model to rely on, of a photo whose camera is wrong, and a difference of no meaning.
SUPPORTED, _CONTRADICTED, _NEARLY_EQUAL = 0.6, 0.2, 0.05
# A model with less than this share of the photos is refused, unless it has as many as a scene needs.
_SCRAP, _ENOUGH_PHOTOS = 0.25, 10
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
        support: median share of the photos' verified matches that fit the cameras.
        contradicted: photos that had a camera which their own matches contradict.
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
    support: float
    contradicted: frozenset[str]


def best(models: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The best of several models; None if none makes sense.

    Of those with nearly the most photos, an incremental one whose matches fit is preferred, then the one whose matches
    fit best. Reprojection errors alone do not tell: the smallest belongs to a model of two photos.
    """
    sound = [model for model in models if _is_sound(model)]
    if not sound:
        return None
    most = max(len(model["registered"]) for model in sound)
    full = [model for model in sound if len(model["registered"]) >= ENOUGH * most]

    def rank(model: dict[str, Any]) -> tuple[bool, float, float]:
        fits = support(model)
        return model["mapper"] == "incremental" and fits >= SUPPORTED, round(fits / _NEARLY_EQUAL), model["agreement"]

    return max(full, key=rank)


def is_scrap(model: dict[str, Any], photos: int) -> bool:
    """Whether a model has so few of the photos that it would disappoint everyone."""
    return len(model["registered"]) < min(_SCRAP * photos, _ENOUGH_PHOTOS)


def is_whole(model: dict[str, Any] | None, photos: int) -> bool:
    """Whether a model has nearly all photos, and its matches fit: then nothing else needs to be tried."""
    return model is not None and len(model["registered"]) >= ENOUGH * photos and support(model) >= SUPPORTED


def support(model: dict[str, Any]) -> float:
    """Median over its photos of the share of their verified matches that fit its cameras."""
    return float(np.median(list(model["support"].values()))) if model["support"] else 0.0


def _is_sound(model: dict[str, Any]) -> bool:
    photos = len(model["registered"])
    return (
        photos >= _LEAST_PHOTOS
        and model["points"] >= _LEAST_POINTS * photos
        and model["error_px"] < _MOST_ERROR_PX
        and model["track_length"] > _LEAST_TRACK
    )


def load_model(chosen: dict[str, Any]) -> Model:
    """Read the files of a model, without photos whose own matches contradict it."""
    folder = Path(chosen["folder"])
    cameras = colmap_binary.read_cameras(folder / "cameras.bin")
    images = colmap_binary.read_images(folder / "images.bin")
    points, rgb = colmap_binary.read_points(folder / "points3D.bin")
    contradicted = {name for name, share in chosen["support"].items() if share < _CONTRADICTED}
    kept = {*chosen["registered"]} - contradicted
    if len(kept) < _LEAST_PHOTOS:
        kept, contradicted = {*chosen["registered"]}, set()
    listed = sorted((image for image in images if image.name in kept), key=lambda image: image.name)
    return Model(
        mapper=chosen["mapper"],
        w2c={image.name: image.w2c for image in listed},
        cameras={image.name: cameras[image.camera] for image in listed},
        points=points,
        rgb=rgb,
        error_px=chosen["error_px"],
        track_length=chosen["track_length"],
        points_of=chosen["points_of"],
        shared=tuple((a, b, count) for a, b, count in chosen["shared"] if a in kept and b in kept),
        support=support(chosen),
        contradicted=frozenset(contradicted),
    )
