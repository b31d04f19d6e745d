"""Where training scenes come from: the sources of a config, opened."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ilrm.core.cameras import Cameras
from ilrm.core.errors import SceneError
from ilrm.core.scene import Scene
from ilrm.datasets.dataset import find_scenes, read_list
from ilrm.datasets.procedural import DescribedScene, ProceduralConfig, cast, describe
from ilrm.files import paths
from ilrm.scenes import frames
from ilrm.scenes.load import has_cameras, is_chunk_folder, read_source
from ilrm.scenes.readers.chunks import Chunk, chunk_of_every_key, open_chunk
from ilrm.scenes.readers.records import listing
from ilrm.train.config import Chunks, Folders, Procedural, SceneList, Source
from ilrm.train.data.captures import CaptureSource, open_captures
from ilrm.train.data.options import Captures


@dataclass(frozen=True, eq=False)
class Clip:
    """A scene of a finite source: its cameras are known, no image is decoded.

    Attributes:
        c2w: (N, 4, 4) camera-to-world of all frames in their order, as stored (not checked yet).
        lenses: (N, 4) fx, fy, cx, cy in shares of the image's width and height.
        frames: gives the frames of some views.
    """

    c2w: Tensor
    lenses: Tensor
    frames: Callable[[Sequence[int]], frames.CaptureSource]


@dataclass(frozen=True)
class FiniteSource:
    """Scenes on disk.

    Attributes:
        label: the path that the config names.
        keys: of all scenes, in a fixed order.
        load: opens the scene of a key. Raises SceneError.
    """

    label: str
    keys: tuple[str, ...]
    load: Callable[[str], Clip]


@dataclass(frozen=True)
class ProceduralSource:
    """Endless scenes made from seeds."""

    config: Procedural

    def name(self, number: int) -> str:
        """The name of scene ``number``: its seed."""
        return f"procedural-{self.config.first_seed + number}"

    def describe(self, number: int, views: int, size: tuple[int, int]) -> DescribedScene:
        """Scene ``number`` before any ray is cast, in numpy."""
        return describe(self.config.first_seed + number, self._config(views, size))

    def cast(
        self,
        described: Sequence[DescribedScene],
        views: int,
        size: tuple[int, int],
        device: torch.device | str = "cpu",
    ) -> list[Scene]:
        """Scenes of ``views`` views at ``size`` (height, width), with true depth.

        The same number gives the same scene whatever else is cast with it (on CUDA up to rounding).
        """
        height, width = size
        made = cast(described, self._config(views, size), device)
        names = tuple(f"view_{view:03d}" for view in range(views))
        return [
            Scene(images, Cameras(c2w, K, width, height), names, depth)
            for images, c2w, K, depth in zip(made.images, made.c2w.cpu(), made.K.cpu(), made.depth, strict=True)
        ]

    def _config(self, views: int, size: tuple[int, int]) -> ProceduralConfig:
        # Surface points are not looked at; one is the least that can be made.
        return replace(self.config.scenes, views=views, width=size[1], height=size[0], points=1)


def open_source(source: Source) -> FiniteSource | CaptureSource | ProceduralSource:
    """Look at what a source holds; no scene of it is read.

    Raises:
        SceneError: a path that does not exist or holds something else; an index or list that is empty, malformed, or
            names files that do not exist.
    """
    match source:
        case Procedural():
            return ProceduralSource(source)
        case Chunks():
            return _open_chunks(_existing(source.path))
        case SceneList():
            return _open_list(_existing(source.path))
        case Folders():
            return _open_folders(_existing(source.path))
        case Captures():
            return open_captures(source, _existing(source.path))


def _existing(path: Path) -> Path:
    path = paths.expanded(path)
    if not paths.exists(path):
        raise SceneError(f"{path} does not exist.", expected="a source of training scenes", fix="check the path")
    return path


# --- chunks ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ChunkScenes:
    """Opens scenes by key."""

    chunk_of: dict[str, Path]

    def __call__(self, key: str) -> Clip:
        scene = _opened_chunk(self.chunk_of[key]).scene(key)
        return Clip(scene.c2w.double(), scene.cameras[:, :4].double(), scene.source)


def _open_chunks(path: Path) -> FiniteSource:
    if paths.is_file(path):
        chunk_of = {key: path for key in open_chunk(path).keys}
    elif is_chunk_folder(path) or not is_chunk_folder(path / "train"):
        chunk_of = chunk_of_every_key(path)
    else:
        raise SceneError(f"{path} is the root of a dataset.", fix=f"give one of its stages, {path / 'train'}")
    return FiniteSource(str(path), tuple(chunk_of), _ChunkScenes(chunk_of))


@lru_cache(maxsize=1024)  # about 64 KB each: places of photos in the file, not the photos
def _opened_chunk(path: Path) -> Chunk:
    return open_chunk(path)


# --- scenes with files of their own ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _FileScenes:
    """Opens scenes by their path relative to a folder."""

    folder: Path

    def __call__(self, key: str) -> Clip:
        source = _read(self.folder / key)
        c2w = torch.from_numpy(np.stack([frame.c2w for frame in source.frames]))
        lenses = [frame.lens for frame in source.frames]
        size = torch.tensor([[lens.width, lens.height] for lens in lenses], dtype=torch.float64)
        K = torch.from_numpy(np.stack([lens.matrix() for lens in lenses]))
        shares = torch.cat([K[:, [0, 1], [0, 1]] / size, K[:, :2, 2] / size], dim=1)
        return Clip(c2w, shares, lambda views: frames.CaptureSource(tuple(source.frames[view] for view in views)))


@lru_cache(maxsize=128)
def _read(path: Path) -> frames.CaptureSource:
    return read_source(path)


def _open_list(path: Path) -> FiniteSource:
    keys = read_list(path)
    repeated = sorted({key for key in keys if keys.count(key) > 1}) if len(set(keys)) < len(keys) else []
    if repeated:
        raise SceneError(f"{path} lists {listing(repeated)} more than once.", fix="remove the repeated lines")
    missing = [key for key in keys if not paths.exists(path.parent / key)]
    if missing:
        raise SceneError(
            f"{len(missing)} of the {len(keys)} scenes that {path} lists do not exist: {listing(missing)}.",
            expected=f"paths relative to {path.parent}",
            fix="restore the scenes, or remove their lines",
        )
    return FiniteSource(str(path), tuple(keys), _FileScenes(path.parent))


def _open_folders(path: Path) -> FiniteSource:
    refs = find_scenes(path)
    if any(ref.key is not None for ref in refs):
        raise SceneError(f"{path} holds chunks, not folders of scenes.", fix='use a source of the kind "chunks"')
    root = path.parent if paths.is_file(path) or has_cameras(path) else path
    return FiniteSource(str(path), tuple(os.path.relpath(ref.path, root) for ref in refs), _FileScenes(root))
