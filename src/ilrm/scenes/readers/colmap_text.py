"""COLMAP's text files, read line by line, so that errors can name the line.

Layouts: https://colmap.github.io/format.html#text-format. There an image has two lines; the second one lists feature
points and may be empty. Scripts that write models from known poses often omit the second line, and editors strip empty
lines. Both cases are read here, because a line of points cannot be mistaken for an image.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ilrm.core.errors import SceneError
from ilrm.scenes.readers.colmap_model import Camera, RegisteredImage, parameter_count, unreadable, world_to_camera

_IMAGE = "IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME"
_FIELDS_BEFORE_NAME = 9


def read_cameras(path: Path) -> dict[int, Camera]:
    """The cameras by their ids. Raises SceneError, naming the line, for any line that is not a camera."""
    cameras: dict[int, Camera] = {}
    for label, line in _lines(path):
        words = line.split()
        model = words[1] if len(words) > 1 else ""
        count = parameter_count(model) if model else None
        try:
            number, width, height = int(words[0]), int(words[2]), int(words[3])
            params = tuple(float(word) for word in words[4:])
        except (ValueError, IndexError, OverflowError) as error:
            raise _odd(label, line, "CAMERA_ID MODEL WIDTH HEIGHT and the model's parameters") from error
        if count is None:
            raise _odd(label, line, "one of COLMAP's camera models")
        if len(params) != count:
            raise _odd(label, line, f"{count} parameters for {model}")
        if number in cameras:
            raise _odd(label, line, "every camera once")
        cameras[number] = Camera(model, width, height, params)
    return cameras


def read_images(path: Path) -> list[RegisteredImage]:
    """The images in the file's order. Raises SceneError, naming a line that is neither image nor points."""
    images: list[RegisteredImage] = []
    points_may_follow = False
    for label, line in _lines(path):
        if points_may_follow and _is_points(line):
            points_may_follow = False
            continue
        images.append(_image(label, line))
        points_may_follow = True
    return images


def read_points(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Positions (P, 3) float64 and colours (P, 3) in 0 ... 255. Raises SceneError, naming an invalid line."""
    rows = []
    for label, line in _lines(path):
        words = line.split(maxsplit=7)
        try:
            rows.append([float(word) for word in words[1:7]])
        except ValueError as error:
            raise _odd(label, line, "POINT3D_ID X Y Z R G B ERROR and a track") from error
        if len(rows[-1]) != 6:
            raise _odd(label, line, "POINT3D_ID X Y Z R G B ERROR and a track")
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    return table[:, :3], table[:, 3:]


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """A label for messages and the text of each line, without comments and empty lines."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    # File names are bytes. With surrogateescape, names that are not UTF-8 become the same bytes again in open().
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
        stripped = line.strip(" \t\n\v\f")
        if stripped and not stripped.startswith("#"):
            yield f"line {number} of {path}", stripped


def _image(label: str, line: str) -> RegisteredImage:
    words = line.split(None, _FIELDS_BEFORE_NAME)
    try:
        int(words[0])
        pose = np.array([float(word) for word in words[1:8]])
        camera, name = int(words[8]), words[_FIELDS_BEFORE_NAME]
    except (ValueError, IndexError, OverflowError) as error:
        raise _odd(label, line, f"{_IMAGE}, or the X Y POINT3D_ID of the image above") from error
    return RegisteredImage(name, camera, world_to_camera(pose[:4], pose[4:], label), label)


def _is_points(line: str) -> bool:
    """Whether a line lists feature points of an image: triples of two numbers and an integer."""
    words = line.split()
    if len(words) % 3:
        return False
    try:
        for word in words[2::3]:
            int(word)
        for word in words:
            float(word)
    except ValueError:
        return False
    return True


def _odd(label: str, line: str, expected: str) -> SceneError:
    shown = ascii(line if len(line) <= 80 else line[:77] + "...")
    return SceneError(f"{label} is {shown}.", expected=expected, fix="fix the line, or export the COLMAP model again")
