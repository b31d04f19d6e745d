"""``ilrm refine``: optimising existing Gaussians on photos."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from ilrm.cli.arguments import MaxPixels, Output, library_options
from ilrm.cli.console import Console
from ilrm.core.checks import MAX_PIXELS


@dataclass(frozen=True)
class Refine:
    """Optimise a splat file on the photos of a scene.

    The photos must be in the world frame of the Gaussians. Held-out photos are not used for optimisation; their PSNR is
    measured before and after.
    """

    gaussians: tyro.conf.Positional[Path]
    """Splat file, or the folder that `ilrm reconstruct` has written."""
    scene: tyro.conf.Positional[Path]
    """A scene's folder or camera file."""
    output: Output
    """Splat file to write (.ply)."""
    steps: int | None = None
    """Steps of optimisation. Default: as many as fit into the time."""
    seconds: str | None = None
    """Time of optimisation, such as 30 or 2min. Default: 30 seconds, on a GPU 5, unless --steps are given."""
    views: int | None = None
    """Number of photos to optimise on; by default all that are not held out."""
    holdout: int | None = None
    """Hold out every N-th photo for evaluation; 0 holds out none. Default: as in `ilrm reconstruct`."""
    size: int = 256
    """Longer side of the photos in pixels; larger ones are reduced."""
    max_pixels: MaxPixels = MAX_PIXELS
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    seed: int = 0
    """Seed of all random choices."""
    overwrite: bool = False
    """Also replace files of the same names that this program did not write."""
    antialiased: bool = False
    """Treat the splats as trained anti-aliased, for files that do not say so: opacity is compensated for the blur."""
    json: bool = False
    """Print one JSON object on stdout and nothing else."""

    def run(self, console: Console) -> dict[str, Any]:
        from ilrm.pipeline.refinement import refine_file

        report = refine_file(self.gaussians, self.scene, self.output, **library_options(self), reporter=console)
        console.show("", {k: v for k, v in report.items() if not isinstance(v, list)})
        return report
