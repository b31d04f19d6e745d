"""``ilrm refine``: fit existing Gaussians further to photos."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from ilrm.cli.arguments import MaxPixels, Output, check_at_least, check_size, check_suffix, find_device
from ilrm.cli.console import Console
from ilrm.image_files import MAX_PIXELS


@dataclass(frozen=True)
class Refine:
    """Optimise a splat file on the photos of a scene.

    The photos must share the world frame of the Gaussians. Held-out photos are not optimised on; their PSNR is measured
    before and after.
    """

    gaussians: tyro.conf.Positional[Path]
    """Splat file, or the folder that `ilrm reconstruct` has written."""
    scene: tyro.conf.Positional[Path]
    """A scene's folder or camera file."""
    output: Output
    """Splat file to write (.ply)."""
    steps: int = 300
    """Steps of optimisation."""
    views: int | None = None
    """Number of photos to optimise on; all that are not held out by default."""
    holdout: int | None = None
    """Keep every such photo out, to measure on it; 0 keeps none out. Default as in `ilrm reconstruct`."""
    size: int = 256
    """Longer side of the photos in pixels; larger ones are reduced."""
    max_pixels: MaxPixels = MAX_PIXELS
    widen: float = 1.0
    """Start from Gaussians this many times as large: 1.75 is good for a forward pass of ilrm-small."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    seed: int = 0
    """Of everything that is drawn at random."""
    overwrite: bool = False
    """Replace files of the same names that this program did not write, too."""
    antialiased: bool = False
    """The splats were trained anti-aliased, which their file does not say: opacity is compensated for the blur."""
    json: bool = False
    """Print one JSON object on stdout and nothing else."""

    def run(self, console: Console) -> dict[str, Any]:
        check_size(self.size)
        check_at_least("--steps", self.steps, 1)
        check_at_least("--max-pixels", self.max_pixels, 1)
        check_suffix(self.output, ".ply")
        device = find_device(self.device)
        from ilrm.cli.images import near_plane, score
        from ilrm.cli.views import split_views
        from ilrm.export import load_gaussians, save_ply
        from ilrm.export.beside import find_splats
        from ilrm.files import output_file
        from ilrm.refine import RefineConfig, refine
        from ilrm.scenes import load_scene
        from ilrm.scenes.inputs import input_paths

        config = replace(RefineConfig.for_steps(self.steps, self.seed), widen=self.widen)
        file = find_splats(self.gaussians)
        reads = [file, *input_paths(self.scene)]
        gaussians = load_gaussians(file, self.antialiased or None).to(device)
        scene = load_scene(self.scene, max_side=self.size, max_pixels=self.max_pixels)
        split = split_views(scene, self.scene, self.views, self.holdout, seed=self.seed)
        inputs, held_out = scene.select(split.inputs), scene.select(split.held_out)
        near = near_plane(inputs.cameras)
        with output_file(self.output, reads=reads, overwrite=self.overwrite) as temporary:
            before = score(gaussians, held_out, near)
            with console.progress("refining", self.steps) as advance:
                result = refine(
                    gaussians,
                    inputs,
                    self.steps,
                    config=config,
                    watch=scene.select(split.spare),
                    progress=lambda step: advance(f"loss {step.loss:.4f}  inputs {step.psnr:.2f} dB"),
                )
            after = score(result.gaussians, held_out, near)
            save_ply(result.gaussians, temporary)
        report = {
            "output": str(self.output),
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
            "refine_steps": self.steps,
            "refine_steps_done": len(result.history),
            "refine_best_step": result.best_step,
            "early_stop": result.stopped_early,
            "warnings": list(console.warnings),
        }
        console.show("", {k: v for k, v in report.items() if not isinstance(v, list)})
        return report


def _finite(decibels: float) -> float | None:
    """None for photos that are matched exactly: JSON knows no infinity."""
    return decibels if math.isfinite(decibels) else None
