"""cameras.json beside a splat file, in the layout of opencv_cameras.json: pixels and world-to-camera matrices.

The file of that name that INRIA's Gaussian-splatting trainer writes, a JSON list, can be read as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ilrm.core.cameras import Cameras
from ilrm.core.errors import CameraError
from ilrm.files import write_json
from ilrm.files.reading import read_json

WORLD_OFFSET = "world_offset"
# Largest side of an image in pixels. Code that renders at the cameras' size has a smaller limit.
LARGEST_SIDE = 1 << 20
# The exceptions that parsing JSON of an unexpected structure may raise.
MALFORMED = (ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError, ArithmeticError)
_EXPECTED = (
    'a JSON file {"frames": [{"file_path", "w", "h", "fx", "fy", "cx", "cy", "w2c"}]}, or what INRIA\'s trainer '
    'writes: [{"img_name", "width", "height", "position", "rotation", "fx", "fy"}]'
)


def save_cameras(cameras: Cameras, names: Sequence[str], path: Path | str, origin: Tensor | None = None) -> None:
    """Write V cameras with their names; poses are in the world, in full precision.

    Args:
        origin: (3,) point of the world that the Gaussians beside the file are relative to. It is written as
            "world_offset" if it is not zero.

    Raises:
        OutputError: the file cannot be written.
    """
    K, w2c = cameras.K.double().cpu(), torch.linalg.inv(cameras.c2w.double().cpu())
    frames = [
        {
            "file_path": name,
            "w": cameras.width,
            "h": cameras.height,
            **{"fx": K[i, 0, 0].item(), "fy": K[i, 1, 1].item(), "cx": K[i, 0, 2].item(), "cy": K[i, 1, 2].item()},
            "w2c": w2c[i].tolist(),
        }
        for i, name in enumerate(names)
    ]
    offset = {} if origin is None or not origin.any() else {WORLD_OFFSET: origin.tolist()}
    write_json(path, {**offset, "frames": frames})


def world_offset_beside(path: Path) -> Tensor:
    """(3,) float64 "world_offset" of the cameras.json beside a file; zeros if there is none."""
    try:
        content = read_json(path.with_name("cameras.json"), CameraError)
        offset = torch.tensor(content[WORLD_OFFSET], dtype=torch.float64)
    except (CameraError, ValueError, KeyError, TypeError, RuntimeError):
        return torch.zeros(3, dtype=torch.float64)  # another program's file, or a near world
    usable = tuple(offset.shape) == (3,) and bool(torch.isfinite(offset).all())
    return offset if usable else torch.zeros(3, dtype=torch.float64)


def load_cameras(path: Path | str) -> tuple[Cameras, tuple[str, ...]]:
    """Read a file of ``save_cameras``, or the cameras.json of INRIA's trainer, in float64; needs no images.

    Raises:
        CameraError: not such a file, or invalid cameras.
    """
    content = read_json(path, CameraError)
    try:
        frames = content if isinstance(content, list) else content["frames"]
        views = [_inria_camera(frame) if "position" in frame else _opencv_camera(frame) for frame in frames]
        if not views:
            raise ValueError("it lists no cameras")
        c2w = torch.stack([view[0] for view in views])
        (width, height), _ = Counter(view[2] for view in views).most_common(1)[0]
        # Images of several sizes are treated as stretched to the most frequent one; each camera still sees the same.
        stretch = [[width / w, height / h, 1.0] for _, _, (w, h) in views]
        K = torch.stack([view[1] for view in views]) * torch.tensor(stretch, dtype=torch.float64)[:, :, None]
        names = tuple(str(frame.get("file_path", frame.get("img_name"))) for frame in frames)
    except MALFORMED as error:
        raise CameraError(f"{path} is not a camera file: {in_words(error)}.", expected=_EXPECTED) from error
    return Cameras(c2w, K, width, height).check(names), names


def find_names(names: Sequence[str], photos: Sequence[str]) -> list[int | None]:
    """The index into ``photos`` of each camera's photo; None if there is none.

    INRIA's trainer writes names without folder and suffix. If no name equals a photo's, the photos' stems are compared.
    """
    places = {photo: index for index, photo in enumerate(photos)}
    if not any(name in places for name in names):
        stems = Counter(Path(photo).stem for photo in photos)
        places = {Path(photo).stem: index for index, photo in enumerate(photos) if stems[Path(photo).stem] == 1}
    return [places.get(name) for name in names]


_View = tuple[Tensor, Tensor, tuple[int, int]]  # c2w (4, 4), K (3, 3), size


def _opencv_camera(frame: dict[str, Any]) -> _View:
    w2c = torch.tensor(frame["w2c"], dtype=torch.float64).reshape(4, 4)
    return torch.linalg.inv(w2c), _intrinsics(frame, frame["cx"], frame["cy"]), image_size(frame["w"], frame["h"])


def _inria_camera(frame: dict[str, Any]) -> _View:
    """A camera of INRIA's trainer: its rotation is camera-to-world, its principal point is the image centre."""
    width, height = image_size(frame["width"], frame["height"])
    c2w = torch.eye(4, dtype=torch.float64)
    c2w[:3, :3] = torch.tensor(frame["rotation"], dtype=torch.float64).reshape(3, 3)
    c2w[:3, 3] = torch.tensor(frame["position"], dtype=torch.float64).reshape(3)
    return c2w, _intrinsics(frame, width / 2, height / 2), (width, height)


def in_words(error: Exception) -> str:
    """One of ``MALFORMED`` as a phrase for a message."""
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]


def _intrinsics(frame: dict[str, Any], cx: float, cy: float) -> Tensor:
    return torch.tensor([[frame["fx"], 0, cx], [0, frame["fy"], cy], [0, 0, 1]], dtype=torch.float64)


def image_size(width: float, height: float) -> tuple[int, int]:
    """Width and height in whole pixels, checked. Raises ValueError with a phrase for a message."""
    for side in (width, height):
        if not 1 <= side <= LARGEST_SIDE:
            raise ValueError(f"an image of {width:.6g}x{height:.6g} pixels; sides are 1 to {LARGEST_SIDE}")
    return int(width), int(height)
