"""The frame of a capture: which way is up, where its middle is, and its scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ilrm.core.errors import ConfigError
from ilrm.scenes.capture.models import Model
from ilrm.scenes.capture.photos import Shot

# Directions of gravity that differ by more say nothing together; so does one this far from the top of the photos.
_MOST_SPREAD_DEG, _FAR_FROM_TOP_DEG = 20.0, 60.0
# The cameras' right-hand axes must spread over a plane: the ratio of their second spread to the third.
_LEVEL = 4.0
ScaleFrom = tuple[str, str, float]


def up_axis(c2w: Mapping[str, np.ndarray], shots: Sequence[Shot]) -> tuple[np.ndarray, str]:
    """The (3,) unit vector away from the ground in the model's frame, and how it was found: "gravity" or "cameras".

    Phones note gravity. Without it: people hold cameras level, so the right-hand axes lie in the ground's plane; where
    these do not span it, the mean of the photos' tops.
    """
    rotations = np.stack([c2w[shot.prepared][:3, :3] for shot in shots])
    top = _unit(-rotations[:, :, 1].sum(0), fallback=-rotations[0, :, 1])
    given = [(rotation, shot.data.up) for rotation, shot in zip(rotations, shots, strict=True) if shot.data.up]
    if given:
        ups = np.stack([rotation @ np.array(up) for rotation, up in given])
        mean = _unit(ups.sum(0), fallback=top)
        if np.median(_degrees(ups, mean)) < _MOST_SPREAD_DEG and _degrees(mean[None], top)[0] < _FAR_FROM_TOP_DEG:
            return mean, "gravity"
    _, spread, axes = np.linalg.svd(rotations[:, :, 0], full_matrices=False)
    if len(spread) == 3 and spread[1] > _LEVEL * spread[2]:
        level = axes[2] if axes[2] @ top >= 0 else -axes[2]
        if _degrees(level[None], top)[0] < _FAR_FROM_TOP_DEG:
            return level, "cameras"
    return top, "cameras"


def to_world(
    model: Model, up: np.ndarray, metres: ScaleFrom | None, shots: Sequence[Shot]
) -> tuple[float, np.ndarray, np.ndarray]:
    """Scale, rotation (3, 3) and translation (3,) from the model to a world with +z up and its middle at the points.

    Without a known distance, the median distance from a camera to a point is 1, so the unit means nothing.

    Args:
        metres: two photos and the distance in metres between the places where they were taken.

    Raises:
        ConfigError: photos that have no camera, or that were taken at one place.
    """
    rotation = _turned_up(up)
    centres = {shot.prepared: _centre(model.w2c[shot.prepared]) for shot in shots}
    middle = np.median(model.points, axis=0)
    if metres is None:
        sample = model.points[:: max(1, len(model.points) // 2000)]
        distances = np.linalg.norm(np.stack(list(centres.values()))[:, None] - sample, axis=-1)
        scale = 1.0 / float(np.median(distances))
    else:
        a, b = (_find(name, shots) for name in metres[:2])
        apart = float(np.linalg.norm(centres[a.prepared] - centres[b.prepared]))
        extent = max(np.ptp(np.stack(list(centres.values())), axis=0))
        if apart < 1e-6 * extent:
            raise ConfigError(f"{a.name} and {b.name} were taken at the same place.", fix="name two others")
        scale = metres[2] / apart
    return scale, rotation, -scale * rotation @ middle


def check_scale(metres: ScaleFrom | None) -> None:
    """Raise ConfigError for a distance that is not positive and finite, or two equal names."""
    if metres is not None and (not 0 < metres[2] < np.inf or metres[0] == metres[1]):
        raise ConfigError(
            f"--scale-from {metres[0]} {metres[1]} {metres[2]:g} was given.",
            expected="the names of two photos, and the distance in metres between the places they were taken from",
        )


def _find(name: str, shots: Sequence[Shot]) -> Shot:
    found = [shot for shot in shots if name in (shot.name, shot.name.rsplit("/", 1)[-1])]
    if len(found) == 1:
        return found[0]
    names = ", ".join(shot.name for shot in shots[:6]) + (", ..." if len(shots) > 6 else "")
    many = "several photos with that name" if found else "no photo with a camera"
    raise ConfigError(f"--scale-from names {name}, but there is {many}.", expected=f"one of {names}")


def _turned_up(up: np.ndarray) -> np.ndarray:
    """A rotation (3, 3) that turns ``up`` to +z."""
    side = np.eye(3)[np.abs(up).argmin()]
    x = _unit(side - up * (side @ up), fallback=side)
    return np.stack([x, np.cross(up, x), up])


def _centre(w2c: np.ndarray) -> np.ndarray:
    return -w2c[:3, :3].T @ w2c[:3, 3]


def _unit(vector: np.ndarray, fallback: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vector)
    return vector / length if length > 1e-6 else fallback


def _degrees(vectors: np.ndarray, axis: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip(vectors @ axis, -1, 1)))
