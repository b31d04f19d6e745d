"""``ilrm capture``: photos or a video without cameras in, a scene with cameras out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ilrm.cli.arguments import MaxPixels, Output, library_options
from ilrm.cli.console import Console
from ilrm.core.checks import MAX_PIXELS
from ilrm.core.lens_names import LensName


@dataclass(frozen=True)
class Capture:
    """Find the cameras of photos or of a video.

    Writes transforms.json (opens in nerfstudio, too), images/, points.ply, report.json and report.png. Every stage is
    kept until the end: after an interruption the same command goes on where it was.
    """

    input: tyro.conf.Positional[Path]
    """A folder of photos (jpg, png, webp, heic, tiff; with sub-folders), or a video (mp4, mov, webm)."""
    output: Output
    """Folder to write."""
    frames: int | None = None
    """The most photos or frames to use (default: 120 frames of a video, all photos up to 500)."""
    size: int = 1600
    """Largest longer side of the written images in pixels."""
    sfm_size: int = 1024
    """Longer side in pixels of the copies that cameras are found with."""
    lens: LensName = "radial"
    """radial suits phones and cameras; opencv has more distortion terms; fisheye is for action cameras."""
    scale_from: Annotated[tuple[str, str, float] | None, tyro.conf.arg(metavar="A B METRES")] = None
    """Names of two photos, and the distance in metres between the places where they were taken."""
    max_pixels: MaxPixels = MAX_PIXELS
    seed: int = 0
    """Seed of all random choices."""
    overwrite: bool = False
    """Also replace files of the same names that this program did not write."""
    json: bool = False
    """Print one JSON object on stdout and nothing else."""

    def run(self, console: Console) -> dict[str, Any]:
        from ilrm.scenes.capture import capture

        report = capture(self.input, self.output, **library_options(self), reporter=console).report
        show_capture(console, report, self.output)
        return {**report, "output": str(self.output)}


def show_capture(console: Console, report: dict[str, Any], folder: Path) -> None:
    """Print what a person needs to know of a capture."""
    console.show(
        "",
        {
            "photos with a camera": f"{report['registered']} of {report['photos']}",
            "points": f"{report['points']:,}",
            "reprojection error": f"{report['reprojection_error_px']:.2f} px",
            "focal length": f"{report['focal']:.2f} of the longer side",
            "seconds": f"{sum(report['seconds'].values()):.1f}",
            "cameras": folder / "transforms.json",
            "report": folder / "report.json",
            "from above": folder / "report.png",
        },
    )
    show_weaknesses(console, report["weaknesses"])


def show_weaknesses(console: Console, weaknesses: Sequence[Mapping[str, str]]) -> None:
    """Print what makes a capture weak, and what to shoot instead."""
    for weakness in weaknesses:
        console.say(f"- {weakness['problem']}\n  better: {weakness['advice']}")
