"""The files and folders that a scene is read from, so that commands never write over them."""

from __future__ import annotations

from pathlib import Path

from ilrm.files import paths
from ilrm.scenes.load import read_source
from ilrm.scenes.readers.colmap import find_model

_CAMERA_SUFFIXES = (".json", ".ply", ".torch")


def input_paths(path: Path | str) -> tuple[Path, ...]:
    """Everything that loading the scene at ``path`` reads: its camera files, photos, masks, depth maps and points.

    Folders of photos, masks and depth are included and stand for everything in them; so is the scene's own folder if it
    contains photos directly.

    Raises:
        SceneError, CameraError: no scene that can be loaded.
    """
    path = Path(path)
    found = {path} if paths.is_file(path) else _beside_the_cameras(path)
    for frame in read_source(path).frames:
        for file in (frame.photo.source, frame.depth, *(mask.path for mask in frame.masks)):
            if isinstance(file, Path):
                found |= {file, file.parent}
    return tuple(sorted(found))


def _beside_the_cameras(folder: Path) -> set[Path]:
    model = find_model(folder)
    files = [file for file in paths.entries(folder) if file.suffix.lower() in _CAMERA_SUFFIXES]
    return {*files, *([] if model is None else [model])}
