"""``render_file``: images and videos of a splat file, as ``ilrm render`` makes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilrm.core.cameras import Cameras
from ilrm.core.checks import MAX_PIXELS, check_at_least, find_device
from ilrm.core.errors import ConfigError
from ilrm.core.gaussians import Gaussians
from ilrm.core.reporting import Reporter, Silent
from ilrm.pictures.camera_path import Up, cameras_on_ring
from ilrm.pictures.frame_store import Photos, Shot, render_to
from ilrm.pictures.frames import Panel, path_depth_range
from ilrm.pictures.options import check_output, parse_colour, parse_size
from ilrm.pictures.render_video import DEFAULT_FPS, FramePlan, plan_frames
from ilrm.pipeline.inputs import given_cameras, paths_read
from ilrm.results.beside import cameras_beside, find_splats
from ilrm.splats import load_gaussians


@dataclass(frozen=True)
class RenderOptions:
    """The options of a rendering, the same for Python and ``ilrm render``.

    Attributes:
        path: a named path or a path file, see ``render_video``; "poses" is the same as "input".
        cameras: a scene or a cameras.json; by default the cameras beside the splat file, else generated ones.
        frames, fps, what, up: see ``render_video``.
        size: longer side in pixels, or WIDTHxHEIGHT, which crops.
        nearest_photos: a scene; each frame gets the photo with the nearest pose beside it.
        max_pixels: of these photos, see ``load_scene``.
        stabilise: smooth the path over 50 frames.
        ping_pong: play the frames also backwards.
        loops: play a video this many times.
        background: a colour by name or as #rrggbb; by default that of the splats, else white.
        device: auto, cpu, cuda or cuda:N.
        overwrite: also replace files of the same names that this program did not write.
        antialiased: treat the splats as trained anti-aliased, for files that do not say so.
    """

    path: str = "auto"
    cameras: Path | None = None
    frames: int | None = None
    fps: float | None = None
    size: str | None = None
    what: tuple[Panel, ...] = ("rgb",)
    nearest_photos: Path | None = None
    max_pixels: int = MAX_PIXELS
    stabilise: bool = False
    ping_pong: bool = False
    loops: int = 1
    background: str | None = None
    up: Up = "-y"
    device: str = "auto"
    overwrite: bool = False
    antialiased: bool = False

    @property
    def is_path_file(self) -> bool:
        """Whether ``path`` is a file rather than a name."""
        return self.path.lower().endswith(".json")

    def check(self, output: Path) -> None:
        """Refuse invalid options and outputs before anything is read. Raises ConfigError, OutputError."""
        check_at_least("--frames", 1 if self.frames is None else self.frames, 1)
        check_at_least("--loops", self.loops, 1)
        check_output(output, 1, 2, 2, DEFAULT_FPS if self.fps is None else self.fps)
        if output.suffix.lower() in ("", ".png") and (self.ping_pong or self.loops > 1 or self.fps is not None):
            raise ConfigError(
                f"{output} is for single images, which are not played.",
                expected="--fps, --loops and --ping-pong with a .mp4, .webp or .gif",
            )
        if len(set(self.what)) != len(self.what) or not self.what:
            raise ConfigError(f"--what {' '.join(self.what)} was given.", expected="at least one, each only once")
        parse_colour(self.background)
        if self.size is not None:
            parse_size(self.size, even=_is_mp4(output))
        if self.frames is not None and self.is_path_file:
            raise ConfigError(
                f"--frames {self.frames} was given, but {self.path} gives their number.", fix="leave --frames out"
            )


def render_file(
    splats: Path | str,
    output: Path | str,
    options: RenderOptions | None = None,
    *,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Render a splat file to a video, a preview, a folder of PNG files or a single one.

    An interrupted call can be repeated: frames that are finished are kept for it.

    Args:
        splats: a splat file, or the folder of a result.
        output: .mp4, .webp, .gif, .png (a single frame), or a folder.
        options: ``RenderOptions()`` by default.

    Returns:
        the report that the command prints with --json.

    Raises:
        IlrmError: invalid input, output or options; the subclass says which.
    """
    options, reporter, output = options or RenderOptions(), reporter or Silent(), Path(output)
    options.check(output)
    device, file = find_device(options.device), find_splats(splats)
    gaussians = load_gaussians(file, options.antialiased or None)
    plan = _plan(file, gaussians, output, options, reporter)
    shot = Shot(file, plan.cameras, plan.picture, _photos(gaussians, plan, options))
    plays = options.loops * (2 if options.ping_pong else 1)
    check_output(output, len(shot.cameras) * plays, *shot.size, plan.fps)
    reads = paths_read(file, options.cameras, options.nearest_photos)
    if options.is_path_file:
        reads.append(Path(options.path))
    return render_to(
        output,
        gaussians.to(device),
        shot,
        plan.names,
        plan.fps,
        (options.loops, options.ping_pong),
        reporter,
        reads=reads,
        overwrite=options.overwrite,
    )


def _plan(file: Path, gaussians: Gaussians, output: Path, options: RenderOptions, reporter: Reporter) -> FramePlan:
    seen_by, names = _cameras(file, gaussians, options, reporter)
    return plan_frames(
        gaussians,
        seen_by,
        "input" if options.path == "poses" else options.path,
        names=names,
        frames=options.frames,
        fps=options.fps,
        size=options.size,
        even=_is_mp4(output),
        what=options.what,
        background=parse_colour(options.background),
        stabilised=options.stabilise,
    )


def _cameras(
    file: Path, gaussians: Gaussians, options: RenderOptions, reporter: Reporter
) -> tuple[Cameras, tuple[str, ...]]:
    """The cameras of the photos, or generated ones, with their names."""
    if options.cameras is not None:
        return given_cameras(options.cameras)
    if (beside := cameras_beside(file)) is not None:
        return beside
    if not options.is_path_file:
        reporter.say(f"No cameras beside {file}: they are generated, with {options.up} up (--cameras, --up).")
    generated = cameras_on_ring(gaussians, options.up)
    return generated, tuple(f"camera_{i}" for i in range(len(generated)))


def _photos(gaussians: Gaussians, plan: FramePlan, options: RenderOptions) -> Photos | None:
    if options.nearest_photos is None:
        return None
    limits = plan.picture.depth_limits or path_depth_range(gaussians, plan.cameras, plan.picture.near)
    distance = sum(limits) / 2 if limits else 1.0
    return Photos.nearest(options.nearest_photos, plan.cameras, distance, options.max_pixels)


def _is_mp4(output: Path) -> bool:
    return output.suffix.lower() == ".mp4"
