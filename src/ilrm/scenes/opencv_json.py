"""opencv_cameras.json (Long-LRM, MegaSynth) and the LVSM variant of it: world-to-camera poses, OpenCV axes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ilrm.errors import SceneError
from ilrm.scenes.frames import Frame, Source, fit_lens
from ilrm.scenes.images import Photo, find_images, open_photo
from ilrm.scenes.lenses import Lens
from ilrm.scenes.records import Record, read_frames, unique_names


def read_opencv_json(path: Path, images: str | None = None) -> Source:
    """The frames of one camera file, in its order.

    A frame has "file_path" and "fx", "fy", "cx", "cy" with "w", "h", or (LVSM) "image_path" and "fxfycxcy" for the
    image's own size; and a 4x4 "w2c". ``images`` is the folder of reduced copies to prefer, see ``find_images``.

    Raises:
        SceneError: names the file, frame and value that is missing, malformed or impossible.
    """
    _, records = read_frames(path)
    listed = [record.text("image_path" if "image_path" in record else "file_path") for record in records]
    files = find_images([path.parent / text for text in listed], path, images)
    names = unique_names(listed, path)
    return Source(tuple(_frame(*view) for view in zip(records, names, files, strict=True)))


def _frame(record: Record, name: str, file: Path) -> Frame:
    photo = open_photo(file, record.size())
    return Frame(name, photo, fit_lens(_lens(record, photo), photo), inverse_pose(record.pose("w2c"), record.label))


def _lens(record: Record, photo: Photo) -> Lens:
    width, height = record.size() or (photo.width, photo.height)
    if "fxfycxcy" in record:
        fx, fy, cx, cy = record.numbers("fxfycxcy", 4)
    else:
        fx, fy = record.positive("fx"), record.positive("fy")
        cx, cy = record.number("cx"), record.number("cy")
    return Lens.pinhole(fx, fy, cx, cy, width, height)


def inverse_pose(w2c: np.ndarray, label: str) -> np.ndarray:
    """Camera-to-world (4, 4) of a world-to-camera matrix.

    Raises:
        SceneError: a matrix without an inverse.
    """
    try:
        return np.linalg.inv(w2c)
    except np.linalg.LinAlgError as error:
        raise SceneError(
            f"The world-to-camera matrix of {label} has no inverse.",
            expected="a rotation and a translation",
            fix="remove the view, or estimate its pose again",
        ) from error
