"""What commands on splat files read: cameras given by the user, and the files that must not be overwritten."""

from __future__ import annotations

from pathlib import Path

from ilrm.core.cameras import Cameras
from ilrm.files.paths import is_file
from ilrm.results.beside import CAMERAS_FILE, folder_of
from ilrm.results.result import INPUTS, METRICS_FILE
from ilrm.scenes import load_scene
from ilrm.scenes.inputs import input_paths
from ilrm.splats.cameras import load_cameras


def paths_read(splats: Path, *others: Path | None) -> list[Path]:
    """The splat file, the files beside it, and all files of further scenes or cameras: what must not be overwritten.

    Raises:
        SceneError, CameraError: one of the others is not a scene that can be loaded.
    """
    beside = [folder_of(splats) / name for name in (CAMERAS_FILE, METRICS_FILE, INPUTS)]
    given = [path for path in others if path is not None]
    camera_files = [path for path in given if path.name == CAMERAS_FILE]
    scenes = [file for path in given if path not in camera_files for file in input_paths(path)]
    return [splats, *beside, *camera_files, *scenes]


def given_cameras(path: Path) -> tuple[Cameras, tuple[str, ...]]:
    """The cameras for --cameras and their names, from a cameras.json or a scene.

    Raises:
        CameraError: a cameras.json that cannot be read.
        SceneError: any other path that is not a scene.
    """
    if path.name == CAMERAS_FILE and is_file(path):
        return load_cameras(path)
    scene = load_scene(path, max_pixels=None)  # no photo is decoded
    return scene.cameras, scene.names
