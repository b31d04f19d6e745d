"""transforms.json of nerfstudio, instant-ngp and the Blender scenes.

Poses are camera-to-world in OpenGL axes. Bounding boxes and scene scales are ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ilrm.core.errors import AccessError, SceneError, warn
from ilrm.files.paths import is_file
from ilrm.scenes.frames import CaptureFrame, CaptureSource, fit_lens
from ilrm.scenes.photos.images import open_photo
from ilrm.scenes.photos.masks import dynamic_mask, listed_mask
from ilrm.scenes.readers.intrinsics import perspective_or_fisheye
from ilrm.scenes.readers.photo_files import FoundPhoto, Listed, find_photos
from ilrm.scenes.readers.points import read_points
from ilrm.scenes.readers.records import Record, read_frames, unique_names

# Signs for the columns right, up (down), back (forward), centre; its own inverse.
OPENGL_TO_OPENCV = np.array([1.0, -1.0, -1.0, 1.0])

_RENDERED_FILES = ("transforms_train.json", "transforms_test.json", "transforms_val.json")


def read_nerfstudio(paths: Sequence[Path], images: str | None = None) -> CaptureSource:
    """The frames of one or more transforms files, in the files' order.

    Args:
        paths: a transforms.json, or transforms_train.json and transforms_test.json of a Blender scene; frames of all
            but the first file are held out.
        images: the folder of reduced copies to prefer, see ``find_photos``.

    Raises:
        SceneError: names the file, frame and value that is missing, malformed or impossible.
    """
    parts = [read_frames(path) for path in paths]
    folders = [path.parent for path, (_, records) in zip(paths, parts, strict=True) for _ in records]
    records = [record for _, part in parts for record in part]
    listed = [Listed(folder, record.text("file_path")) for folder, record in zip(folders, records, strict=True)]
    source = " and ".join([str(paths[0]), *(path.name for path in paths[1:])])
    places = find_photos(listed, source, images)
    views = [(view, found) for view, found in enumerate(places) if found is not None]
    # The name of a view is the listed path plus the suffix that Blender omits.
    names = unique_names([found.name for _, found in views], paths[0])
    rendered = paths[0].name in _RENDERED_FILES
    frames = tuple(
        _frame(records[view], name, found, folders[view], rendered)
        for (view, found), name in zip(views, names, strict=True)
    )
    first = len(parts[0][1])
    later = [name for (view, _), name in zip(views, names, strict=True) if view >= first]
    texts = [listed[view].text for view, _ in views]
    aside = tuple(dict.fromkeys([*_holdout(parts[0][0], texts, names), *later]))
    points, points_rgb = _points(parts[0][0], paths[0].parent)
    return CaptureSource(frames, points, points_rgb, aside)


def _frame(record: Record, name: str, found: FoundPhoto, folder: Path, rendered: bool) -> CaptureFrame:
    photo = open_photo(found.file, record.size())
    depth = folder / record.text("depth_file_path") if "depth_file_path" in record else None
    masks = (listed_mask(folder, record.text("mask_path")),) if "mask_path" in record else ()
    masks += dynamic_mask(found.file)
    # Files of rendered objects give a field of view; there, transparency is empty background. Photographs have a focal
    # length in pixels; there, transparent parts were cut out (see ``photos.masks``).
    cut = "fl_x" in record and not rendered
    lens = fit_lens(perspective_or_fisheye(record, photo, found.reduction), photo)
    return CaptureFrame(name, photo, lens, record.pose("transform_matrix") * OPENGL_TO_OPENCV, depth, masks, cut)


def _holdout(top: dict[str, Any], listed: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """The names of the views in nerfstudio's "test_filenames"."""
    test = top.get("test_filenames")
    if not isinstance(test, list):
        return ()
    wanted = {Path(file.replace("\\", "/")) for file in test if isinstance(file, str)}
    return tuple(name for text, name in zip(listed, names, strict=True) if Path(text.replace("\\", "/")) in wanted)


def _points(top: dict[str, Any], folder: Path) -> tuple[Tensor | None, Tensor | None]:
    """The sparse points beside the file. They are optional: unreadable ones only cause a warning."""
    listed = top.get("ply_file_path")
    path = folder / (listed if isinstance(listed, str) else "points.ply")
    try:
        return read_points(path) if is_file(path) else (None, None)
    except (SceneError, AccessError) as error:
        warn(f"the scene's points are left out: {error.problem}")
        return None, None
