"""Evaluating Gaussians on photos: scores and comparison images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ilrm.core.cameras import Cameras
from ilrm.core.gaussians import Gaussians
from ilrm.core.reporting import Reporter
from ilrm.core.scene import Scene
from ilrm.evaluate import psnr, ssim
from ilrm.evaluate.metrics import mean_of_known
from ilrm.files.image_files import save_png
from ilrm.pictures.video import as_image8
from ilrm.render import render
from ilrm.scenes.names import file_stems


def score(gaussians: Gaussians, scene: Scene, near: float) -> tuple[float, float | None] | None:
    """Mean PSNR in dB and mean SSIM over the views of a scene; None if no pixel counts in any view."""
    psnrs, ssims = [], []
    for view in range(len(scene)):
        rgb, truth = render_view(gaussians, scene.cameras[view], near), scene.images[[view]]
        mask = scene.mask_of([view])
        psnrs.append(psnr(rgb[None], truth, mask).item())
        ssims.append(ssim(rgb[None], truth, mask).item())
    mean = mean_of_known(psnrs)
    return None if mean is None else (mean, mean_of_known(ssims))


@torch.no_grad()
def render_view(gaussians: Gaussians, camera: Cameras, near: float) -> Tensor:
    """The rendering of one camera, (H, W, 3) on the CPU, not clamped."""
    return render(gaussians, camera, near=near).rgb[0].cpu()


def save_comparisons(gaussians: Gaussians, scene: Scene, folder: Path, near: float, reporter: Reporter) -> None:
    """Write for every view NAME.png, the rendering, and NAME_vs_truth.png, the rendering beside the photo."""
    with reporter.progress("rendering", len(scene)) as advance:
        for view, stem in enumerate(file_stems(scene.names)):
            rgb = render_view(gaussians, scene.cameras[view], near)
            save_png(as_image8(rgb), folder / f"{stem}.png")
            save_png(as_image8(torch.cat([rgb, scene.images[view].cpu()], dim=1)), folder / f"{stem}_vs_truth.png")
            advance("")
