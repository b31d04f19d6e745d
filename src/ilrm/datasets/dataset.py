"""Finding the scenes of a data set of any supported layout."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ilrm.core.errors import AccessError, SceneError
from ilrm.files import paths
from ilrm.files.reading import read_json, read_text
from ilrm.scenes.load import camera_files, has_cameras, is_chunk_folder
from ilrm.scenes.readers.chunks import INDEX, is_chunk_index, list_keys

NameRule = Literal["folder", "parent", "path"]

_STAGES = ("train", "test", "val")
# For these files the folder gives the name of the scene. Other camera files give it by their own name (LVSM keeps many
# in one folder).
_CAMERA_FILES = ("transforms.json", "transforms_train.json", "transforms_test.json", "opencv_cameras.json")
LIST_SUFFIX = ".txt"
# Data sets group their scenes in folders (DL3DV: 1K/hash/nerfstudio); no known one nests them deeper than this.
_DEEPEST = 4


@dataclass(frozen=True)
class SceneRef:
    """A reference to a scene that has not been opened.

    Attributes:
        name: for messages and keys; not necessarily unique.
        path: argument of ``load_scene``.
        key: which scene of a chunk.
    """

    name: str
    path: Path
    key: str | None = None


def find_scenes(path: Path | str, names: NameRule = "folder") -> list[SceneRef]:
    """All scenes below a path, in a fixed order. They are not opened, so they may turn out to be unreadable.

    Args:
        path: one scene; chunks (a file, a stage's folder, or the root of stages); a text file with one path of a scene
            per line, relative to the file; or a folder of scenes, possibly in groups. A folder among scenes that
            contains no scene at any depth counts as one, so that a scene without its camera file is not overlooked.
        names: scenes are named by their own folder, by the one above it, or by the path from ``path`` to it with _
            for /. Scenes of chunks are named by their keys.

    Raises:
        SceneError: there are no scenes, or chunks or lists that cannot be read.
    """
    path = Path(path)
    if not paths.exists(path):
        raise SceneError(f"{path} does not exist.", expected="a scene or a data set", fix="check the path")
    if paths.is_file(path):
        return _in_file(path, names)
    found = list(_in_folder(path, path, names, depth=0))
    if not found:
        raise SceneError(
            f"{path} holds no scenes.",
            expected="a scene, folders of scenes (each with a camera file or a COLMAP model) or chunks",
            fix="give the folder that holds the scenes",
        )
    return found


def chunk_stages(path: Path) -> list[Path]:
    """The chunk folders of a path: the path itself if it is a stage, or the stages in a data set's root."""
    if path.name == INDEX and paths.is_file(path):
        return [path.parent] if is_chunk_index(read_json(path)) else []
    if not paths.is_dir(path) or has_cameras(path):
        return []
    stages = [path / name for name in _STAGES if paths.is_dir(path / name)]
    return [folder for folder in (path, *stages) if is_chunk_folder(folder)]


def _in_file(file: Path, names: NameRule) -> list[SceneRef]:
    if stages := chunk_stages(file):
        return _in_chunks(stages[0])
    if file.suffix == ".torch":
        return _in_chunks(file)
    if file.suffix.lower() == LIST_SUFFIX and not has_cameras(file.parent):  # COLMAP's files are .txt, too
        return [ref for line in read_list(file) for ref in _one(file.parent / line, file.parent, names)]
    return _one(file, file.parent, names)


def read_list(file: Path) -> list[str]:
    """The paths in a list of scenes, relative to the list's folder, without comments (#) and empty lines.

    Raises:
        SceneError: not a text file, or an empty list.
    """
    try:
        lines = [line.strip() for line in read_text(file).splitlines()]
    except SceneError as error:
        problem = f"{file} cannot be read as a list of scenes: {error.problem}"
        raise SceneError(problem, expected="a UTF-8 text file") from error
    scenes = [line for line in lines if line and not line.startswith("#")]
    if not scenes:
        raise SceneError(f"{file} lists no scenes.", expected="the path of one scene per line, relative to the list")
    return scenes


def _in_chunks(path: Path) -> list[SceneRef]:
    return [SceneRef(key, path, key) for key in list_keys(path)]


def _in_folder(folder: Path, root: Path, names: NameRule, depth: int) -> Iterator[SceneRef]:
    """The scenes in a folder at any depth."""
    if stages := chunk_stages(folder):
        for stage in stages:
            yield from _in_chunks(stage)
        return
    files = [] if has_cameras(folder) else _camera_files(folder)
    if has_cameras(folder) or len(files) == 1:
        yield from _one(folder, root, names)
        return
    if files:
        for file in files:
            yield from _one(file, root, names)
        return
    if depth == _DEEPEST:
        return
    folders = [entry for entry in paths.entries(folder) if not entry.name.startswith(".") and paths.is_dir(entry)]
    inside = [(entry, _in_subfolder(entry, root, names, depth + 1)) for entry in folders]
    if any(found for _, found in inside):
        for entry, found in inside:
            yield from found or _one(entry, root, names)


def _in_subfolder(folder: Path, root: Path, names: NameRule, depth: int) -> list[SceneRef]:
    try:
        return list(_in_folder(folder, root, names, depth))
    except AccessError:  # an unreadable folder does not hide the others; reading it as a scene gives the error
        return _one(folder, root, names)


def _camera_files(folder: Path) -> list[Path]:
    try:
        return camera_files(folder)
    except SceneError:  # a damaged .json that may not belong to a scene; reading a scene gives the error
        return []


def _one(path: Path, root: Path, names: NameRule) -> list[SceneRef]:
    place = Path(os.path.abspath(path.parent if path.name in _CAMERA_FILES else path))
    if names == "parent":
        return [SceneRef(place.parent.name, path)]
    own = place.stem if place.suffix == ".json" else place.name
    if names == "folder" or place == Path(os.path.abspath(root)):
        return [SceneRef(own, path)]
    above = Path(os.path.relpath(place.parent, root)).parts
    return [SceneRef("_".join([part for part in above if part != ".."] + [own]), path)]
