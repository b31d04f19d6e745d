"""opencv_cameras.json (Long-LRM, MegaSynth) and its LVSM variant: world-to-camera poses with OpenCV axes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ilrm.core.errors import SceneError
from ilrm.scenes.frames import CaptureFrame, CaptureSource, fit_lens
from ilrm.scenes.photos.images import open_photo
from ilrm.scenes.photos.masks import listed_mask
from ilrm.scenes.readers.intrinsics import opencv_lens
from ilrm.scenes.readers.photo_files import FoundPhoto, Listed, find_photos
from ilrm.scenes.readers.records import Record, read_frames, unique_names


def read_opencv_json(path: Path, images: str | None = None) -> CaptureSource:
    """The frames of one camera file, in its order.

    A frame has "file_path" and "fx", "fy", "cx", "cy" with "w", "h", or (LVSM) "image_path" and "fxfycxcy" for the
    image's own size; a 4x4 "w2c"; and optionally "mask_path". Distortion ("k1" ...) is read as in transforms.json.
    ``images`` is a folder of reduced copies to prefer, see ``find_photos``.

    Raises:
        SceneError: names the file, frame and value that is missing, malformed or impossible.
    """
    _, records = read_frames(path)
    texts = [record.text("image_path" if "image_path" in record else "file_path") for record in records]
    places = find_photos([Listed(path.parent, text) for text in texts], path, images)
    views = [(record, found) for record, found in zip(records, places, strict=True) if found is not None]
    names = unique_names([found.name for _, found in views], path)
    return CaptureSource(tuple(_frame(*view, name, path.parent) for view, name in zip(views, names, strict=True)))


def _frame(record: Record, found: FoundPhoto, name: str, folder: Path) -> CaptureFrame:
    photo = open_photo(found.file, record.size())
    lens = fit_lens(opencv_lens(record, photo, found.reduction), photo)
    masks = (listed_mask(folder, record.text("mask_path")),) if "mask_path" in record else ()
    return CaptureFrame(name, photo, lens, inverse_pose(record.pose("w2c"), record.label), masks=masks)


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
