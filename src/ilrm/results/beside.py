"""Finding the splat file and the cameras of a result, in our own layout or that of INRIA's trainer."""

from __future__ import annotations

from pathlib import Path

from ilrm.core.cameras import Cameras
from ilrm.core.errors import CameraError, GaussiansError, warn
from ilrm.files import paths
from ilrm.splats.cameras import load_cameras
from ilrm.splats.formats import FORMATS

SCENE_FILE, CAMERAS_FILE = "scene.ply", "cameras.json"
# OUTPUT/point_cloud/iteration_30000/point_cloud.ply, with OUTPUT/cameras.json
_TRAINED, _ITERATION, _TRAINED_FILE = "point_cloud", "iteration_", "point_cloud.ply"


def find_splats(path: Path | str) -> Path:
    """The splat file for a path: the file itself, or the scene in the folder of a reconstruction.

    In a folder of INRIA's trainer it is the scene of the last saved iteration.

    Raises:
        GaussiansError: a folder without a scene; the message lists the splat files there.
        AccessError: a folder that may not be read.
    """
    path = Path(path)
    if not paths.is_dir(path):
        return path
    if paths.is_file(path / SCENE_FILE):
        return path / SCENE_FILE
    trained = [folder / _TRAINED_FILE for folder in paths.entries(path / _TRAINED, f"{_ITERATION}*")]
    trained = [file for file in trained if _iteration(file) is not None and paths.is_file(file)]
    if trained:
        return max(trained, key=lambda file: _iteration(file) or 0)
    there = [entry.name for entry in paths.entries(path) if entry.name.lower().endswith(tuple(FORMATS))]
    raise GaussiansError(
        f"The folder {path} holds no {SCENE_FILE}.",
        expected="a folder that `ilrm reconstruct` has written, or a splat file",
        fix=f"name one of its files: {', '.join(there[:3])}"
        if there
        else f"make one from photos with `ilrm reconstruct {path} -o OUT`",
    )


def _iteration(file: Path) -> int | None:
    number = file.parent.name.removeprefix(_ITERATION)
    return int(number) if number.isdecimal() and len(number) < 10 else None


def folder_of(splats: Path) -> Path:
    """The folder with the cameras.json of a splat file: the file's own, or the output folder of INRIA's trainer."""
    inside = splats.parent.name.startswith(_ITERATION) and splats.parent.parent.name == _TRAINED
    return splats.parents[2] if inside and len(splats.parents) > 2 else splats.parent


def cameras_file(splats: Path) -> Path | None:
    """The cameras.json of a splat file, if there is one."""
    path = folder_of(splats) / CAMERAS_FILE
    return path if paths.is_file(path) else None


def cameras_beside(splats: Path) -> tuple[Cameras, tuple[str, ...]] | None:
    """The cameras of a splat file and their names; None if there is no cameras.json.

    An unreadable one only causes a warning: any program may have written a file of that name.
    """
    path = cameras_file(splats)
    if path is None:
        return None
    try:
        return load_cameras(path)
    except CameraError as error:
        warn(f"left out the cameras beside the splats: {error.problem}")
        return None
