"""transforms.json of nerfstudio, instant-ngp and the Blender scenes.

Poses are camera-to-world in OpenGL axes. Masks (``mask_path``), bounding boxes and scene scales are ignored.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ilrm.errors import AccessError, SceneError
from ilrm.paths import is_file
from ilrm.scenes.frames import Frame, Source, fit_lens
from ilrm.scenes.images import Photo, find_images, open_photo
from ilrm.scenes.lenses import Lens
from ilrm.scenes.points import read_points
from ilrm.scenes.records import Record, read_frames, unique_names

# Signs of the columns right, up (down), back (forward), centre; the same both ways.
OPENGL_TO_OPENCV = np.array([1.0, -1.0, -1.0, 1.0])

_DISTORTION_KEYS = ("k1", "k2", "k3", "k4", "p1", "p2")
_FISHEYE_MODELS = ("OPENCV_FISHEYE", "FISHEYE")
_PERSPECTIVE_MODELS = ("PERSPECTIVE", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")


def read_nerfstudio(paths: Sequence[Path], images: str | None = None) -> Source:
    """The frames of one or more transforms files, in the files' order.

    Args:
        paths: a transforms.json; or the Blender scenes' transforms_train.json and transforms_test.json, of which
            all but the first are held out.
        images: the folder of reduced copies to prefer, see ``find_images``.

    Raises:
        SceneError: names the file, frame and value that is missing, malformed or impossible.
    """
    parts = [read_frames(path) for path in paths]
    folders = [path.parent for path, (_, records) in zip(paths, parts, strict=True) for _ in records]
    records = [record for _, part in parts for record in part]
    listed = [record.text("file_path") for record in records]
    files = find_images([folder / text for folder, text in zip(folders, listed, strict=True)], paths[0], images)
    # A name is the path as listed plus the suffix that Blender leaves out.
    labels = [Path(text).with_name(file.name) for text, file in zip(listed, files, strict=True)]
    names = unique_names(labels, paths[0])
    frames = tuple(
        _frame(record, name, file, folder)
        for record, name, file, folder in zip(records, names, files, folders, strict=True)
    )
    first = len(parts[0][1])
    aside = _holdout(parts[0][0], listed, names) + tuple(names[first:])
    points, points_rgb = _points(parts[0][0], paths[0].parent)
    return Source(frames, points, points_rgb, aside)


def _frame(record: Record, name: str, file: Path, folder: Path) -> Frame:
    photo = open_photo(file, record.size())
    depth = folder / record.text("depth_file_path") if "depth_file_path" in record else None
    lens = fit_lens(_lens(record, photo), photo)
    return Frame(name, photo, lens, record.pose("transform_matrix") * OPENGL_TO_OPENCV, depth)


def _lens(record: Record, photo: Photo) -> Lens:
    width, height = record.size() or (photo.width, photo.height)
    fx, fy = _focal(record, width, height)
    cx, cy = record.number("cx", width / 2), record.number("cy", height / 2)
    model = record.text("camera_model") if "camera_model" in record else "PERSPECTIVE"
    fisheye = model in _FISHEYE_MODELS or record.values.get("is_fisheye") is True
    if not fisheye and model not in _PERSPECTIVE_MODELS:
        raise SceneError(
            f"{record.label} has the camera model {model!r}.",
            expected=f"one of {', '.join((*_PERSPECTIVE_MODELS, *_FISHEYE_MODELS))}",
            fix="undistort the images to a pinhole camera first",
        )
    k1, k2, k3, k4, p1, p2 = (record.number(key, 0.0) for key in _DISTORTION_KEYS)
    if fisheye:  # without coefficients it is still a fisheye (equidistant) projection
        return Lens("OPENCV_FISHEYE", (fx, fy, cx, cy, k1, k2, k3, k4), width, height)
    if k4 != 0:
        raise SceneError(
            f"{record.label} has a fourth radial distortion coefficient k4 = {k4:g}.",
            expected="k1, k2, k3, p1, p2 of a perspective camera, or a fisheye camera model",
            fix="undistort the images first",
        )
    if k3 != 0:
        return Lens("FULL_OPENCV", (fx, fy, cx, cy, k1, k2, p1, p2, k3, 0, 0, 0), width, height)
    if any((k1, k2, p1, p2)):
        return Lens("OPENCV", (fx, fy, cx, cy, k1, k2, p1, p2), width, height)
    return Lens.pinhole(fx, fy, cx, cy, width, height)


def _focal(record: Record, width: int, height: int) -> tuple[float, float]:
    """fx, fy in pixels: as such, or from the fields of view; a missing vertical one equals the horizontal one."""
    if "fl_x" in record:
        fx = record.positive("fl_x")
    elif "camera_angle_x" in record:
        fx = _focal_of_angle(record, "camera_angle_x", width)
    else:
        raise SceneError(
            f'{record.label} has neither "fl_x" nor "camera_angle_x".',
            expected="a focal length in pixels or a horizontal field of view in radians",
        )
    if "fl_y" in record:
        return fx, record.positive("fl_y")
    if "camera_angle_y" in record and "fl_x" not in record:
        return fx, _focal_of_angle(record, "camera_angle_y", height)
    return fx, fx


def _focal_of_angle(record: Record, key: str, side: int) -> float:
    angle = record.positive(key)
    if angle >= math.pi:
        raise SceneError(f'{record.label}: "{key}" is {angle:g}.', expected="radians between 0 and pi")
    return 0.5 * side / math.tan(0.5 * angle)


def _holdout(top: dict[str, Any], listed: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """The scene's names of nerfstudio's "test_filenames"."""
    test = top.get("test_filenames")
    if not isinstance(test, list):
        return ()
    wanted = {str(Path(file)) for file in test if isinstance(file, str)}
    return tuple(name for text, name in zip(listed, names, strict=True) if str(Path(text)) in wanted)


def _points(top: dict[str, Any], folder: Path) -> tuple[Tensor | None, Tensor | None]:
    """The sparse points beside the file. They are a help, not a need: unreadable ones are only warned about."""
    listed = top.get("ply_file_path")
    path = folder / (listed if isinstance(listed, str) else "points.ply")
    try:
        return read_points(path) if is_file(path) else (None, None)
    except (SceneError, AccessError) as error:
        warnings.warn(f"The scene's points are left out: {error.problem}", stacklevel=2)
        return None, None
