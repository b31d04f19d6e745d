"""A look at COLMAP's binary files before COLMAP reads them: do the counts they declare fit into their bytes?

COLMAP trusts them. A truncated or damaged file can end the whole process there, or allocate without bound.
Layouts: https://colmap.github.io/format.html#binary-file-format
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from ilrm import paths
from ilrm.errors import SceneError
from ilrm.scenes.signals import sigterm_kept

# Skips one record that starts at an offset; raises struct.error or ValueError where it does not fit.
_Skip = Callable[[bytes, int], int]

_COUNT = struct.Struct("<Q")
_POINT2D_BYTES = 24
_TRACK_ELEMENT_BYTES = 8
_POSE_BYTES = 7 * 8
_SENSOR_BYTES = 8


def check_binary(model: Path) -> None:
    """Raise SceneError, naming the file, unless every binary file of the model holds the records it declares."""
    for name, skip in _RECORDS.items():
        path = model / f"{name}.bin"
        if paths.is_file(path):
            _check_file(path, skip)


def _check_file(path: Path, skip: _Skip) -> None:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SceneError(f"{path} cannot be read: {error.strerror or error}.", fix="check its permissions") from error
    try:
        (count,) = _COUNT.unpack_from(data)
        offset = _COUNT.size
        for _ in range(count):
            offset = skip(data, offset)
            if offset > len(data):
                raise ValueError
    except (struct.error, ValueError) as error:
        raise SceneError(
            f"{path} is truncated or damaged.",
            expected="as many records as it declares",
            fix="copy or export the COLMAP model again",
        ) from error


def _skip_camera(data: bytes, offset: int) -> int:
    with sigterm_kept():
        import pycolmap

    _, model, _, _ = _CAMERA.unpack_from(data, offset)
    blank = pycolmap.Camera.create_from_model_id(1, pycolmap.CameraModelId(model), 1.0, 1, 1)
    return offset + _CAMERA.size + 8 * len(blank.params)


def _skip_image(data: bytes, offset: int) -> int:
    name_end = data.index(b"\0", offset + 4 + _POSE_BYTES + 4)
    (points,) = _COUNT.unpack_from(data, name_end + 1)
    return name_end + 1 + _COUNT.size + _POINT2D_BYTES * points


def _skip_point(data: bytes, offset: int) -> int:
    (track,) = _COUNT.unpack_from(data, offset + _POINT.size)
    return offset + _POINT.size + _COUNT.size + _TRACK_ELEMENT_BYTES * track


def _skip_rig(data: bytes, offset: int) -> int:
    _, sensors = struct.unpack_from("<II", data, offset)
    offset += 8
    if sensors:
        offset += _SENSOR_BYTES
    for _ in range(1, sensors):
        (has_pose,) = struct.unpack_from("<B", data, offset + _SENSOR_BYTES)
        offset += _SENSOR_BYTES + 1 + (_POSE_BYTES if has_pose else 0)
    return offset


def _skip_frame(data: bytes, offset: int) -> int:
    (entries,) = struct.unpack_from("<I", data, offset + 8 + _POSE_BYTES)
    return offset + 8 + _POSE_BYTES + 4 + (_SENSOR_BYTES + 8) * entries


_CAMERA = struct.Struct("<IiQQ")  # id, model, width, height
_POINT = struct.Struct("<Q3d3Bd")  # id, position, colour, error
_RECORDS: dict[str, _Skip] = {
    "cameras": _skip_camera,
    "images": _skip_image,
    "points3D": _skip_point,
    "rigs": _skip_rig,
    "frames": _skip_frame,
}
