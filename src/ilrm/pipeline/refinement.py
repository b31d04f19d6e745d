"""``refine_file``: optimising a splat file on photos, as ``ilrm refine`` does."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilrm.core.checks import MAX_PIXELS, check_at_least, check_size, check_suffix, find_device
from ilrm.core.errors import collect_warnings
from ilrm.core.gaussians import Gaussians
from ilrm.core.reporting import Reporter, Silent
from ilrm.core.scene import Scene
from ilrm.files import output_file
from ilrm.pipeline.forward.budget import Budget, Effort
from ilrm.pipeline.options import REFINE_SECONDS
from ilrm.pipeline.refine import RefineConfig, RefineResult, RefineStep, refine
from ilrm.pipeline.scoring import score
from ilrm.pipeline.views import split_views
from ilrm.results.beside import find_splats
from ilrm.scenes import load_scene
from ilrm.scenes.inputs import input_paths
from ilrm.splats import load_gaussians, save_ply

_MOST_BYTES = 4 << 30  # of decoded photos in memory


def refine_file(
    splats: Path | str,
    scene: Path | str,
    output: Path | str,
    *,
    steps: int | None = None,
    seconds: float | str | None = None,
    views: int | None = None,
    holdout: int | None = None,
    size: int = 256,
    max_pixels: int = MAX_PIXELS,
    device: str = "auto",
    seed: int = 0,
    overwrite: bool = False,
    antialiased: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Optimise a splat file on the photos of a scene, and write the result as .ply.

    Held-out photos are not used for optimisation; their PSNR is measured before and after.

    Args:
        splats: a splat file, or the folder of a result. scene: its photos, in the same world.
        steps: of Adam; by default as many as fit into the time.
        seconds: of optimisation, a number or text such as "2min"; by default ``REFINE_SECONDS``, unless ``steps`` are
            given. With both, the first limit that is reached ends it.
        views: number of photos to optimise on; by default all that are not held out.
        holdout, size, max_pixels, device, seed, overwrite: see ``RunOptions``.
        antialiased: treat the splats as trained anti-aliased, for files that do not say so.

    Returns:
        the report that the command prints with --json.

    Raises:
        IlrmError: invalid input, output or options; the subclass says which.
    """
    check_suffix(Path(output), ".ply")
    check_size(size)
    check_at_least("--steps", 1 if steps is None else steps, 1)
    limit = Budget.parse(seconds=seconds).seconds
    check_at_least("--max-pixels", max_pixels, 1)
    target, warnings = find_device(device), []
    with collect_warnings(warnings):
        file = find_splats(Path(splats))
        reads = [file, *input_paths(scene)]
        gaussians = load_gaussians(file, antialiased or None).to(target)
        photos = _load_photos(Path(scene), views, holdout, size, max_pixels, seed)
        with output_file(Path(output), reads=reads, overwrite=overwrite) as temporary:
            effort = Effort(steps, REFINE_SECONDS[target.type] if steps is None and limit is None else limit)
            report, refined = _refine_and_score(gaussians, photos, effort, seed, reporter)
            save_ply(refined, temporary)
    return {"output": str(output), **report, "warnings": warnings}


def refine_reported(
    gaussians: Gaussians, inputs: Scene, watch: Scene, effort: Effort, config: RefineConfig, reporter: Reporter
) -> RefineResult:
    """``refine`` with a progress bar."""
    start, shown = time.perf_counter(), 0

    def told(step: RefineStep) -> None:
        nonlocal shown
        done = step.step if effort.steps is not None else int(time.perf_counter() - start)
        advance(f"loss {step.loss:.4f}  photos {step.psnr:.2f} dB", steps=max(done - shown, 0))
        shown = max(done, shown)

    total = effort.steps if effort.steps is not None else math.ceil(effort.seconds or 0)
    with reporter.progress("refining" if effort.steps is not None else "refining (seconds)", total) as advance:
        return refine(
            gaussians, inputs, effort.steps, seconds=effort.seconds, config=config, watch=watch, progress=told
        )


@dataclass(frozen=True)
class _Photos:
    """The photos of a scene by their use."""

    inputs: Scene
    held_out: Scene
    spare: Scene


def _load_photos(path: Path, views: int | None, holdout: int | None, size: int, max_pixels: int, seed: int) -> _Photos:
    scene = load_scene(path, max_side=size, max_pixels=max_pixels)
    split = split_views(scene, path, views, holdout, seed=seed)
    held_out = scene.select(split.held_out).loaded(_MOST_BYTES)
    return _Photos(scene.select(split.inputs), held_out, scene.select(split.spare))


def _refine_and_score(
    gaussians: Gaussians, photos: _Photos, effort: Effort, seed: int, reporter: Reporter | None
) -> tuple[dict[str, Any], Gaussians]:
    """The report without output and warnings, and the refined Gaussians."""
    near = photos.inputs.cameras.near_plane()
    before = score(gaussians, photos.held_out, near)
    config = RefineConfig.for_steps(effort.steps, seed).for_views(len(photos.inputs), seed)
    result = refine_reported(gaussians, photos.inputs, photos.spare, effort, config, reporter or Silent())
    after = score(result.gaussians, photos.held_out, near)
    report = {
        "psnr": after and after[0],
        "ssim": after and after[1],
        "psnr_before_refine": before and before[0],
        "ssim_before_refine": before and before[1],
        "psnr_inputs": _finite(result.psnr_inputs),
        "psnr_inputs_before_refine": _finite(result.psnr_inputs_before),
        "num_gaussians": len(result.gaussians),
        "world_offset": result.gaussians.origin.tolist(),
        "num_inputs": len(photos.inputs),
        "input_names": list(photos.inputs.names),
        "held_out_names": list(photos.held_out.names),
        "refine_steps": effort.steps,
        "refine_seconds": effort.seconds,
        "refine_steps_done": len(result.history),
        "refine_best_step": result.best_step,
        "early_stop": result.stopped_early,
    }
    return report, result.gaussians


def _finite(decibels: float) -> float | None:
    """None for infinity (photos that are matched exactly), which JSON cannot represent."""
    return decibels if math.isfinite(decibels) else None
