"""Rendering frames to disk one by one, so that an interrupted render can be resumed."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

import ilrm
from ilrm.core.cameras import Cameras
from ilrm.core.gaussians import Gaussians
from ilrm.core.reporting import Advance, Reporter
from ilrm.files import atomic_folder, check_apart, claim_file, note_written, paths, resumable_folder
from ilrm.files.image_files import open_image, save_png
from ilrm.pictures.camera_path import nearest_views
from ilrm.pictures.frames import Picture, render_frame
from ilrm.pictures.video import as_image8, save_video
from ilrm.scenes import load_scene
from ilrm.scenes.names import file_stems

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ilrm.core.scene import Scene

_OWN_FRAMES = re.compile(r"frame_\d{4,}\.png")


@dataclass(frozen=True, eq=False)
class Photos:
    """The photos to show beside the frames.

    Attributes:
        scene: the photos.
        views: for each frame, the index of its photo.
    """

    scene: Scene
    views: list[int]

    @staticmethod
    def nearest(path: Path, cameras: Cameras, distance: float, max_pixels: int) -> Photos:
        """The photos of a scene with the nearest poses; ``distance`` is the distance of the surfaces."""
        scene = load_scene(path, max_side=2 * max(cameras.width, cameras.height), max_pixels=max_pixels)
        return Photos(scene, nearest_views(cameras, scene.cameras, distance))

    def width(self, height: int) -> int:
        """Width of the photos at the height of the frames; even, as videos need it."""
        own = self.scene.cameras
        return max(2, 2 * round(own.width * height / own.height / 2))

    def beside(self, frame: int, height: int) -> NDArray[np.uint8]:
        """(height, width, 3) photo of one frame."""
        photo = Image.fromarray(as_image8(self.scene.images[self.views[frame]]))
        return np.asarray(photo.resize((self.width(height), height), Image.Resampling.LANCZOS))


@dataclass(frozen=True, eq=False)
class Shot:
    """Everything that the frames depend on; the Gaussians are those of ``file``."""

    file: Path
    cameras: Cameras
    picture: Picture
    photos: Photos | None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a frame with all panels."""
        width = len(self.picture.panels) * self.cameras.width
        return width + (self.photos.width(self.cameras.height) if self.photos else 0), self.cameras.height

    def fingerprint(self, gaussians: Gaussians) -> str:
        """Hexadecimal hash of everything that the frames depend on."""
        digest = hashlib.sha256()
        with self.file.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        about = [
            ilrm.__version__,
            gaussians.device.type,
            gaussians.antialiased,
            gaussians.background,
            self.picture,
            self.cameras.width,
            self.cameras.height,
        ]
        tensors = [self.cameras.c2w, self.cameras.K]
        if self.photos is not None:
            about += [self.photos.views, self.photos.scene.names, tuple(self.photos.scene.images.shape)]
            tensors += [self.photos.scene.cameras.c2w]
        digest.update(repr(about).encode())
        for tensor in tensors:
            digest.update(tensor.double().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def frame(self, number: int, gaussians: Gaussians) -> NDArray[np.uint8]:
        """(H, W, 3) of one frame."""
        image = as_image8(render_frame(gaussians, self.cameras[number], self.picture))
        if self.photos is None:
            return image
        return np.concatenate([image, self.photos.beside(number, self.cameras.height)], axis=1)


def render_to(
    output: Path,
    gaussians: Gaussians,
    shot: Shot,
    names: tuple[str, ...] | None,
    fps: float,
    plays: tuple[int, bool],
    reporter: Reporter,
    *,
    reads: Sequence[Path] = (),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Render a shot to a video, a preview, a folder of PNG files or a single PNG file.

    Args:
        names: names of PNG files; numbers by default.
        plays: how many times a video plays the frames, and whether also backwards (ping-pong).
        reads: the files that the shot was read from, which are never overwritten.
        overwrite: also replace files of the same names that this command did not write.

    Returns:
        the report of the command.
    """
    frames, suffix = len(shot.cameras), output.suffix.lower()
    stems = [f"frame_{i:04d}" for i in range(frames)] if names is None else file_stems(names)
    width, height = shot.size
    report: dict[str, Any] = {"output": str(output), "frames": frames, "reused": 0, "width": width, "height": height}
    if suffix:
        claim_file(output, reads=reads, overwrite=overwrite)
    else:
        check_apart(output, reads)
    if suffix == ".png":
        save_png(shot.frame(0, gaussians), output)
        note_written(output)
        return {**report, "files": [output.name], "num_gaussians": len(gaussians)}
    with resumable_folder(output, shot.fingerprint(gaussians)) as kept:
        store = _FrameFolder(kept, stems, gaussians, shot)
        report["reused"] = store.reused
        with store.explained(), reporter.progress("rendering", frames) as advance:
            if suffix:
                report["fps"] = fps
                report["frames"] = save_video(store.played(*plays, advance), output, fps)
                note_written(output)
            else:
                _fill(output, store, advance, overwrite)
    files = [f"{stem}.png" for stem in stems] if not suffix else [output.name]
    return {**report, "files": files, "num_gaussians": len(gaussians)}


class _FrameFolder:
    """The frames of a shot as PNG files in a folder; existing ones are not rendered again."""

    def __init__(self, folder: Path, stems: list[str], gaussians: Gaussians, shot: Shot) -> None:
        self.files = [folder / f"{stem}.png" for stem in stems]
        self.gaussians, self.shot = gaussians, shot
        self.reused = self.kept

    @property
    def kept(self) -> int:
        """The number of frames in the folder."""
        return sum(paths.is_file(file) for file in self.files)

    def frame(self, number: int) -> NDArray[np.uint8]:
        """(H, W, 3) of one frame, read from the folder or rendered and stored there."""
        file = self.files[number]
        if paths.is_file(file):
            with open_image(file) as image:
                return np.asarray(image.convert("RGB"))
        image = self.shot.frame(number, self.gaussians)
        save_png(image, file)
        return image

    def played(self, loops: int, ping_pong: bool, advance: Advance) -> Iterator[NDArray[np.uint8]]:
        """All frames in the order of a video; ping-pong does not repeat the first and the last frame."""
        there = list(range(len(self.files)))
        order = there + there[-2:0:-1] if ping_pong else there
        for turn in range(loops):
            for place, number in enumerate(order):
                yield self.frame(number)
                if turn == 0 and place < len(there):
                    advance()

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Let Ctrl-C report how many frames are kept."""
        try:
            yield
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted; {self.kept} of {len(self.files)} frames are kept, the same command continues"
            ) from None


def _fill(output: Path, store: _FrameFolder, advance: Advance, overwrite: bool) -> None:
    """Write a folder of PNG files; our frames of an earlier, longer render are removed."""
    names = [file.name for file in store.files]
    with atomic_folder(output, names, former=_is_numbered, overwrite=overwrite) as folder:
        for number in range(len(store.files)):
            store.frame(number)
            advance()
        for file in store.files:
            os.replace(file, folder / file.name)


def _is_numbered(name: str) -> bool:
    return _OWN_FRAMES.fullmatch(name) is not None
