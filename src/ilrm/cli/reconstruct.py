"""``ilrm reconstruct``: posed photos in, a folder of results out."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import tyro

from ilrm.cli.arguments import MaxPixels, Output, PrecisionName, Watch
from ilrm.cli.console import Console
from ilrm.cli.extras import ExportName
from ilrm.cli.pipeline import Options, run, show_results
from ilrm.image_files import MAX_PIXELS


@dataclass(frozen=True)
class Reconstruct:
    """Turn posed photos into 3D Gaussians.

    Writes scene.ply (in the photos' own world frame), viewer.html (opens by double click), preview.mp4, metrics.json,
    cameras.json and inputs/ (the input photos), and renders/ (each held-out photo rendered, alone and beside the
    truth), all of them or none.
    """

    input: tyro.conf.Positional[Path]
    """A scene's folder or camera file: transforms.json, COLMAP, opencv_cameras.json, chunks."""
    output: Output
    """Folder to write."""
    views: int | None = None
    """Number of input photos; by default as many as memory and time reasonably carry (more photos help)."""
    holdout: int | None = None
    """Keep every such photo out of the inputs, to measure on it; 0 keeps none out. Default: the photos that the scene
    itself declares for testing, else 8 if there are 10 or more."""
    weights: str = "ilrm-small"
    """Name, file or folder of the weights, or a hub id."""
    refine: int = 0
    """Optimise the result for so many steps on the input photos."""
    export: tuple[ExportName, ...] = ("html", "video")
    """What to write beside scene.ply; give it without a name for nothing more."""
    watch: Watch = "spare"
    """Photos that stop the refinement when they get worse: those neither input nor held out, or the held-out ones
    (their score is then no longer independent), or none."""
    size: int = 256
    """Longer side of the photos in pixels; larger ones are reduced."""
    max_pixels: MaxPixels = MAX_PIXELS
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: PrecisionName = "auto"
    """Number format of the network."""
    seed: int = 0
    """Of everything that is drawn at random."""
    overwrite: bool = False
    """Replace files of the same names that this program did not write, too."""
    json: bool = False
    """Print one JSON object on stdout and nothing else."""

    def run(self, console: Console) -> dict[str, Any]:
        metrics = run(Options(**{f.name: getattr(self, f.name) for f in fields(Options)}), console)
        show_results(metrics, console)
        return metrics
