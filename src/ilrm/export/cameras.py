"""Cameras as a JSON file, in the layout of opencv_cameras.json: pixels and world-to-camera matrices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ilrm.cameras import Cameras
from ilrm.errors import CameraError
from ilrm.files import write_json
from ilrm.reading import read_json

WORLD_OFFSET = "world_offset"
_EXPECTED = 'a JSON file {"frames": [{"file_path", "w", "h", "fx", "fy", "cx", "cy", "w2c"}]} with frames of one size'


def save_cameras(cameras: Cameras, names: Sequence[str], path: Path | str, origin: Tensor | None = None) -> None:
    """Write V cameras with their names; poses are those in the world, in full precision.

    Args:
        origin: (3,) point of the world that the Gaussians beside the file are counted from. It is written as
            "world_offset" where it is not zero.

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
    """(3,) float64 "world_offset" of the cameras.json beside a file; zeros where there is none."""
    try:
        content = read_json(path.with_name("cameras.json"), CameraError)
        offset = torch.tensor(content[WORLD_OFFSET], dtype=torch.float64)
    except (CameraError, ValueError, KeyError, TypeError, RuntimeError):
        return torch.zeros(3, dtype=torch.float64)  # another program's file, or a near world
    usable = tuple(offset.shape) == (3,) and bool(torch.isfinite(offset).all())
    return offset if usable else torch.zeros(3, dtype=torch.float64)


def load_cameras(path: Path | str) -> tuple[Cameras, tuple[str, ...]]:
    """Read what ``save_cameras`` wrote, in float64; no images are needed.

    Raises:
        CameraError: not such a file, or impossible cameras.
    """
    try:
        frames = read_json(path, CameraError)["frames"]
        w2c = torch.tensor([frame["w2c"] for frame in frames], dtype=torch.float64)
        K = torch.tensor(
            [[[f["fx"], 0, f["cx"]], [0, f["fy"], f["cy"]], [0, 0, 1]] for f in frames], dtype=torch.float64
        )
        ((width, height),) = {(int(frame["w"]), int(frame["h"])) for frame in frames}
        names = tuple(str(frame["file_path"]) for frame in frames)
        c2w = torch.linalg.inv(w2c)
    except (ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
        raise CameraError(f"Cannot read cameras from {path}: {error!r}.", expected=_EXPECTED) from error
    return Cameras(c2w, K, width, height).check(names), names
