"""Captures of real places as endless training samples: decoded once, then cut and developed in ever new ways."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ilrm.core.cameras import Cameras
from ilrm.core.errors import SceneError
from ilrm.core.scene import Scene
from ilrm.datasets.dataset import find_scenes
from ilrm.files import paths
from ilrm.scenes.frames import assemble
from ilrm.scenes.load import has_cameras, read_source
from ilrm.scenes.readers.records import listing
from ilrm.train.data.neighbours import choose_neighbours, shared
from ilrm.train.data.options import DISPLAY_GAMMA, Captures
from ilrm.train.data.visibility import project, seen_points

# As many points as say where surfaces are; the rest would take time.
_MOST_POINTS = 2000
# Captures in the memory of a process: 28 photos of 320x240 are 6 MB.
_KEPT = 64


@dataclass(frozen=True, eq=False)
class Capture:
    """A scene in memory.

    Attributes:
        photos: (V, H, W, 3) uint8.
        cameras: V cameras of that size, in the world of the capture.
        points: (P, 3) sparse points.
        seen: (V, P) which view sees which of them.
        share: (V, V) how much of its surface each view shares with each, see ``neighbours``.
    """

    photos: Tensor
    cameras: Cameras
    points: Tensor
    seen: Tensor
    share: Tensor


@dataclass(frozen=True)
class CaptureSource:
    """Captures on disk.

    Attributes:
        label: the path that the config names.
        keys: of the scenes used, in a fixed order.
        root: what the keys are relative to.
    """

    config: Captures
    label: str
    keys: tuple[str, ...]
    root: Path

    def draw(self, key: str, inputs: int, targets: int, size: tuple[int, int], rng: np.random.Generator) -> Scene:
        """A sample of a scene: its inputs, then its targets, at ``size`` (height, width), with sparse depth.

        Raises:
            SceneError: a scene that cannot be read. TooFewFrames: one with too few photos.
        """
        config, capture = self.config, _load(self.root / key, self.config.max_side)
        views = choose_neighbours(capture.share, rng, inputs, targets, span=config.span, overlap=config.overlap)
        chosen = [*views.inputs, *views.targets]
        window = draw_window(capture.cameras, size, config, rng)
        gains = draw_gains(config, rng)
        return cut(capture, chosen, window, size, gains)


def open_captures(config: Captures, path: Path) -> CaptureSource:
    """Look at what a folder holds; no scene is read. Raises SceneError."""
    refs = find_scenes(path)
    if any(ref.key is not None for ref in refs):
        raise SceneError(f"{path} holds chunks, not folders of scenes.", fix='use a source of the kind "chunks"')
    root = path.parent if paths.is_file(path) or has_cameras(path) else path
    keys = tuple(Path(os.path.relpath(ref.path, root)).as_posix() for ref in refs)
    if unknown := [name for name in (*config.only, *config.leave_out) if name not in keys]:
        raise SceneError(
            f"{path} holds no {listing(unknown)}, which the config names.",
            expected=f"some of {', '.join(keys)}",
            fix="correct only or leave_out",
        )
    used = tuple(key for key in keys if key not in config.leave_out and (not config.only or key in config.only))
    if not used:
        raise SceneError(f"All {len(keys)} scenes of {path} are left out.", expected="at least one that is used")
    return CaptureSource(config, str(path), used, root)


@lru_cache(maxsize=_KEPT)
def _load(path: Path, max_side: int) -> Capture:
    return load_capture(path, max_side)


def load_capture(path: Path, max_side: int) -> Capture:
    """Decode a scene and find out what its views have in common. Raises SceneError, CameraError."""
    scene = assemble(read_source(path), max_side=max_side)
    photos = torch.stack([(scene.images[view] * 255).round().byte() for view in range(len(scene))])
    points, seen = scene.cameras.c2w.new_zeros(0, 3), torch.zeros(len(scene), 0, dtype=torch.bool)
    if scene.points is not None and len(scene.points):
        points = scene.points[:: -(-len(scene.points) // _MOST_POINTS)]
        seen = seen_points(photos.float().mean(-1) / 255, scene.cameras, points)
    return Capture(photos, scene.cameras, points, seen, shared(scene.cameras, seen if len(points) else None))


# --- one sample ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """The part (left, top, width, height) of all photos of a capture that a sample shows, in pixels."""

    left: float
    top: float
    width: float
    height: float


def draw_window(cameras: Cameras, size: tuple[int, int], config: Captures, rng: np.random.Generator) -> Window:
    """A window of the shape of ``size`` (height, width), at a place and of a size by chance."""
    reduction = min(cameras.height / size[0], cameras.width / size[1])  # of the largest window
    most = max(1.0, min(config.zoom, reduction * config.magnify))
    zoom = math.exp(rng.uniform(0.0, math.log(most)))
    height, width = (side * reduction / zoom for side in size)
    # All of a photo is shown from its middle, where no chance is left.
    left, top = (rng.uniform(0.0, max(room, 0.0)) for room in (cameras.width - width, cameras.height - height))
    if config.zoom == 1.0:
        left, top = (cameras.width - width) / 2, (cameras.height - height) / 2
    return Window(left, top, width, height)


def draw_gains(config: Captures, rng: np.random.Generator) -> Tensor:
    """(3,) factors of red, green and blue, of values as they are displayed."""
    stops = rng.normal(0.0, config.exposure)
    red, blue = rng.normal(0.0, config.white_balance, 2)
    light = 2.0**stops * np.exp([red, 0.0, blue])
    return torch.from_numpy(light ** (1 / DISPLAY_GAMMA)).float()


def cut(capture: Capture, views: Sequence[int], window: Window, size: tuple[int, int], gains: Tensor) -> Scene:
    """Some views of a capture through a window, at ``size`` (height, width).

    Args:
        gains: (3,) factors of the colours; what gets brighter than white is white.
    """
    height, width = size
    box = (window.left, window.top, window.left + window.width, window.top + window.height)
    cameras = capture.cameras[views]
    scale = cameras.K.new_tensor([width / window.width, height / window.height, 1.0])
    K = cameras.K.clone()
    K[:, :2, 2] -= K.new_tensor([window.left, window.top])
    cameras = Cameras(cameras.c2w, scale[:, None] * K, width, height)
    images = np.stack(
        [
            np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.LANCZOS, box=box))
            for photo in capture.photos[list(views)].numpy()
        ]
    )
    coloured = (torch.from_numpy(images).float() / 255 * gains).clamp_(0.0, 1.0)
    names = tuple(f"view_{view:03d}" for view in views)
    depth = sparse_depth(capture.points, capture.seen[list(views)], cameras) if len(capture.points) else None
    return Scene(coloured, cameras, names, depth)


def sparse_depth(points: Tensor, seen: Tensor, cameras: Cameras) -> Tensor:
    """(V, H, W) z-depth of the points (P, 3) that views see, at the four pixels around each; 0 elsewhere.

    Four, so that one of them is looked at when every other pixel of every other row is. The nearest point counts.

    Args:
        seen: (V, P) bool.
    """
    xy, z = project(points, cameras)
    height, width = cameras.height, cameras.width
    depth = torch.full((len(z), height * width), torch.inf)
    corner = (xy - 0.5).floor().long()
    for x, y in ((0, 0), (1, 0), (0, 1), (1, 1)):
        column, row = corner[..., 0] + x, corner[..., 1] + y
        there = seen & (z > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        place = torch.where(there, row * width + column, 0)
        depth.scatter_reduce_(1, place, torch.where(there, z.float(), torch.inf), "amin")
    return torch.where(torch.isfinite(depth), depth, 0.0).view(-1, height, width)


def plain(config: Captures) -> Captures:
    """The same without chance in how photos are shown; which views they are is still drawn."""
    return replace(config, zoom=1.0, exposure=0.0, white_balance=0.0)
