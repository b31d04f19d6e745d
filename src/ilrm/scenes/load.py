"""``load_scene``: detects the format of a scene and reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ilrm.core.errors import SceneError, redirect_warnings, warn
from ilrm.core.scene import Scene
from ilrm.files import paths, settle
from ilrm.files.image_files import MAX_PIXELS, VIDEO_SUFFIXES
from ilrm.files.reading import read_json
from ilrm.scenes.camera_findings import camera_warnings
from ilrm.scenes.frames import CaptureSource, assemble
from ilrm.scenes.readers.chunks import INDEX, is_chunk_index, read_chunk_scene
from ilrm.scenes.readers.colmap import find_model, has_model, is_model, read_colmap
from ilrm.scenes.readers.nerfstudio import read_nerfstudio
from ilrm.scenes.readers.opencv_json import read_opencv_json
from ilrm.scenes.readers.photo_files import SUFFIXES

_BLENDER_FILES = ("transforms_train.json", "transforms_test.json")
_COLMAP_FILES = ("cameras", "images", "points3D", "rigs", "frames")
_KINDS = (
    "transforms.json (nerfstudio, instant-ngp), transforms_train.json (Blender), opencv_cameras.json, "
    "another .json with posed frames, a COLMAP model (sparse/0, sparse, colmap/sparse/0 or the folder itself), "
    "chunks (index.json, *.torch)"
)


def load_scene(
    path: str | Path,
    *,
    key: str | None = None,
    max_side: int | None = None,
    size: tuple[int, int] | None = None,
    max_pixels: int | None = MAX_PIXELS,
) -> Scene:
    """Read a scene of any supported format. Photos are undistorted, have one size, and are decoded when used.

    Args:
        path: a camera file (.json), a scene's or COLMAP project's folder, or a chunk file or folder. In a folder the
            first of these is used: transforms.json, transforms_train.json (with transforms_test.json held out),
            opencv_cameras.json, a COLMAP model, chunks, a single other .json with posed frames.
        key: which scene of a chunk; the first by default.
        max_side: reduce images, intrinsics and depth so that the longer side has at most this many pixels.
        size: (width, height) of every image: scaled to cover it, then centre-cropped.
        max_pixels: refuse photos of more pixels, so that a small file cannot exhaust memory when it is decoded (about
            8 bytes per pixel; WebP, AVIF, progressive JPEG and 16-bit TIFF count twice). None sets no limit.

    Returns:
        V views in the file's order (COLMAP: sorted by name), OpenCV axes, in the scene's own world frame and units
        (depth maps in millimetres are converted to metres).

    Raises:
        SceneError: no scene that can be loaded, or a file, frame or value that is missing, malformed or impossible.
        CameraError: an invalid pose or intrinsic.

    Warns (IlrmWarning), one line each, of data that was left out, assumptions, and suspicious cameras.
    """
    messages: list[str] = []
    with redirect_warnings(messages.append):
        source = read_source(Path(path), key)
        scene = assemble(source, max_side=max_side, size=size, max_pixels=max_pixels)
    for message in dict.fromkeys([*messages, *camera_warnings(source, scene)]):  # many frames may give the same one
        warn(message)
    return scene


def declared_holdout(path: str | Path) -> tuple[str, ...]:
    """Names of the views that the scene's own file declares as test views; empty if it declares none."""
    with redirect_warnings(lambda message: None):  # load_scene gives the same warnings
        return read_source(Path(path)).holdout


def read_source(path: Path, key: str | None = None, *, images: str | None = None) -> CaptureSource:
    """Read ``path`` with the reader for its format; see ``load_scene``.

    ``images`` is a folder of reduced copies ("images_4") to use instead of the photos that a camera file lists.
    """
    settle(path)
    if not paths.exists(path):
        raise SceneError(f"{path} does not exist.", expected="a scene's folder or camera file", fix="check the path")
    if paths.is_dir(path) and not has_cameras(path) and is_chunk_folder(path):
        return read_chunk_scene(path, key)
    if path.suffix == ".torch" and paths.is_file(path):
        return read_chunk_scene(path, key)
    if path.name == INDEX and is_chunk_index(read_json(path)):
        return read_chunk_scene(path.parent, key)
    if key is not None:
        raise SceneError(f"The scene {key!r} was requested, but {path} holds only one scene.", fix="leave out the key")
    return _read_folder(path, images) if paths.is_dir(path) else _read_file(path, images)


def has_cameras(folder: Path) -> bool:
    """Whether a folder contains a camera file with a known name, or a COLMAP model."""
    files = ("transforms.json", _BLENDER_FILES[0], "opencv_cameras.json")
    return any(paths.is_file(folder / name) for name in files) or has_model(folder)


def is_chunk_folder(folder: Path) -> bool:
    """Whether a folder is a stage of a chunk data set: it contains chunks or their index."""
    index = folder / INDEX
    return bool(paths.entries(folder, "*.torch")) or (paths.is_file(index) and is_chunk_index(read_json(index)))


def camera_files(folder: Path) -> list[Path]:
    """The .json files with posed frames directly in a folder, by name."""
    return [file for file in paths.entries(folder, "*.json") if paths.is_file(file) and _frame_reader(file)]


def _read_folder(folder: Path, images: str | None) -> CaptureSource:
    if paths.is_file(folder / "transforms.json"):
        return read_nerfstudio([folder / "transforms.json"], images)
    if paths.is_file(folder / _BLENDER_FILES[0]):
        return read_nerfstudio([folder / name for name in _BLENDER_FILES if paths.is_file(folder / name)], images)
    if paths.is_file(folder / "opencv_cameras.json"):
        return read_opencv_json(folder / "opencv_cameras.json", images)
    model = find_model(folder)
    if model is not None:
        return read_colmap(model, images)
    files = camera_files(folder)
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise SceneError(f"{folder} holds several camera files: {names}.", fix="give the path of one of them")
    if files:
        return _read_file(files[0], images)
    raise _nothing_found(folder)


def _read_file(file: Path, images: str | None) -> CaptureSource:
    if file.suffix.lower() == ".json":
        if reader := _frame_reader(file):
            return reader(file, images)
        raise SceneError(
            f"{file} holds no posed frames.",
            expected='"frames" with "transform_matrix" (nerfstudio) or "w2c" (OpenCV, LVSM)',
            fix="give the scene's camera file; an evaluation index names scenes but holds none",
        )
    if file.suffix.lower() in (*SUFFIXES, *VIDEO_SUFFIXES):
        raise _poses_needed(f"{file} is a single photo or video without camera poses.")
    if file.stem in _COLMAP_FILES and is_model(file.parent):
        return read_colmap(file.parent, images)
    raise SceneError(f"{file} is not a scene.", expected=f"a folder or file of one of these kinds: {_KINDS}")


def _frame_reader(file: Path) -> Callable[[Path, str | None], CaptureSource] | None:
    """The reader for a JSON file of posed frames, by the keys of its first frame; None for other JSON."""
    data = read_json(file)
    frames = data.get("frames") if isinstance(data, dict) else None
    if not isinstance(frames, list):
        return None
    first = frames[0] if frames and isinstance(frames[0], dict) else {}
    return read_opencv_json if "w2c" in first else lambda path, images: read_nerfstudio([path], images)


def _nothing_found(folder: Path) -> SceneError:
    stages = [name for name in ("test", "train") if paths.is_file(folder / name / INDEX)]
    if stages:
        return SceneError(f"{folder} is the root of a dataset.", fix=f"give one of its stages, {folder / stages[0]}")
    files = [file for place in (folder, folder / "images") for file in paths.entries(place)]
    if any(file.suffix.lower() in (*SUFFIXES, *VIDEO_SUFFIXES) for file in files):
        return _poses_needed(f"{folder} holds photos or a video, but no camera poses.")
    return SceneError(
        f"{folder} holds no scene.",
        expected=f"one of: {_KINDS}",
        fix="give the folder that holds the camera file",
    )


def _poses_needed(problem: str) -> SceneError:
    return SceneError(
        problem,
        expected=f"poses beside the photos, as one of: {_KINDS}",
        fix="find the cameras first: ilrm capture INPUT -o OUT; ilrm reconstruct does both",
    )
