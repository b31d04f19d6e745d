"""Image preparation exactly as in the evaluation of the released networks, including its inaccuracies.

Only comparisons with published numbers need this. Everything else uses the resizing of ``load_scene``, which keeps the
geometry exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ilrm.core.cameras import Cameras
from ilrm.core.errors import SceneError
from ilrm.core.scene import LazyImages, Scene

PATCH_SHIM = 64  # patch size 8 times 8
STRETCH_MULTIPLE = 16  # patch size 8 times viewpoint factor 2

# OpenCV's fixed-point bilinear resize has 11-bit weights; its vertical pass drops 4, then 16, then 2 bits.
_WEIGHT_ONE = 1 << 11


def rescale_and_crop_released(scene: Scene, width: int, height: int) -> Scene:
    """Resize as the two-view release does: Pillow Lanczos to cover the size, then a centre crop.

    The principal point keeps its share of the image (0.5 stays 0.5), although the crop may be half a pixel off centre;
    focal lengths change with the crop only.

    Raises:
        SceneError: an image smaller than the target size.
    """
    h, w = scene.cameras.height, scene.cameras.width
    if width > w or height > h:
        raise SceneError(f"Images of {w}x{h} cannot be cropped to {width}x{height}.", expected="at least that size")
    factor = max(height / h, width / w)
    # Python's rounding, half to even, as released; the side that fits exactly needs no rounding.
    scaled_height, scaled_width = round(h * factor), round(w * factor)

    def prepare(image: Tensor) -> Tensor:
        resized = Image.fromarray(image.numpy()).resize((scaled_width, scaled_height), Image.Resampling.LANCZOS)
        return _centre_crop(torch.from_numpy(np.array(resized)), width, height)

    K = _cropped_intrinsics(scene.cameras.K, (w, h), (scaled_width, scaled_height), (width, height))
    return _replaced(scene, prepare, K, width, height)


def crop_to_multiple_released(scene: Scene, multiple: int = PATCH_SHIM) -> Scene:
    """The two-view release's patch shim: a centre crop to a multiple of ``multiple``, with the same intrinsics rule."""
    h, w = scene.cameras.height, scene.cameras.width
    height, width = h // multiple * multiple, w // multiple * multiple
    if not width or not height:
        raise SceneError(f"Images of {w}x{h} are too small.", expected=f"at least {multiple}x{multiple}")
    K = _cropped_intrinsics(scene.cameras.K, (w, h), (w, h), (width, height))
    return _replaced(scene, lambda image: _centre_crop(image, width, height), K, width, height)


def stretch_to_multiple(scene: Scene, multiple: int = STRETCH_MULTIPLE) -> Scene:
    """Resize as the wide release does: each side is stretched to the nearest multiple (540x960 becomes 544x960)."""
    h, w = scene.cameras.height, scene.cameras.width
    width, height = nearest_multiple(w, multiple), nearest_multiple(h, multiple)
    if not width or not height:
        raise SceneError(f"Images of {w}x{h} are too small.", expected=f"more than {multiple // 2} pixels per side")
    return stretch_released(scene, width, height)


def stretch_released(scene: Scene, width: int, height: int) -> Scene:
    """Stretch images to width x height by OpenCV's bilinear resize; intrinsics are scaled accordingly."""

    def prepare(image: Tensor) -> Tensor:
        return torch.from_numpy(resize_bilinear_opencv(image.numpy(), width, height))

    return _replaced(scene, prepare, scene.cameras.resize(width, height).K, width, height)


def nearest_multiple(side: float, multiple: int = STRETCH_MULTIPLE) -> int:
    """The multiple nearest to ``side``; halves go to the even multiple."""
    return round(side / multiple) * multiple


def resize_bilinear_opencv(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize uint8 (H, W, C) bit for bit like ``cv2.resize`` with INTER_LINEAR.

    Half-pixel aligned and without antialiasing; integer sums with 11-bit weights, as in OpenCV's ``resize.cpp``.
    Halving both sides is a 2x2 mean, as in OpenCV.
    """
    h, w = image.shape[:2]
    if (w, h) == (width, height):
        return image.copy()
    if (w, h) == (2 * width, 2 * height):
        blocks = image.reshape(height, 2, width, 2, -1).astype(np.int32).sum((1, 3))
        return ((blocks + 2) >> 2).astype(np.uint8)
    first, share = _bilinear_positions(w, width)
    # At the border, columns take one neighbour with weight 1 but rows take two clamped neighbours; rounding differs.
    share[(first < 0) | (first >= w - 1)] = 0.0
    weights = _fixed_point(share)[..., None]
    rows = image.astype(np.int32)
    rows = rows[:, first.clip(0, w - 1)] * weights[0] + rows[:, (first + 1).clip(0, w - 1)] * weights[1]
    first, share = _bilinear_positions(h, height)
    weights = _fixed_point(share)[..., None, None]
    upper = (weights[0] * (rows[first.clip(0, h - 1)] >> 4)) >> 16
    lower = (weights[1] * (rows[(first + 1).clip(0, h - 1)] >> 4)) >> 16
    return ((upper + lower + 2) >> 2).clip(0, 255).astype(np.uint8)


def _bilinear_positions(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """For each target pixel, the source index before its centre (-1 to source - 1) and the weight of the one after."""
    position = ((np.arange(target) + 0.5) * (source / target) - 0.5).astype(np.float32)
    first = np.floor(position)
    return first.astype(np.int64), position - first


def _fixed_point(share: np.ndarray) -> np.ndarray:
    """(2, N) integer weights of the two neighbours."""
    return np.rint(np.stack([np.float32(1.0) - share, share]) * np.float32(_WEIGHT_ONE)).astype(np.int32)


def _centre_crop(image: Tensor, width: int, height: int) -> Tensor:
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width].contiguous()


def _cropped_intrinsics(K: Tensor, size: Sequence[int], scaled: Sequence[int], target: Sequence[int]) -> Tensor:
    """Pixel intrinsics for ``target`` (width, height) after scaling to ``scaled`` and a centre crop.

    In units of the image size, focal lengths grow by scaled / target and the principal point is unchanged.
    """
    out = K.clone()
    for axis in (0, 1):
        out[:, axis, axis] *= scaled[axis] / size[axis]
        out[:, axis, 2] *= target[axis] / size[axis]
    return out


def _replaced(scene: Scene, prepare: Callable[[Tensor], Tensor], K: Tensor, width: int, height: int) -> Scene:
    """The scene with ``prepare`` applied to every image on access; the released code has no depth and no masks."""
    readers = [_reader(scene.images, view, prepare) for view in range(len(scene))]
    cameras = Cameras(scene.cameras.c2w, K, width, height)
    return replace(scene, images=LazyImages(readers, height, width), cameras=cameras, depth=None, mask=None)


def _reader(images: Tensor | LazyImages, view: int, prepare: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    def read() -> Tensor:
        if isinstance(images, LazyImages):
            return prepare(images.readers[view]())
        # The released code truncates when it converts [0, 1] to 8 bits; this undoes the division by 255 exactly.
        return prepare((images[view] * 255).to(torch.uint8))

    return read
