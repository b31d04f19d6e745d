"""``ilrm render``: images and videos of a splat file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from ilrm.cli.arguments import MaxPixels, Output, library_options
from ilrm.cli.console import Console
from ilrm.core.checks import MAX_PIXELS


@dataclass(frozen=True)
class Render:
    """Render a splat file along a camera path: a video, an animated preview, or PNG files.

    After an interruption the same command continues.
    """

    gaussians: tyro.conf.Positional[Path]
    """Splat file, or the folder written by `ilrm reconstruct`."""
    output: Output
    """A video (.mp4), a preview (.webp, .gif), a folder for PNG files, or a .png for a single frame."""
    path: str = "auto"
    """auto, orbit, interpolate, spiral, wobble, input (or poses: the cameras themselves), or a path file.
    auto is an orbit if the cameras surround something, else a spiral.
    A path file is a cameras.json or nerfstudio's camera_path.json."""
    cameras: Path | None = None
    """A scene or a cameras.json, in the world of the Gaussians.
    Default: cameras.json beside the splat file; without one, cameras are generated."""
    frames: int | None = None
    """Number of frames. Default: 120; 16 per camera for interpolate; input and path files give their number."""
    fps: float | None = None
    """Frames per second of a video or preview. Default: 30, or as in the path file."""
    size: str | None = None
    """Longer side of the frames in pixels, or WIDTHxHEIGHT, which crops. Default: the size of the cameras' images."""
    what: tuple[Literal["rgb", "depth", "normals", "opacity"], ...] = ("rgb",)
    """What to show; several panels are side by side."""
    nearest_photos: Path | None = None
    """A scene in the world of the Gaussians; each frame gets the photo with the nearest pose beside it."""
    max_pixels: MaxPixels = MAX_PIXELS
    stabilise: bool = False
    """Smooth the path over 50 frames."""
    ping_pong: bool = False
    """Play the frames forwards and backwards."""
    loops: int = 1
    """Play a video this many times. Previews repeat forever anyway."""
    background: str | None = None
    """A colour by name or as #rrggbb. Default: that of the splats, else white."""
    up: Literal["x", "y", "z", "-x", "-y", "-z"] = "-y"
    """Axis of the world that points up, for generated cameras."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    overwrite: bool = False
    """Also replace files of the same names that this program did not write."""
    antialiased: bool = False
    """Treat the splats as trained anti-aliased, for files that do not say so: opacity is compensated for the blur."""
    json: bool = False
    """Print one JSON object on stdout and nothing else."""

    def run(self, console: Console) -> dict[str, Any]:
        from ilrm.pipeline.rendering import RenderOptions, render_file

        report = render_file(self.gaussians, self.output, RenderOptions(**library_options(self)), reporter=console)
        console.show("", {name: value for name, value in report.items() if name not in ("files", "num_gaussians")})
        return report
