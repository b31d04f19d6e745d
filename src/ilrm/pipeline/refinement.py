"""Splat files, fitted further to photos: what ``ilrm refine`` does."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from ilrm.core.checks import check_at_least, check_size, find_device
from ilrm.core.errors import collect_warnings
from ilrm.core.reporting import Reporter, Silent
from ilrm.files import output_file
from ilrm.files.image_files import MAX_PIXELS
from ilrm.pipeline.refine import RefineConfig, refine
from ilrm.pipeline.scoring import score
from ilrm.pipeline.views import split_views
from ilrm.results.beside import find_splats, is_forward_pass
from ilrm.scenes import load_scene
from ilrm.scenes.inputs import input_paths
from ilrm.splats import load_gaussians, save_ply

_MOST_BYTES = 4 << 30  # of decoded photos in memory


def refine_file(
    splats: Path | str,
    scene: Path | str,
    output: Path | str,
    *,
    steps: int = 300,
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

    Held-out photos are not optimised on; their PSNR is measured before and after. Results of a forward pass start from
    wider Gaussians (``RefineConfig.footprint``), all others from what they are.

    Args:
        splats: a splat file, or the folder of a result. scene: its photos, in the same world.
        steps: of Adam.
        views: number of photos to optimise on; all that are not held out by default.
        holdout, size, max_pixels, device, seed, overwrite: see ``RunOptions``.
        antialiased: the splats were trained anti-aliased, which their file does not say.

    Returns:
        the report that the command prints with --json.

    Raises:
        IlrmError: input, output or options that cannot be used; its kind says which.
    """
    check_size(size)
    check_at_least("--steps", steps, 1)
    check_at_least("--max-pixels", max_pixels, 1)
    where, reporter, warnings = find_device(device), reporter or Silent(), []
    with collect_warnings(warnings):
        file = find_splats(Path(splats))
        reads = [file, *input_paths(scene)]
        gaussians = load_gaussians(file, antialiased or None).to(where)
        photos = load_scene(scene, max_side=size, max_pixels=max_pixels)
        split = split_views(photos, Path(scene), views, holdout, seed=seed)
        inputs, held_out = photos.select(split.inputs), photos.select(split.held_out).loaded(_MOST_BYTES)
        near = inputs.cameras.near_plane()
        config = RefineConfig.for_steps(steps, seed)
        if not is_forward_pass(file):
            config = replace(config, footprint=None)
        with output_file(Path(output), reads=reads, overwrite=overwrite) as temporary:
            before = score(gaussians, held_out, near)
            with reporter.progress("refining", steps) as advance:
                result = refine(
                    gaussians,
                    inputs,
                    steps,
                    config=config,
                    watch=photos.select(split.spare),
                    progress=lambda step: advance(f"loss {step.loss:.4f}  inputs {step.psnr:.2f} dB"),
                )
            after = score(result.gaussians, held_out, near)
            save_ply(result.gaussians, temporary)
    return {
        "output": str(output),
        "psnr": after and after[0],
        "ssim": after and after[1],
        "psnr_before_refine": before and before[0],
        "ssim_before_refine": before and before[1],
        "psnr_inputs": _finite(result.psnr_inputs),
        "psnr_inputs_before_refine": _finite(result.psnr_inputs_before),
        "num_gaussians": len(result.gaussians),
        "world_offset": result.gaussians.origin.tolist(),
        "num_inputs": len(inputs),
        "input_names": list(inputs.names),
        "held_out_names": list(held_out.names),
        "refine_steps": steps,
        "refine_steps_done": len(result.history),
        "refine_best_step": result.best_step,
        "early_stop": result.stopped_early,
        "warnings": warnings,
    }


def _finite(decibels: float) -> float | None:
    """None for photos that are matched exactly: JSON knows no infinity."""
    return decibels if math.isfinite(decibels) else None
