"""Writing a scene as files that this package and nerfstudio can read."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ilrm.core.cameras import local_origin_of
from ilrm.core.errors import SceneError
from ilrm.core.scene import LazyImages, Scene
from ilrm.files import atomic_folder, write_json
from ilrm.files.paths import portable
from ilrm.scenes.photos.masks import MASK_FOLDER
from ilrm.scenes.readers.nerfstudio import OPENGL_TO_OPENCV

CameraFile = Literal["transforms.json", "opencv_cameras.json"]
ImageFormat = Literal["png", "jpg"]
_PILLOW_FORMATS: dict[ImageFormat, str] = {"png": "PNG", "jpg": "JPEG"}
_JPEG_QUALITY = 95
LONGEST_STEM = 200  # bytes; file systems allow 255 for the whole name
_FARTHEST_MILLIMETRES = 65535
SCENE_NAMES = ("images/", "depth/", f"{MASK_FOLDER}/", "points.ply", "transforms.json", "opencv_cameras.json")


def save_scene(
    scene: Scene,
    folder: Path | str,
    *,
    camera_file: CameraFile = "transforms.json",
    image_format: ImageFormat = "png",
    notes: Mapping[str, object] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write images, cameras, depth and points into ``folder`` and return the camera file's path.

    transforms.json (nerfstudio, OpenGL axes) stores everything, with depth as 16-bit millimetres and points as
    points.ply. opencv_cameras.json stores images, masks and cameras only. PNG images are lossless. ``notes`` are
    additional values for the top level of the camera file, which readers ignore. Existing files of these names that are
    not from an earlier call are replaced only with ``overwrite``.

    Raises:
        OutputError: the folder cannot be written, or contains other files of these names.
        SceneError: an image cannot be decoded, or depth does not fit into 16-bit millimetres.
    """
    target = Path(folder)
    with atomic_folder(target, SCENE_NAMES, overwrite=overwrite) as out:
        write_scene(scene, out, camera_file=camera_file, image_format=image_format, notes=notes, name=target.name)
    return target / camera_file


def write_scene(
    scene: Scene,
    out: Path,
    *,
    camera_file: CameraFile = "transforms.json",
    image_format: ImageFormat = "png",
    notes: Mapping[str, object] | None = None,
    name: str = "",
    on_image: Callable[[], object] = lambda: None,
) -> None:
    """Write the files of ``save_scene`` into a folder that exists, usually the temporary one of ``atomic_folder``.

    Args:
        name: of the scene, for opencv_cameras.json.
        on_image: called after each image.

    Raises:
        SceneError: as ``save_scene``.
    """
    files = image_names(scene.names, image_format)
    opengl = camera_file == "transforms.json"
    for view, file in enumerate(files):
        (out / "images").mkdir(exist_ok=True)
        (out / "images" / file).write_bytes(encode_image(scene, view, image_format))
        on_image()
    if scene.mask is not None:
        for view, file in enumerate(files):
            _write_mask(scene.mask[view], out / MASK_FOLDER / _map_name(file))
    if opengl and scene.depth is not None:
        for view, file in enumerate(files):
            _write_depth(scene.depth[view], out / "depth" / _map_name(file), scene.names[view])
    if opengl and scene.points is not None:
        _write_points(scene.points, scene.points_rgb, out / "points.ply")
    cameras = (_transforms if opengl else _opencv_cameras)(scene, files, name)
    write_json(out / camera_file, {**(notes or {}), **cameras})


def encode_image(scene: Scene, view: int, image_format: ImageFormat) -> bytes:
    """Encode the image of one view as the bytes of a file. Raises SceneError if it cannot be decoded."""
    if isinstance(scene.images, LazyImages):
        pixels = scene.images.readers[view]()
    else:
        pixels = (scene.images[view].clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    return encode_photo(pixels, image_format)


def encode_photo(pixels: Tensor, image_format: ImageFormat) -> bytes:
    """Encode an image (H, W, 3) uint8 on the CPU as the bytes of a file."""
    stream = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(stream, _PILLOW_FORMATS[image_format], quality=_JPEG_QUALITY)
    return stream.getvalue()


def image_names(names: Sequence[str], image_format: str) -> list[str]:
    """Flat file names: the views' names if they are short and unique without folder and suffix, else numbers."""
    stems = [portable(Path(name).stem) for name in names]
    if len(set(stems)) < len(stems) or any(len(stem.encode()) > LONGEST_STEM for stem in stems):
        stems = [f"{view:06d}" for view in range(len(names))]
    return [f"{stem}.{image_format}" for stem in stems]


def _map_name(file: str) -> str:
    return f"{Path(file).stem}.png"


def _transforms(scene: Scene, files: list[str], _: str) -> dict[str, object]:
    c2w = scene.cameras.c2w.double().cpu().numpy() * OPENGL_TO_OPENCV
    frames = []
    for view, file in enumerate(files):
        depth = {} if scene.depth is None else {"depth_file_path": f"depth/{_map_name(file)}"}
        mask = _mask_entry(scene, file)
        intrinsics = _intrinsics(scene, view, "fl_x", "fl_y")
        pose = c2w[view].tolist()
        frames.append({"file_path": f"images/{file}", "transform_matrix": pose, **intrinsics, **depth, **mask})
    points = {} if scene.points is None else {"ply_file_path": "points.ply"}
    return {"camera_model": "OPENCV", **points, "frames": frames}


def _opencv_cameras(scene: Scene, files: list[str], name: str) -> dict[str, object]:
    w2c = np.linalg.inv(scene.cameras.c2w.double().cpu().numpy())
    frames = [
        {
            "file_path": f"images/{file}",
            "w2c": w2c[view].tolist(),
            **_intrinsics(scene, view, "fx", "fy"),
            **_mask_entry(scene, file),
        }
        for view, file in enumerate(files)
    ]
    return {"scene_name": name, "frames": frames}


def _mask_entry(scene: Scene, file: str) -> dict[str, str]:
    return {} if scene.mask is None else {"mask_path": f"{MASK_FOLDER}/{_map_name(file)}"}


def _intrinsics(scene: Scene, view: int, fx: str, fy: str) -> dict[str, float]:
    K = scene.cameras.K[view].double()
    values = {fx: K[0, 0].item(), fy: K[1, 1].item(), "cx": K[0, 2].item(), "cy": K[1, 2].item()}
    return {**values, "w": scene.cameras.width, "h": scene.cameras.height}


def _write_mask(mask: Tensor, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(mask.cpu().numpy().astype(np.uint8) * 255).save(path)


def _write_depth(depth: Tensor, path: Path, name: str) -> None:
    path.parent.mkdir(exist_ok=True)
    millimetres = (depth.double() * 1000).round().cpu().numpy()
    if not (np.isfinite(millimetres).all() and 0 <= millimetres.min() <= millimetres.max() <= _FARTHEST_MILLIMETRES):
        raise SceneError(
            f"The depth of {name} ranges from {depth.min():g} to {depth.max():g}.",
            expected="0 (unknown) to 65.535 metres, the range of 16-bit millimetres",
            fix="rescale the scene, or leave out its depth",
        )
    Image.fromarray(millimetres.astype(np.uint16)).save(path)


def _write_points(points: Tensor, rgb: Tensor | None, path: Path) -> None:
    far = bool(local_origin_of(points).any())
    fields = [(axis, "<f8" if far else "<f4") for axis in "xyz"]
    header = "".join(f"property {'double' if far else 'float'} {axis}\n" for axis in "xyz")
    if rgb is not None:
        fields += [(colour, "u1") for colour in ("red", "green", "blue")]
        header += "".join(f"property uchar {colour}\n" for colour in ("red", "green", "blue"))
    table = np.empty(len(points), dtype=fields)
    for column, axis in enumerate("xyz"):
        table[axis] = points[:, column].cpu().numpy()
    if rgb is not None:
        for column, colour in enumerate(("red", "green", "blue")):
            table[colour] = (rgb[:, column].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    start = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n{header}end_header\n"
    path.write_bytes(start.encode() + table.tobytes())
