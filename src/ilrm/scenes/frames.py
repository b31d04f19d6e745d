"""From frames on disk to a scene: undistort, bring to one size, check.

Every loader turns its file format into a ``Source``; ``assemble`` is the one road from there to a ``Scene``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ilrm.cameras import Cameras
from ilrm.errors import SceneError
from ilrm.scene import LazyImages, Scene
from ilrm.scenes.images import Photo, Size, same_aspect
from ilrm.scenes.lenses import Lens, remap

# Rotations with a larger error are refused by Cameras.check; smaller ones are rounding of the file's digits.
_CLEANABLE_ROTATION_ERROR = 1e-3

Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Frame:
    """One photo with its camera, as a file describes it.

    Attributes:
        name: unique in its scene.
        photo: the image.
        lens: for the photo's own size.
        c2w: (4, 4) float64 camera-to-world, OpenCV axes.
        depth: optional file of z-depth in millimetres (16-bit PNG or .npy), of the photo's aspect, 0 where unknown.
    """

    name: str
    photo: Photo
    lens: Lens
    c2w: np.ndarray
    depth: Path | None = None


@dataclass(frozen=True, eq=False)
class Source:
    """What a loader found.

    Attributes:
        frames: at least one.
        points, points_rgb: optional (P, 3) surface points and their colours in [0, 1].
        holdout: names of the frames that the file sets aside for testing.
    """

    frames: tuple[Frame, ...]
    points: Tensor | None = None
    points_rgb: Tensor | None = None
    holdout: tuple[str, ...] = ()


def fit_lens(lens: Lens, photo: Photo) -> Lens:
    """The lens for the photo's real size, where a file declared its intrinsics for another resolution.

    Raises:
        SceneError: the photo has another shape than the one declared.
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


def assemble(source: Source, *, max_side: int | None = None, size: Size | None = None) -> Scene:
    """The scene of a source's frames, at one size and without distortion.

    The size is ``size`` if given, else the most common one of the (undistorted) photos, reduced so that its longer
    side is at most ``max_side``. A photo of another aspect is scaled to cover it and centre-cropped; its principal
    point moves along.

    Raises:
        SceneError: a size that is not positive, depth that does not belong to its photo.
        CameraError: a pose or intrinsic that no camera can have; the message names the view.
    """
    frames = source.frames
    pinholes = [frame.lens.undistorted(frame.photo.label) for frame in frames]
    width, height = _scene_size([lens.size for lens in pinholes], max_side, size)
    boxes = [_cover(lens.size, (width, height)) for lens in pinholes]
    intrinsics = [_boxed(lens.matrix(), box, width, height) for lens, box in zip(pinholes, boxes, strict=True)]
    c2w = np.stack([clean_rotation(frame.c2w) for frame in frames])
    cameras = Cameras(torch.from_numpy(c2w), torch.from_numpy(np.stack(intrinsics)), width, height)
    names = tuple(frame.name for frame in frames)
    cameras.check(names)
    readers = [_reader(*view, width, height) for view in zip(frames, pinholes, boxes, strict=True)]
    return Scene(
        images=LazyImages(readers, height, width),
        cameras=cameras,
        names=names,
        depth=_depth(frames, pinholes, boxes, width, height),
        points=None if source.points is None else source.points.double(),
        points_rgb=source.points_rgb,
    )


def clean_rotation(c2w: np.ndarray) -> np.ndarray:
    """The pose with the nearest true rotation, where the stored one is off by no more than its printed digits.

    Always, however small the error: the nearest rotation moves along with the world, a threshold would not.
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
            raise SceneError(f"The size {size[0]}x{size[1]} was asked for.", expected="at least 1x1 pixel")
        return size
    width, height = Counter(sizes).most_common(1)[0][0]
    if max_side is None or max(width, height) <= max_side:
        return width, height
    if max_side < 1:
        raise SceneError(f"A longest side of {max_side} was asked for.", expected="at least 1 pixel")
    factor = max_side / max(width, height)
    return max(1, round(width * factor)), max(1, round(height * factor))


def _cover(source: Size, target: Size) -> Box:
    """The part (left, top, right, bottom) of a photo that is stretched to the target size: its centre, as large as
    the target's aspect allows; all of it where the aspects agree but for rounding."""
    (w, h), (width, height) = source, target
    if same_aspect(source, target):
        return 0.0, 0.0, float(w), float(h)
    scale = max(width / w, height / h)
    x, y = (w - width / scale) / 2, (h - height / scale) / 2
    return max(x, 0.0), max(y, 0.0), min(w - x, float(w)), min(h - y, float(h))


def _boxed(K: np.ndarray, box: Box, width: int, height: int) -> np.ndarray:
    left, top, right, bottom = box
    x, y = width / (right - left), height / (bottom - top)
    stretch = np.array([[x, 0, -left * x], [0, y, -top * y], [0, 0, 1]])
    return stretch @ K


def _reader(frame: Frame, pinhole: Lens, box: Box, width: int, height: int) -> Callable[[], Tensor]:
    def read() -> Tensor:
        pixels = torch.from_numpy(frame.photo.decode())
        if frame.lens.distorted:
            pixels = remap(pixels, frame.lens, pinhole).round().clamp(0, 255).to(torch.uint8)
        if (width, height) == pinhole.size and box == (0.0, 0.0, *pinhole.size):
            return pixels
        resized = Image.fromarray(pixels.numpy()).resize((width, height), Image.Resampling.LANCZOS, box=box)
        return torch.from_numpy(np.array(resized))

    return read


def _depth(
    frames: Sequence[Frame], pinholes: Sequence[Lens], boxes: Sequence[Box], width: int, height: int
) -> Tensor | None:
    """(V, height, width) metres, or None where no frame has depth. Nearest neighbour: depths are never mixed."""
    if all(frame.depth is None for frame in frames):
        return None
    out = torch.zeros(len(frames), height, width)
    for view, (frame, pinhole, box) in enumerate(zip(frames, pinholes, boxes, strict=True)):
        if frame.depth is None:
            continue
        depth = read_depth(frame.depth)
        if not same_aspect((depth.shape[1], depth.shape[0]), frame.lens.size):
            raise SceneError(
                f"{frame.depth} is {depth.shape[1]}x{depth.shape[0]}, "
                f"but its image is {frame.lens.width}x{frame.lens.height}.",
                expected="a depth map of the image's shape",
            )
        if frame.lens.distorted:
            depth = remap(torch.from_numpy(depth)[..., None], frame.lens, pinhole, nearest=True)[..., 0].numpy()
        x, y = depth.shape[1] / pinhole.width, depth.shape[0] / pinhole.height
        scaled = (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
        resized = Image.fromarray(depth).resize((width, height), Image.Resampling.NEAREST, box=scaled)
        out[view] = torch.from_numpy(np.array(resized))
    return out


def read_depth(path: Path) -> np.ndarray:
    """(H, W) float32 metres out of 16-bit millimetres (PNG) or an .npy array of millimetres."""
    try:
        if path.suffix == ".npy":
            millimetres = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as image:
                millimetres = np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SceneError(f"The depth map {path} cannot be read: {error}.", fix="restore or remove it") from error
    if millimetres.ndim != 2:
        raise SceneError(f"The depth map {path} has shape {millimetres.shape}.", expected="one channel")
    return (millimetres.astype(np.float64) / 1000.0).astype(np.float32)
