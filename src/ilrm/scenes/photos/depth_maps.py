"""Depth maps beside photos. They are optional: unusable ones are left out with one warning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ilrm.core.errors import SceneError, warn
from ilrm.files.image_files import MAX_PIXELS, open_image
from ilrm.scenes.framing import Framing
from ilrm.scenes.photos.images import same_aspect

_KINDS = "one channel: 16-bit integers in millimetres (PNG, TIFF, .npy), or floats in metres (TIFF, .npy)"


def load_depth(files: Sequence[Path | None], framings: Sequence[Framing], max_pixels: int | None) -> Tensor | None:
    """Depth of V views (V, height, width) in metres, 0 where unknown; None if no view has any.

    Args:
        files: for each view a map with the photo's aspect, or None.
        framings: the mapping from each photo to its view.
        max_pixels: maps of more pixels are left out.
    """
    width, height = framings[0].size
    out, problems = torch.zeros(len(files), height, width), []
    for view, (file, framing) in enumerate(zip(files, framings, strict=True)):
        if file is None:
            continue
        try:
            out[view] = framing.depths(_of_photo(file, framing, max_pixels))
        except SceneError as error:
            problems.append(error.problem)
    listed = sum(file is not None for file in files)
    if problems:
        warn(f"the depth of {len(problems)} of {listed} photos is left out: {problems[0]}")
    return out if listed > len(problems) else None


def _of_photo(file: Path, framing: Framing, max_pixels: int | None) -> np.ndarray:
    depth = read_depth(file, max_pixels=max_pixels)
    size, (width, height) = (depth.shape[1], depth.shape[0]), framing.lens.size
    if not same_aspect(size, framing.lens.size):
        raise SceneError(
            f"{file} is {size[0]}x{size[1]}, but its image is {width}x{height}.",
            expected="a depth map of the image's shape",
        )
    return depth


def read_depth(path: Path, *, max_pixels: int | None = MAX_PIXELS) -> np.ndarray:
    """Read a depth map (H, W) as float32 metres; 0 where the file has no positive finite number.

    Integers are millimetres, floats are metres.

    Raises:
        SceneError: no such file; EXR, colours or anything else that is not a depth map; more pixels than allowed.
    """
    try:
        return _array(path, max_pixels) if path.suffix.lower() == ".npy" else _image(path, max_pixels)
    except (SceneError, MemoryError) as error:
        if isinstance(error, SceneError) and path.suffix.lower() == ".exr":
            raise SceneError(f"{path} is an EXR file, which is not read.", expected=_KINDS) from error
        raise
    except Exception as error:  # numpy's reader raises anything on malformed headers
        problem = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        raise SceneError(f"The depth map {path} {problem}.", expected=_KINDS, fix="restore or remove it") from error


def _array(path: Path, max_pixels: int | None) -> np.ndarray:
    # Mapped instead of read, because a header may declare any size.
    with np.errstate(over="ignore"):
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(stored, np.ndarray):
        stored.close()
        raise SceneError(f"The depth map {path} is an .npz archive.", expected=_KINDS)
    if stored.ndim == 3 and stored.shape[-1] == 1:
        stored = stored[..., 0]
    if stored.ndim != 2 or stored.dtype.kind not in "iuf" or min(stored.shape) < 1:
        raise SceneError(f"The depth map {path} has shape {stored.shape} of {stored.dtype.name}.", expected=_KINDS)
    if max_pixels is not None and stored.size > max_pixels:
        raise SceneError(f"The depth map {path} has {stored.size} values.", expected=f"at most {max_pixels}")
    return _metres(stored)


def _image(path: Path, max_pixels: int | None) -> np.ndarray:
    with open_image(path, max_pixels=max_pixels) as image:
        if not (image.mode == "F" or image.mode.startswith("I")):
            raise SceneError(f"The depth map {path} is an 8-bit image of mode {image.mode}.", expected=_KINDS)
        return _metres(np.asarray(image))


def _metres(stored: np.ndarray) -> np.ndarray:
    scale = 1.0 if stored.dtype.kind == "f" else 1e-3
    with np.errstate(over="ignore", invalid="ignore"):
        metres = (stored.astype(np.float64) * scale).astype(np.float32)
        return np.where(np.isfinite(metres) & (metres > 0), metres, np.float32(0))
