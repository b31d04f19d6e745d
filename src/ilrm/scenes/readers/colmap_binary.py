"""COLMAP's binary files. Declared counts are not trusted: records are read only as long as there are bytes.

Layouts: https://colmap.github.io/format.html#binary-file-format
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from ilrm.core.errors import SceneError
from ilrm.scenes.readers.colmap_model import (
    Camera,
    RegisteredImage,
    model_name,
    parameter_count,
    unreadable,
    world_to_camera,
)

T = TypeVar("T")

_COUNT = struct.Struct("<Q")
_CAMERA = struct.Struct("<IiQQ")  # id, model, width, height
_IMAGE = struct.Struct("<I7dI")  # id, quaternion w x y z, translation, camera
_POINT = struct.Struct("<Q3d3Bd")  # id, position, colour, error
_POINT2D_BYTES = 24
_TRACK_ELEMENT_BYTES = 8


def read_cameras(path: Path) -> dict[int, Camera]:
    """The cameras by their ids. Raises SceneError for a damaged file, and for models that pycolmap does not know."""
    return dict(_records(path, _camera))


def read_images(path: Path) -> list[RegisteredImage]:
    """The images in the file's order. Raises SceneError for a damaged file or an invalid pose."""
    return _records(path, lambda data, offset: _image(data, offset, path))


def read_points(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Positions (P, 3) float64 and colours (P, 3) in 0 ... 255. Raises SceneError for a damaged file."""
    table = np.array(_records(path, _point), dtype=np.float64).reshape(-1, 6)
    return table[:, :3], table[:, 3:]


def _records(path: Path, read: Callable[[bytes, int], tuple[T, int]]) -> list[T]:
    """All records of a file. ``read`` parses one at an offset and returns it with the offset after it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        (count,) = _COUNT.unpack_from(data)
        offset, records = _COUNT.size, []
        for _ in range(count):
            record, offset = read(data, offset)
            if offset > len(data):
                raise ValueError
            records.append(record)
    except (struct.error, ValueError, OverflowError) as error:
        raise _damaged(path) from error
    return records


def _damaged(path: Path) -> SceneError:
    return SceneError(
        f"{path} is truncated or damaged.",
        expected="as many records as it declares",
        fix="copy or export the COLMAP model again",
    )


def _camera(data: bytes, offset: int) -> tuple[tuple[int, Camera], int]:
    number, model, width, height = _CAMERA.unpack_from(data, offset)
    name = model_name(model)
    count = parameter_count(name) if name else None
    if name is None or count is None:
        raise ValueError
    offset += _CAMERA.size
    params = struct.unpack_from(f"<{count}d", data, offset)
    return (number, Camera(name, width, height, params)), offset + 8 * count


def _image(data: bytes, offset: int, path: Path) -> tuple[RegisteredImage, int]:
    number, *pose, camera = _IMAGE.unpack_from(data, offset)
    start = offset + _IMAGE.size
    end = data.index(b"\0", start)
    (points,) = _COUNT.unpack_from(data, end + 1)
    after = end + 1 + _COUNT.size + _POINT2D_BYTES * points
    if after > len(data):
        raise ValueError
    # File names are bytes. With surrogateescape, names that are not UTF-8 become the same bytes again in open().
    name = data[start:end].decode("utf-8", "surrogateescape")
    label = f"image {number} of {path}"
    w2c = world_to_camera(np.array(pose[:4]), np.array(pose[4:]), label)
    return RegisteredImage(name, camera, w2c, label), after


def _point(data: bytes, offset: int) -> tuple[tuple[float, ...], int]:
    _, x, y, z, red, green, blue, _ = _POINT.unpack_from(data, offset)
    (track,) = _COUNT.unpack_from(data, offset + _POINT.size)
    return (x, y, z, red, green, blue), offset + _POINT.size + _COUNT.size + _TRACK_ELEMENT_BYTES * track
