"""From frames on disk to a scene: undistort, resize to one size, check.

Every reader converts its file format to a ``CaptureSource``; ``assemble`` makes a ``Scene`` of that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ilrm.core.cameras import Cameras
from ilrm.core.errors import SceneError
from ilrm.core.scene import LazyImages, LazyMasks, Scene
from ilrm.files.image_files import MAX_PIXELS, check_budget
from ilrm.scenes.framing import Framing
from ilrm.scenes.lenses.models import Lens
from ilrm.scenes.photos.depth_maps import load_depth
from ilrm.scenes.photos.images import Photo, Size, same_aspect
from ilrm.scenes.photos.masks import MaskFile, open_masks, read_mask

# Smaller errors of a rotation are rounding of the digits in the file; Cameras.check refuses larger ones.
_CLEANABLE_ROTATION_ERROR = 1e-3


@dataclass(frozen=True, eq=False)
class CaptureFrame:
    """One photo with its camera, as a file describes it.

    Attributes:
        name: unique in its scene.
        photo: the image.
        lens: with parameters for the photo's own size.
        c2w: (4, 4) float64 camera-to-world, OpenCV axes.
        depth: optional file of z-depth, of the photo's aspect, 0 where unknown; see ``read_depth``.
        masks: files that say which pixels count; of the photo's aspect.
        cut: True if transparent pixels of the photo do not count; otherwise they are white background.
    """

    name: str
    photo: Photo
    lens: Lens
    c2w: np.ndarray
    depth: Path | None = None
    masks: tuple[MaskFile, ...] = ()
    cut: bool = False


@dataclass(frozen=True, eq=False)
class CaptureSource:
    """The result of a reader.

    Attributes:
        frames: at least one.
        points, points_rgb: optional (P, 3) surface points and their colours in [0, 1].
        holdout: names of the frames that the file declares as test views.
    """

    frames: tuple[CaptureFrame, ...]
    points: Tensor | None = None
    points_rgb: Tensor | None = None
    holdout: tuple[str, ...] = ()


def fit_lens(lens: Lens, photo: Photo) -> Lens:
    """The lens scaled to the photo's real size, if the file gives intrinsics for another resolution.

    Raises:
        SceneError: the photo has another aspect ratio than the declared size.
    """
    real = (photo.width, photo.height)
    if lens.size == real:
        return lens
    if not same_aspect(lens.size, real):
        raise SceneError(
            f"{photo.label} is {real[0]}x{real[1]}, but its intrinsics are for {lens.width}x{lens.height}.",
            expected="the declared size, or a scaled copy of it",
            fix="use the images that were calibrated, or correct w and h",
        )
    return lens.resize(*real)


def assemble(
    source: CaptureSource, *, max_side: int | None = None, size: Size | None = None, max_pixels: int | None = MAX_PIXELS
) -> Scene:
    """Assemble a scene at one size and without distortion.

    The size is ``size`` if given. Otherwise it is the most common size of the undistorted photos, reduced so that the
    longer side is at most ``max_side``. Photos of another aspect are scaled to cover this size and centre-cropped, and
    their principal point is adjusted. ``max_pixels`` limits the memory for decoding, see ``load_scene``.

    Depth and masks that cannot be used are left out with a warning.

    Raises:
        SceneError: a size that is not positive, a photo above ``max_pixels``.
        CameraError: an invalid pose or intrinsic; the message names the view.
    """
    frames = source.frames
    if max_pixels is not None:
        for frame in frames:
            check_budget(frame.photo.label, frame.photo.header.cost, max_pixels)
    pinholes = [frame.lens.undistorted(frame.photo.label) for frame in frames]
    width, height = _scene_size([lens.size for lens in pinholes], max_side, size)
    framings = [
        Framing.cover(frame.lens, pinhole, (width, height)) for frame, pinhole in zip(frames, pinholes, strict=True)
    ]
    intrinsics = np.stack([framing.matrix for framing in framings])
    c2w = np.stack([clean_rotation(frame.c2w) for frame in frames])
    cameras = Cameras(torch.from_numpy(c2w), torch.from_numpy(intrinsics), width, height)
    names = tuple(frame.name for frame in frames)
    cameras.check(names)
    readers = [partial(framing.colours, frame.photo) for frame, framing in zip(frames, framings, strict=True)]
    return Scene(
        images=LazyImages(readers, height, width),
        cameras=cameras,
        names=names,
        mask=_masks(frames, framings, max_pixels),
        depth=load_depth([frame.depth for frame in frames], framings, max_pixels),
        points=None if source.points is None else source.points.double(),
        points_rgb=source.points_rgb,
    )


def _masks(frames: Sequence[CaptureFrame], framings: Sequence[Framing], max_pixels: int | None) -> LazyMasks | None:
    """The masks of all views; None if every pixel counts."""
    photos, files, cut = zip(*((frame.photo, frame.masks, frame.cut) for frame in frames), strict=True)
    masks = open_masks(photos, files, cut, max_pixels)
    if not any(masks):
        return None
    width, height = framings[0].size
    readers = [partial(read_mask, of_view, framing) for of_view, framing in zip(masks, framings, strict=True)]
    return LazyMasks(readers, height, width)


def clean_rotation(c2w: np.ndarray) -> np.ndarray:
    """Replace the rotation of a pose by the nearest orthonormal one, if the difference is only rounding in the file.

    There is no lower threshold on the error: it would depend on the world frame, the nearest rotation does not.
    """
    rotation = c2w[:3, :3]
    error = np.abs(rotation.T @ rotation - np.eye(3)).max()
    if not error <= _CLEANABLE_ROTATION_ERROR:  # NaN fails the comparison
        return c2w
    left, _, right = np.linalg.svd(rotation)
    cleaned = c2w.copy()
    cleaned[:3, :3] = left @ right
    return cleaned


def _scene_size(sizes: Sequence[Size], max_side: int | None, size: Size | None) -> Size:
    if size is not None:
        if min(size) < 1:
            raise SceneError(f"The requested size is {size[0]}x{size[1]}.", expected="at least 1x1 pixel")
        return size
    width, height = Counter(sizes).most_common(1)[0][0]
    if max_side is None or max(width, height) <= max_side:
        return width, height
    if max_side < 1:
        raise SceneError(f"The requested longest side is {max_side}.", expected="at least 1 pixel")
    factor = max_side / max(width, height)
    return max(1, round(width * factor)), max(1, round(height * factor))
