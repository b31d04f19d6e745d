"""COLMAP models, binary or text, read through pycolmap."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ilrm import paths
from ilrm.errors import SceneError
from ilrm.scenes.colmap_binary import check_binary
from ilrm.scenes.frames import Frame, Source, fit_lens
from ilrm.scenes.images import find_images, image_candidates, open_photo
from ilrm.scenes.lenses import Lens
from ilrm.scenes.records import unique_names
from ilrm.scenes.signals import sigterm_kept

if TYPE_CHECKING:
    import pycolmap

MODEL_FOLDERS = ("sparse/0", "sparse", "colmap/sparse/0", "colmap/sparse", "0", ".")
_PINHOLE_WITHOUT_COEFFICIENTS = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV")
_FILES = ("cameras", "images", "points3D")


def find_model(folder: Path) -> Path | None:
    """The COLMAP model in a project's folder, or the folder itself if it is one."""
    return next((folder / name for name in MODEL_FOLDERS if _is_model(folder / name)), None)


def read_colmap(model: Path, images: str | None = None) -> Source:
    """The registered images of a model, sorted by name, with its points.

    The photos are looked for in ``images/`` beside the model or up to three folders above it (``sparse/0`` lies two
    below), or beside the model itself. ``images`` is the folder of reduced copies to prefer, see ``find_images``.

    Raises:
        SceneError: files that are missing, broken or empty.
    """
    reconstruction = _open(model)
    try:
        registered = sorted(
            (image for image in reconstruction.images.values() if image.has_pose), key=lambda image: image.name
        )
    except UnicodeDecodeError as error:
        raise SceneError(
            f"The COLMAP model {model} names an image {paths.shown(os.fsdecode(error.object))}, which is not UTF-8.",
            expected="names in UTF-8",
            fix="rename the photos, and run COLMAP again (or rename them in its images.txt)",
        ) from error
    if not registered:
        raise SceneError(
            f"The COLMAP model {model} has no registered images.",
            expected="at least one image with a pose",
            fix="run COLMAP's mapper again, with more overlap between the photos",
        )
    folder = _image_folder(model, registered[0].name)
    files = find_images([folder / image.name for image in registered], model, images)
    names = unique_names([image.name for image in registered], model)
    frames = [_frame(*view, reconstruction) for view in zip(names, registered, files, strict=True)]
    xyz = np.array([point.xyz for point in reconstruction.points3D.values()], dtype=np.float64)
    rgb = np.array([point.color for point in reconstruction.points3D.values()], dtype=np.float32) / 255.0
    if not len(xyz):
        return Source(tuple(frames))
    return Source(tuple(frames), torch.from_numpy(xyz), torch.from_numpy(rgb))


def _is_model(folder: Path) -> bool:
    return any(paths.is_file(folder / f"images{suffix}") for suffix in (".bin", ".txt"))


def _open(model: Path) -> pycolmap.Reconstruction:
    with sigterm_kept():
        import pycolmap

    suffix = ".bin" if paths.is_file(model / "images.bin") else ".txt"
    missing = [name + suffix for name in _FILES if not paths.is_file(model / (name + suffix))]
    if missing:
        raise SceneError(
            f"The COLMAP model {model} lacks {', '.join(missing)}.",
            expected="cameras, images and points3D, all .bin or all .txt",
            fix="copy or export the whole model again",
        )
    if suffix == ".bin":
        check_binary(model)
    try:
        reconstruction = pycolmap.Reconstruction()
        (reconstruction.read_binary if suffix == ".bin" else reconstruction.read_text)(str(model))
    except Exception as error:  # the bindings raise whatever C++ threw
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise SceneError(
            f"The COLMAP model {model} cannot be read: {first_line}.",
            expected="complete cameras, images and points3D files",
            fix="copy or export the model again",
        ) from error
    return reconstruction


def _image_folder(model: Path, first: str) -> Path:
    folders = list(_image_folders(model))
    for folder in folders:
        if any(paths.is_visible_file(candidate) for candidate in image_candidates(folder / first)):
            return folder
    raise SceneError(
        f"The image {first} of the COLMAP model {model} was not found.",
        expected=f"it in one of {', '.join(str(folder) for folder in folders)}",
        fix="put the photos into a folder 'images' beside 'sparse'",
    )


def _image_folders(model: Path) -> Iterator[Path]:
    near = [model, *paths.absolute(model).parents][:4]
    yield from (folder / "images" for folder in near)
    yield from near


def _frame(name: str, image: pycolmap.Image, file: Path, reconstruction: pycolmap.Reconstruction) -> Frame:
    camera = reconstruction.cameras[image.camera_id]
    if min(camera.width, camera.height) < 1:
        raise SceneError(f"The COLMAP camera {image.camera_id} has an image size of {camera.width}x{camera.height}.")
    # COLMAP detects features on the pixels as stored and does not turn photos by their EXIF orientation.
    photo = open_photo(file, (camera.width, camera.height), stored_pixels=True)
    pose = image.cam_from_world
    w2c = np.eye(4)
    w2c[:3] = (pose() if callable(pose) else pose).matrix()  # a method since pycolmap 3.12, with rigs
    return Frame(name, photo, fit_lens(_lens(camera), photo), np.linalg.inv(w2c))


def _lens(camera: pycolmap.Camera) -> Lens:
    # COLMAP also calls a fisheye undistorted when its coefficients are zero, although it is no pinhole then.
    if camera.model_name in _PINHOLE_WITHOUT_COEFFICIENTS and camera.is_undistorted():
        K = camera.calibration_matrix()
        return Lens.pinhole(K[0, 0], K[1, 1], K[0, 2], K[1, 2], camera.width, camera.height)
    return Lens(camera.model_name, tuple(float(x) for x in camera.params), camera.width, camera.height)
