"""Small scenes on disk for the tests of this folder."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ilrm.core.cameras import Cameras
from tests.conftest import make_cameras

FLIP = np.diag([1.0, -1.0, -1.0, 1.0])
# Poses are float64 in scenes that come from files and float32 in made ones.
assert_close = partial(torch.testing.assert_close, check_dtype=False)


def smooth(width: int, height: int, seed: int = 0) -> np.ndarray:
    """uint8 (H, W, 3) with slow waves, so that resampling barely changes it."""
    g = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] + 0.5
    waves = [np.sin(a * x / width + b * y / height + c) for a, b, c in g.uniform(2, 6, (3, 3))]
    return np.rint(127.5 + 100 * np.stack(waves, -1)).astype(np.uint8)


def transforms(cameras: Cameras, files: list[str], **top: Any) -> dict[str, Any]:
    """A nerfstudio description of the cameras; ``top`` replaces or adds top-level values."""
    c2w = cameras.c2w.double().numpy() @ FLIP
    K = cameras.K[0].double()
    values = {
        "fl_x": K[0, 0].item(),
        "fl_y": K[1, 1].item(),
        "cx": K[0, 2].item(),
        "cy": K[1, 2].item(),
        "w": cameras.width,
        "h": cameras.height,
    }
    frames = [{"file_path": file, "transform_matrix": m.tolist()} for file, m in zip(files, c2w, strict=True)]
    return {**values, **top, "frames": frames}


def write_scene(folder: Path, views: int = 3, width: int = 32, height: int = 24) -> tuple[Cameras, dict[str, Any]]:
    """PNG photos and transforms.json; returns the cameras and the JSON value, to be changed and written again."""
    cameras = make_cameras(views, width, height)
    (folder / "images").mkdir(parents=True)
    files = [f"images/{view}.png" for view in range(views)]
    for view, file in enumerate(files):
        Image.fromarray(smooth(width, height, view)).save(folder / file)
    data = transforms(cameras, files)
    write_transforms(folder, data)
    return cameras, data


def write_transforms(folder: Path, data: object) -> None:
    (folder / "transforms.json").write_text(json.dumps(data))


def visible(points: Tensor, cameras: Cameras) -> Tensor:
    """(V, P) whether points (P, 3) project into the images, in front of the cameras."""
    local = torch.einsum("vij,pj->vpi", cameras.w2c[:, :3, :3], points) + cameras.w2c[:, None, :3, 3]
    pixel = torch.einsum("vij,vpj->vpi", cameras.K, local)
    xy = pixel[..., :2] / pixel[..., 2:]
    inside = (xy > 0).all(-1) & (xy < torch.tensor([cameras.width, cameras.height])).all(-1)
    return inside & (local[..., 2] > 0)
