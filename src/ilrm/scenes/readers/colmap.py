"""COLMAP projects: choosing one of their models and reading it as a scene."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from ilrm.core.errors import SceneError, warn
from ilrm.files import paths
from ilrm.scenes.frames import CaptureFrame, CaptureSource, fit_lens
from ilrm.scenes.lenses.models import Lens
from ilrm.scenes.photos.images import open_photo
from ilrm.scenes.photos.masks import colmap_mask
from ilrm.scenes.readers import colmap_binary, colmap_text
from ilrm.scenes.readers.colmap_model import Camera, RegisteredImage
from ilrm.scenes.readers.photo_files import FoundPhoto, Listed, find_photos, is_listed_photo
from ilrm.scenes.readers.records import check_size, unique_names

# Folders of a project that may contain models, in order of precedence. The mapper creates numbered sub-folders there;
# hloc calls the folder "models".
_PLACES = ("sparse", "colmap/sparse", ".", "models")
# The index of the first distortion coefficient of perspective models, after f, cx, cy or fx, fy, cx, cy. If all
# coefficients are zero, the model is a pinhole; that does not hold for fisheye models.
_COEFFICIENTS_FROM = {"SIMPLE_PINHOLE": 3, "PINHOLE": 4, "SIMPLE_RADIAL": 3, "RADIAL": 3, "OPENCV": 4, "FULL_OPENCV": 4}
_MOST_TRIED = 100  # photos in each possible folder


def has_model(folder: Path) -> bool:
    """Whether a folder is a COLMAP project or a model."""
    return any(_models(folder / place) for place in _PLACES)


def find_model(folder: Path) -> Path | None:
    """The COLMAP model in a project's folder, or the folder itself if it is one; None if there is none.

    The mapper makes several models if the photos do not connect. The one with the most photos is used, with a warning.
    """
    models = next((models for place in _PLACES if (models := _models(folder / place))), [])
    if len(models) < 2:
        return models[0] if models else None
    names = {model: _names(model) for model in models}
    best = max(models, key=lambda model: len(names[model]))  # the first one if several are equal
    photos = len(set().union(*names.values()))
    unread = [_label(model, folder) for model in models if not names[model]]
    warn(
        f"{_label(best, folder)} of {len(models)} models: {len(names[best])} of {photos} photos; "
        f"give the path of another model in {folder} to use that one"
        + (f" ({', '.join(unread)} cannot be read)" if unread else "")
    )
    return best


def read_colmap(model: Path, images: str | None = None) -> CaptureSource:
    """The registered images of a model, sorted by name, with its points.

    Photos are searched in ``images/`` in the model's folder and up to three folders above (``sparse/0`` is two below
    the project), then in these folders themselves. ``images`` is a folder of reduced copies to prefer, see
    ``find_photos``.

    Raises:
        SceneError: files that are missing, damaged or empty; the message names an invalid line or image.
    """
    suffix, reader = _form(model)
    missing = [name + suffix for name in ("cameras", "images") if not paths.is_file(model / (name + suffix))]
    if missing:
        raise SceneError(
            f"The COLMAP model {model} lacks {', '.join(missing)}.",
            expected="cameras and images, both .bin or both .txt",
            fix="copy or export the whole model again",
        )
    cameras = reader.read_cameras(model / f"cameras{suffix}")
    registered = sorted(reader.read_images(model / f"images{suffix}"), key=lambda image: image.name)
    if not registered:
        raise SceneError(
            f"The COLMAP model {model} has no registered images.",
            expected="at least one image with a pose",
            fix="run COLMAP's mapper again, with more overlap between the photos",
        )
    folder = _image_folder(model, [image.name for image in registered])
    places = find_photos([Listed(folder, image.name) for image in registered], model, images)
    views = [(image, found) for image, found in zip(registered, places, strict=True) if found is not None]
    names = unique_names([found.name for _, found in views], model)
    frames = tuple(_frame(*view, name, cameras, folder) for view, name in zip(views, names, strict=True))
    return CaptureSource(frames, *_points(model / f"points3D{suffix}", reader))


def _models(place: Path) -> list[Path]:
    """The models directly in a folder: numbered ones, then the folder itself.

    Numbered sub-folders with their own ``images`` are scenes, not models of one scene.
    """
    numbers = [entry for entry in paths.entries(place, "[0-9]*") if entry.name.isdecimal()]
    numbered = [folder for folder in sorted(numbers, key=lambda entry: int(entry.name[:9])) if is_model(folder)]
    if len(numbered) > 1:
        numbered = [folder for folder in numbered if not paths.is_dir(folder / "images")]
    return [*numbered, *([place] if is_model(place) else [])]


def is_model(folder: Path) -> bool:
    """Whether a folder directly contains a model's files."""
    return any(paths.is_file(folder / f"images{suffix}") for suffix in (".bin", ".txt"))


def _form(model: Path) -> tuple[str, ModuleType]:
    """The suffix of the files to read, and the module that reads them; binary if both forms are complete."""
    binary_whole, text_whole = (
        all(paths.is_file(model / (name + suffix)) for name in ("cameras", "images")) for suffix in (".bin", ".txt")
    )
    if (text_whole and not binary_whole) or not paths.is_file(model / "images.bin"):
        return ".txt", colmap_text
    return ".bin", colmap_binary


def _names(model: Path) -> set[str]:
    """The names of the registered images; empty if they cannot be read."""
    suffix, reader = _form(model)
    try:
        return {image.name for image in reader.read_images(model / f"images{suffix}")}
    except SceneError:
        return set()


def _label(model: Path, folder: Path) -> str:
    label = model.relative_to(folder).as_posix()
    return "the folder itself" if label == "." else label


def _image_folder(model: Path, names: Sequence[str]) -> Path:
    """The folder that contains the most photos, judged by the first hundred."""
    tried = names[:_MOST_TRIED]
    folders = list(_image_folders(model))
    counts = {folder: sum(is_listed_photo(Listed(folder, name)) for name in tried) for folder in folders}
    best = max(folders, key=lambda folder: counts[folder])
    if counts[best]:
        return best
    raise SceneError(
        f"The image {names[0]} of the COLMAP model {model} was not found.",
        expected=f"the photo in one of {', '.join(str(folder) for folder in folders)}",
        fix="put the photos into a folder 'images' beside 'sparse'",
    )


def _image_folders(model: Path) -> Iterator[Path]:
    near = [model, *paths.absolute(model).parents][:4]
    yield from (folder / "images" for folder in near)
    yield from near


def _frame(
    image: RegisteredImage, found: FoundPhoto, name: str, cameras: dict[int, Camera], folder: Path
) -> CaptureFrame:
    camera = cameras.get(image.camera)
    if camera is None:
        raise SceneError(
            f"{image.label} refers to the camera {image.camera}, which the model does not hold.",
            expected=f"one of {', '.join(str(number) for number in sorted(cameras)[:10])}",
            fix="copy or export the whole model again",
        )
    check_size(camera.width, camera.height, f"camera {image.camera} of the COLMAP model")
    if not np.isfinite(camera.params).all():
        raise SceneError(f"Camera {image.camera} of the COLMAP model has NaN or infinite parameters.")
    # COLMAP works on the stored pixels and ignores the EXIF orientation.
    photo = open_photo(found.file, (camera.width, camera.height), stored_pixels=True)
    masks = colmap_mask(folder, image.name)
    return CaptureFrame(name, photo, fit_lens(_lens(camera), photo), np.linalg.inv(image.w2c), masks=masks, cut=True)


def _lens(camera: Camera) -> Lens:
    params, size = camera.params, (camera.width, camera.height)
    first = _COEFFICIENTS_FROM.get(camera.model)
    if first is None or any(params[first:]):
        return Lens(camera.model, params, *size)
    fx, fy, cx, cy = (params[0], *params[:3]) if first == 3 else params[:4]
    return Lens.pinhole(fx, fy, cx, cy, *size)


def _points(path: Path, reader: ModuleType) -> tuple[Tensor | None, Tensor | None]:
    """The sparse points. They are optional: missing or damaged ones only cause a warning."""
    if not paths.is_visible_file(path):
        warn(f"the COLMAP model {path.parent} lacks {path.name}; its cameras are used without points")
        return None, None
    try:
        xyz, rgb = reader.read_points(path)
    except SceneError as error:
        warn(f"the scene's points are left out: {error.problem}")
        return None, None
    if not len(xyz):
        return None, None
    return torch.from_numpy(xyz.copy()), torch.from_numpy(rgb.astype(np.float32) / 255.0)
