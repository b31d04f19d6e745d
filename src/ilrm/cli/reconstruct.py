"""``ilrm reconstruct``: photos or a video in, a folder of results out. ``ilrm demo``: the same with bundled photos."""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

import tyro

from ilrm.cli.arguments import MaxPixels, Output
from ilrm.cli.capture import show_weaknesses
from ilrm.cli.console import Console
from ilrm.core.checks import MAX_PIXELS
from ilrm.core.errors import SceneError
from ilrm.files.paths import is_dir
from ilrm.pipeline.options import ExportName, PosesName, PrecisionName, WatchName


@dataclass(frozen=True)
class Reconstruct:
    """Turn photos or a video into 3D Gaussians.

    Writes scene.ply (in the photos' own world frame), viewer.html (opens with a double click), preview.mp4,
    metrics.json, cameras.json, inputs/ (the input photos) and renders/ (each held-out view rendered, alone and beside
    its photo). Either all of them are written or none.
    """

    input: tyro.conf.Positional[Path]
    """A folder of photos, a video, or a scene with cameras: transforms.json, COLMAP, opencv_cameras.json, chunks."""
    output: Output
    """Folder to write."""
    views: int | None = None
    """Number of input photos; by default as many as the budget allows, else as reasonable in memory and time.
    More photos improve the result. More than a group holds are reconstructed in groups."""
    gaussians: str | None = None
    """At most so many Gaussians from the forward pass, such as 200k."""
    memory: str | None = None
    """At most so much memory, such as 4GB. Expected memory counts, which may be off by a factor of two."""
    seconds: str | None = None
    """At most so much time for all of the run, such as 120 or 2min. Expected time counts, likewise."""
    holdout: int | None = None
    """Hold out every N-th photo for evaluation; 0 holds out none.
    Default: the test photos that the scene itself declares, else 8 if there are 10 photos or more."""
    weights: str = "ilrm-small"
    """Name, file or folder of the weights, or a hub id."""
    feedback: int | None = None
    """Iterations in which the network sees its own renderings. Default: the number in the weights."""
    points: bool = False
    """Use the capture's sparse points: as evidence for depth, and as Gaussians where no input photo sees a surface."""
    refine: str | None = None
    """Optimisation after the forward pass, on all photos that are not held out: steps, such as 300, or a time, such as
    30s; 0: none. Default: the time that --seconds leaves, else 30 seconds, on a GPU 5."""
    refine_poses: bool = False
    """Also move the cameras of the photos by small steps. Held-out cameras are then aligned before scoring."""
    export: tuple[ExportName, ...] = ("html", "video")
    """What to write beside scene.ply; without a name, nothing."""
    watch: WatchName = "none"
    """Photos that stop the refinement when they get worse: spare, held-out or none.
    Spare photos are neither input nor held out; they are then not fitted. Watched held-out photos no longer give an
    independent score."""
    size: int = 256
    """Longer side of the photos in pixels; larger ones are reduced."""
    max_pixels: MaxPixels = MAX_PIXELS
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: PrecisionName = "auto"
    """Number format of the network."""
    seed: int = 0
    """Seed of all random choices."""
    poses: PosesName = "auto"
    """auto: find the cameras of photos that have none, by structure from motion (kept in OUT/capture);
    sfm: find them even where cameras are stored; stored: never."""
    overwrite: bool = False
    """Also replace files of the same names that this program did not write."""
    json: bool = False
    """Print one JSON object on stdout and nothing else."""

    def run(self, console: Console) -> dict[str, Any]:
        options = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "json"}
        return run_and_show(console, **options)


@dataclass(frozen=True)
class Demo:
    """Reconstruct a capture that comes with the package, in about a minute on two cores."""

    output: Output = Path("ilrm-demo")
    """Folder to write."""
    refine: str = "5s"
    """Optimisation after the forward pass: steps, such as 300, or a time, such as 30s; 0: none."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    overwrite: bool = False
    """Also replace files of the same names that this program did not write."""
    json: bool = False
    """Print one JSON object on stdout and nothing else."""

    def run(self, console: Console) -> dict[str, Any]:
        capture = Path(str(resources.files("ilrm"))) / "assets" / "capture"
        if not is_dir(capture):
            raise SceneError("The bundled capture is missing from this installation.", fix="reinstall ilrm")
        options = {"refine": self.refine, "device": self.device, "overwrite": self.overwrite}
        return run_and_show(console, input=capture, output=self.output, **options)


def run_and_show(console: Console, **options: Any) -> dict[str, Any]:
    """Call ``ilrm.run``, print the main numbers, and return the report of the command."""
    from ilrm.pipeline.run import run

    metrics = {**run(**options, reporter=console).metrics, "output": str(options["output"])}
    output, memory = Path(metrics["output"]), metrics["peak_memory_gb"]
    found = metrics["capture"]
    rows = {
        "photos with a camera": found and f"{found['registered']} of {found['photos']} (found, see {output}/capture)",
        "held-out PSNR": _with_before(metrics, "psnr", "{:.2f} dB"),
        "held-out SSIM": _with_before(metrics, "ssim", "{:.3f}"),
        "Gaussians": f"{metrics['num_gaussians']:,} from {metrics['num_inputs']} photos",
        "seconds": f"{sum(metrics['seconds'].values()):.1f}",
        "peak memory": None if memory is None else f"{memory:.2f} GB",
        **{name: output / file for name, file in metrics["files"].items()},
        "input photos": output / "inputs",
        "renderings": output / "renders",
        "numbers": output / "metrics.json",
    }
    console.show("", rows)
    show_weaknesses(console, found["weaknesses"] if found else [])
    return metrics


def _with_before(metrics: dict[str, Any], name: str, form: str) -> str | None:
    if metrics[name] is None:
        return None
    before = metrics[f"{name}_before_refine"]
    return form.format(metrics[name]) + ("" if before is None else f" (before refinement {form.format(before)})")
