"""The parts of a COLMAP model that a scene needs; shared by the readers of binary and text files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ilrm.core.errors import SceneError
from ilrm.scenes.lenses.signals import sigterm_kept

_UNIT = 1e-6  # quaternions whose length differs from 1 by less are not normalised


@dataclass(frozen=True)
class Camera:
    """A camera: COLMAP's name of its model, the size of its photos, and parameters in COLMAP's order."""

    model: str
    width: int
    height: int
    params: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class RegisteredImage:
    """A photo with a pose.

    Attributes:
        name: path relative to the folder of photos.
        camera: id of its camera.
        w2c: (4, 4) float64 world-to-camera, OpenCV axes.
        label: name in messages.
    """

    name: str
    camera: int
    w2c: np.ndarray
    label: str


def world_to_camera(quaternion: np.ndarray, translation: np.ndarray, label: str) -> np.ndarray:
    """(4, 4) matrix from COLMAP's quaternion (w, x, y, z) of any length and translation (x, y, z).

    Raises:
        SceneError: a quaternion that is not a rotation; the message names ``label``.
    """
    length = np.linalg.norm(quaternion)
    if not (np.isfinite(length) and length > 0 and np.isfinite(translation).all()):
        shown = " ".join(f"{value:g}" for value in (*quaternion, *translation))
        raise SceneError(
            f"{label} has the pose {shown}.",
            expected="a quaternion (w, x, y, z) other than zero, and a finite translation",
            fix="remove the image from the model, or estimate its pose again",
        )
    # COLMAP does not normalise. Far from the origin even a rounding of the rotation moves the camera centre, so unit
    # quaternions must give exactly COLMAP's matrix.
    w, x, y, z = quaternion / length if abs(length - 1) > _UNIT else quaternion
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, 3] = translation
    return matrix


@lru_cache(maxsize=64)
def parameter_count(model: str) -> int | None:
    """The number of parameters of a camera model; None for a name that the installed pycolmap does not know."""
    with sigterm_kept():
        import pycolmap

    if model == "INVALID" or model not in pycolmap.CameraModelId.__members__:
        return None
    return len(pycolmap.Camera.create_from_model_name(1, model, 1.0, 1, 1).params)


@lru_cache(maxsize=64)
def model_name(number: int) -> str | None:
    """COLMAP's name of a camera model; None for a number that the installed pycolmap does not know."""
    with sigterm_kept():
        import pycolmap

    names = {int(value): name for name, value in pycolmap.CameraModelId.__members__.items() if name != "INVALID"}
    return names.get(number)


def unreadable(path: Path, error: OSError) -> SceneError:
    """The error for a file of a model that cannot be read."""
    return SceneError(f"{path} cannot be read: {error.strerror or error}.", fix="check that it exists and may be read")
