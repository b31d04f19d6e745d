"""``ilrm render``: images and videos of a splat file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from ilrm.cli.arguments import MaxPixels, Output, read_with
from ilrm.cli.console import Console
from ilrm.core.checks import check_at_least, find_device
from ilrm.core.errors import ConfigError
from ilrm.files.image_files import MAX_PIXELS
from ilrm.pictures.options import check_output, parse_colour, parse_size, resized

if TYPE_CHECKING:
    from ilrm.core.cameras import Cameras
    from ilrm.core.gaussians import Gaussians
    from ilrm.pictures.camera_path import CameraPath
    from ilrm.pictures.frame_store import Shot

_FPS = 30.0


@dataclass(frozen=True)
class Render:
    """Render a splat file along a camera path: a video, a moving preview, or PNG files.

    A render that was interrupted goes on when the same command is given again.
    """

    gaussians: tyro.conf.Positional[Path]
    """Splat file, or the folder that `ilrm reconstruct` wrote."""
    output: Output
    """A video (.mp4), a preview (.webp, .gif), a folder for PNG files, or a .png if there is only one frame."""
    path: str = "auto"
    """auto, orbit, interpolate, spiral, wobble, input (the cameras themselves; also poses), or a path file:
    a cameras.json or nerfstudio's camera_path.json. auto is an orbit where the cameras stand around something, else a
    spiral."""
    cameras: Path | None = None
    """A scene, or a cameras.json, in the world of the Gaussians. Default: cameras.json beside the splat file; without
    it, cameras are made up."""
    frames: int | None = None
    """Number of frames. Default: 120; interpolate has 16 a camera, input and path files have as many as they hold."""
    fps: float | None = None
    """Frames a second of a video or preview. Default: 30, or what a path file says."""
    size: str | None = None
    """Longer side of the frames in pixels, or WIDTHxHEIGHT, which crops. Default: as the cameras have it."""
    what: tuple[Literal["rgb", "depth", "normals", "opacity"], ...] = ("rgb",)
    """What to show; several stand side by side."""
    nearest_photos: Path | None = None
    """A scene in the world of the Gaussians; each frame gets the photo with the nearest pose at its side."""
    max_pixels: MaxPixels = MAX_PIXELS
    stabilise: bool = False
    """Smooth the path over 50 frames."""
    ping_pong: bool = False
    """Play the frames forth and back."""
    loops: int = 1
    """Play a video so many times. Previews repeat forever anyway."""
    background: str = "white"
    """A colour by name or as #rrggbb."""
    up: Literal["x", "y", "z", "-x", "-y", "-z"] = "-y"
    """Axis of the world that points up, for cameras that are made up."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    overwrite: bool = False
    """Replace files of the same names that this program did not write, too."""
    antialiased: bool = False
    """The splats were trained anti-aliased, which their file does not say: opacity is compensated for the blur."""
    json: bool = False
    """Print one JSON object on stdout and nothing else."""

    def run(self, console: Console) -> dict[str, Any]:
        self._check()
        device = find_device(self.device)
        from ilrm.pictures.frame_store import render_to
        from ilrm.results.beside import find_splats
        from ilrm.splats import load_gaussians

        file = find_splats(self.gaussians)
        gaussians = load_gaussians(file, self.antialiased or None)
        shot, names, fps = self._shot(file, gaussians, console)
        plays = self.loops * (2 if self.ping_pong else 1)
        check_output(self.output, len(shot.cameras) * plays, *shot.size, fps)
        reads = [file, *read_with(file, self.cameras, self.nearest_photos)]
        if self._is_file():
            reads.append(Path(self.path))
        report = render_to(
            self.output,
            gaussians.to(device),
            shot,
            names,
            fps,
            (self.loops, self.ping_pong),
            console,
            reads=reads,
            overwrite=self.overwrite,
        )
        console.show("", {name: value for name, value in report.items() if name not in ("files", "num_gaussians")})
        return report

    def _check(self) -> None:
        """Refuse what can be told from the flags alone."""
        check_at_least("--frames", 1 if self.frames is None else self.frames, 1)
        check_at_least("--loops", self.loops, 1)
        check_output(self.output, 1, 2, 2, _FPS if self.fps is None else self.fps)
        if self.output.suffix.lower() in ("", ".png") and (self.ping_pong or self.loops > 1 or self.fps is not None):
            raise ConfigError(
                f"{self.output} holds single images, which are not played.",
                expected="--fps, --loops and --ping-pong with a .mp4, .webp or .gif",
            )
        if len(set(self.what)) != len(self.what) or not self.what:
            raise ConfigError(f"--what {' '.join(self.what)} was given.", expected="each of them once, at least one")
        parse_colour(self.background)
        if self.size is not None:
            parse_size(self.size, even=self.output.suffix.lower() == ".mp4")

    def _shot(self, file: Path, gaussians: Gaussians, console: Console) -> tuple[Shot, tuple[str, ...] | None, float]:
        """What to render, the names of the frames if they have any, and the frame rate."""
        from ilrm.pictures.frame_store import Photos, Shot
        from ilrm.pictures.frames import Picture, clear_near_plane, path_depth_range
        from ilrm.pictures.trajectories import stabilise

        given, names = self._given(file, gaussians, console)
        taken = self._path(given, names, gaussians)
        cameras = stabilise(taken.cameras, closed=taken.closed) if self.stabilise else taken.cameras
        cameras = resized(cameras, self.size, even=self.output.suffix.lower() == ".mp4")
        near = given.near_plane()
        if taken.names is None:  # not at the photos' own places
            near = clear_near_plane(gaussians, given, near)
        limits = path_depth_range(gaussians, cameras, near)
        picture = Picture(self.what, parse_colour(self.background), near, limits if "depth" in self.what else None)
        photos = None
        if self.nearest_photos is not None:
            distance = sum(limits) / 2 if limits else 1.0
            photos = Photos.nearest(self.nearest_photos, cameras, distance, self.max_pixels)
        return Shot(file, cameras, picture, photos), taken.names, self.fps or taken.fps or _FPS

    def _given(self, file: Path, gaussians: Gaussians, console: Console) -> tuple[Cameras, tuple[str, ...]]:
        """The cameras that the Gaussians were seen by, or some that are made up, with their names."""
        from ilrm.pictures.camera_path import cameras_on_ring
        from ilrm.pipeline.inputs import given_cameras
        from ilrm.results.beside import cameras_beside

        if self.cameras is not None:
            return given_cameras(self.cameras)
        if (beside := cameras_beside(file)) is not None:
            return beside
        if not self._is_file():
            console.say(f"Beside {file} are no cameras: they are made up, with {self.up} up (--cameras, --up).")
        made_up = cameras_on_ring(gaussians, self.up)
        return made_up, tuple(f"camera_{i}" for i in range(len(made_up)))

    def _path(self, given: Cameras, names: tuple[str, ...], gaussians: Gaussians) -> CameraPath:
        from ilrm.pictures.camera_path import load_path, make_path

        if not self._is_file():
            path = make_path("input" if self.path == "poses" else self.path, gaussians, given, self.frames)
            return path if path.closed else replace(path, names=names)
        if self.frames is not None:
            raise ConfigError(f"--frames {self.frames} was given, but {self.path} says how many there are.")
        return load_path(self.path)

    def _is_file(self) -> bool:
        return self.path.lower().endswith(".json")
