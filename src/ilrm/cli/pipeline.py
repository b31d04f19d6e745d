"""From posed photos to a folder of results: what ``ilrm reconstruct`` and ``ilrm demo`` do."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ilrm.cli.arguments import PrecisionName, Watch, check_at_least, check_size, find_device
from ilrm.cli.console import Console
from ilrm.cli.extras import FILES, INPUTS, ExportName, as_result, save_extras, save_inputs
from ilrm.cli.views import ViewSplit, split_views
from ilrm.files import atomic_folder, check_apart, check_folder, write_json
from ilrm.image_files import MAX_PIXELS

if TYPE_CHECKING:
    import torch

    from ilrm.gaussians import Gaussians
    from ilrm.refine import RefineConfig, RefineResult
    from ilrm.scene import Scene

SCENE_FILE, METRICS_FILE, CAMERAS_FILE, RENDERS = "scene.ply", "metrics.json", "cameras.json", "renders"
_MOST_WATCHED = 6
# Pixels that all inputs together may have by default: 16 views of 256x256 on a CPU, 64 on a GPU.
_PIXEL_BUDGET = {"cpu": 16 * 256 * 256, "cuda": 64 * 256 * 256}
_MOST_INPUTS = 32
# Networks that count how often a surface is seen predict many small Gaussians; 2 and 3 did better than 1 in refinement.
_WIDEN = 1.75


@dataclass(frozen=True)
class Options:
    """What a run is made of; the flags of ``ilrm reconstruct`` by their names."""

    input: Path
    output: Path
    views: int | None = None
    holdout: int | None = None
    weights: str = "ilrm-small"
    refine: int = 0
    export: tuple[ExportName, ...] = ("html", "video")
    watch: Watch = "spare"
    size: int = 256
    max_pixels: int = MAX_PIXELS
    device: str = "auto"
    precision: PrecisionName = "auto"
    seed: int = 0
    overwrite: bool = False

    def check(self) -> None:
        """Refuse impossible numbers before any work. Raises ConfigError."""
        check_size(self.size)
        check_at_least("--max-pixels", self.max_pixels, 1)
        check_at_least("--refine", self.refine, 0)
        check_at_least("--holdout", self.holdout or 0, 0)
        check_at_least("--views", 2 if self.views is None else self.views, 2)


class Stopwatch:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def run(options: Options, console: Console) -> dict[str, Any]:
    """Reconstruct, refine, score and write; the content of metrics.json."""
    options.check()
    if "mesh" in options.export:
        from ilrm.export.mesh_files import check_mesh_packages

        check_mesh_packages()
    device = find_device(options.device)
    from ilrm.scenes.inputs import input_paths

    check_folder(options.output)
    check_apart(options.output, [*input_paths(options.input), options.weights])
    names = (SCENE_FILE, METRICS_FILE, CAMERAS_FILE, f"{RENDERS}/", f"{INPUTS}/", *FILES.values())
    with atomic_folder(options.output, names, overwrite=options.overwrite) as folder:
        return _run(options, device, folder, console)


def _run(options: Options, device: torch.device, folder: Path, console: Console) -> dict[str, Any]:
    from ilrm.cli.images import near_plane, save_comparisons, score
    from ilrm.export import save_ply
    from ilrm.export.cameras import save_cameras
    from ilrm.model.ilrm import ILRM
    from ilrm.reconstruct import reconstruct
    from ilrm.refine import RefineConfig
    from ilrm.scenes import load_scene

    watch = Stopwatch()
    with watch.stage("load"):
        scene = load_scene(options.input, max_side=options.size, max_pixels=options.max_pixels)
        most = min(max(_PIXEL_BUDGET[device.type] // (scene.cameras.width * scene.cameras.height), 2), _MOST_INPUTS)
        split = split_views(scene, options.input, options.views, options.holdout, most=most, seed=options.seed)
        inputs, held_out = scene.select(split.inputs).loaded(), scene.select(split.held_out)
        model = ILRM.from_pretrained(options.weights).to(device)
    console.say(
        f"{options.input}: {len(inputs)} inputs, {len(held_out)} held out, {len(split.spare)} spare, "
        f"{scene.cameras.width}x{scene.cameras.height}, {options.weights} on {device}"
    )
    with watch.stage("reconstruct"):
        gaussians = reconstruct(inputs, model, precision=options.precision)
    near = near_plane(inputs.cameras)
    before, result = None, None
    if options.refine:
        with watch.stage("score_before_refine"):
            before = score(gaussians, held_out, near)
        with watch.stage("refine"):
            config = RefineConfig.for_steps(options.refine, options.seed)
            if model.config.cross_checks and config != RefineConfig.paper():
                config = replace(config, widen=_WIDEN)
            result = _refine(gaussians, inputs, scene.select(_watched(split, options)), config, options.refine, console)
        gaussians = result.gaussians
    with watch.stage("score"):
        after = score(gaussians, held_out, near)
    with watch.stage("write"):
        save_ply(gaussians, folder / SCENE_FILE)
        save_cameras(inputs.cameras, inputs.names, folder / CAMERAS_FILE, gaussians.origin)
        # Without held-out views the inputs are shown; they are not scored, since they were looked at.
        save_comparisons(gaussians, held_out if split.held_out else inputs, folder / RENDERS, near, console)
        save_inputs(inputs, folder / INPUTS)
    metrics = {
        "psnr": after and after[0],
        "ssim": after and after[1],
        "psnr_before_refine": before and before[0],
        "ssim_before_refine": before and before[1],
        "seconds": watch.seconds,
        "peak_memory_gb": peak_memory_gb(device),
        "num_gaussians": len(gaussians),
        "world_offset": gaussians.origin.tolist(),
        "num_inputs": len(inputs),
        "input_names": list(inputs.names),
        "held_out_names": list(held_out.names),
        "width": scene.cameras.width,
        "height": scene.cameras.height,
        "weights": options.weights,
        "device": str(device),
        "precision": options.precision,
        "seed": options.seed,
        "refine_steps": options.refine,
        **_refine_report(result, options),
        "warnings": list(console.warnings),
        "files": {"splats": SCENE_FILE, **{name: FILES[name] for name in options.export}},
    }
    with watch.stage("export"):
        shown = as_result(gaussians, inputs, metrics, options.output / SCENE_FILE)
        save_extras(options.export, shown, folder, near, console)
    write_json(folder / METRICS_FILE, metrics)
    return {**metrics, "output": str(options.output)}


def _watched(split: ViewSplit, options: Options) -> list[int]:
    """At most a handful of the photos that may stop the refinement."""
    watched = {"spare": split.spare, "held-out": split.held_out, "none": []}[options.watch]
    return watched[:: -(-len(watched) // _MOST_WATCHED) if watched else 1]


def _refine(
    gaussians: Gaussians, inputs: Scene, watched: Scene, config: RefineConfig, steps: int, console: Console
) -> RefineResult:
    from ilrm.refine import refine

    with console.progress("refining", steps) as advance:
        return refine(
            gaussians,
            inputs,
            steps,
            config=config,
            watch=watched,
            progress=lambda step: advance(f"loss {step.loss:.4f}  inputs {step.psnr:.2f} dB"),
        )


def _refine_report(result: RefineResult | None, options: Options) -> dict[str, Any]:
    if result is None:
        return {"refine_steps_done": 0, "refine_best_step": None, "early_stop": None, "watched": None}
    measured = any(step.watch_psnr is not None for step in result.history)
    return {
        "refine_steps_done": len(result.history),
        "refine_best_step": result.best_step,
        "early_stop": result.stopped_early,
        "watched": options.watch if measured else "none",
    }


def peak_memory_gb(device: torch.device) -> float | None:
    """The most memory in use so far, in GB: of the GPU if that computes, else of the process; None on Windows."""
    if device.type == "cuda":
        import torch

        return round(torch.cuda.max_memory_allocated(device) / 1e9, 3)
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts in bytes, Linux in KiB
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 3)


def show_results(metrics: dict[str, Any], console: Console) -> None:
    """The numbers that matter, and where the files lie."""
    output, memory = Path(metrics["output"]), metrics["peak_memory_gb"]
    rows = {
        "held-out PSNR": _with_before(metrics, "psnr", "{:.2f} dB"),
        "held-out SSIM": _with_before(metrics, "ssim", "{:.3f}"),
        "Gaussians": f"{metrics['num_gaussians']:,} from {metrics['num_inputs']} photos",
        "seconds": f"{sum(metrics['seconds'].values()):.1f}",
        "peak memory": None if memory is None else f"{memory:.2f} GB",
        **{name: output / file for name, file in metrics["files"].items()},
        "input photos": output / INPUTS,
        "renderings": output / RENDERS,
        "numbers": output / METRICS_FILE,
    }
    console.show("", rows)


def _with_before(metrics: dict[str, Any], name: str, form: str) -> str | None:
    if metrics[name] is None:
        return None
    before = metrics[f"{name}_before_refine"]
    return form.format(metrics[name]) + ("" if before is None else f" (before refinement {form.format(before)})")
