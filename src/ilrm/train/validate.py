"""How good the network is on fixed scenes, in numbers and to look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ilrm.core.gaussians import Gaussians
from ilrm.evaluate import depth_abs_rel, psnr, ssim
from ilrm.evaluate.metrics import SSIM_WINDOW
from ilrm.render import render
from ilrm.render.depth_colours import colour_depth
from ilrm.train.data.batch import Batch


@dataclass(frozen=True, eq=False)
class Validation:
    """Scores of one validation.

    Attributes:
        psnr, ssim: means over samples and target views; PSNR in dB. SSIM is None for images too small for it.
        depth_abs_rel: mean relative error of the rendered depth of the targets; None where no truth is known.
        picture: (H, W, 3) in [0, 1] on the CPU; a row for each sample: truth, rendering, rendered depth of a target.
    """

    psnr: float
    ssim: float | None
    depth_abs_rel: float | None
    picture: Tensor

    @property
    def scores(self) -> dict[str, float | None]:
        return {"psnr": self.psnr, "ssim": self.ssim, "depth_abs_rel": self.depth_abs_rel}


@torch.no_grad()
def validate(reconstruct: Callable[[Batch], Gaussians], batches: Sequence[Batch]) -> Validation:
    """Render the targets of fixed batches and compare.

    Args:
        reconstruct: batch -> Gaussians (B, N) in the batch's frame.
        batches: of one image size.
    """
    psnrs, ssims, errors, rows = [], [], [], []
    for batch in batches:
        gaussians = reconstruct(batch)
        batch = batch.to(gaussians.device)
        seen, truth = render(gaussians, batch.target_cameras), batch.target_images
        psnrs += psnr(seen.rgb.flatten(0, 1), truth.flatten(0, 1)).tolist()
        if min(truth.shape[2:4]) >= SSIM_WINDOW:
            ssims += ssim(seen.rgb.clamp(0, 1).flatten(0, 1), truth.flatten(0, 1)).tolist()
        if batch.depth is not None:
            true_depth = batch.depth[:, batch.inputs :].flatten(0, 1)
            known = (true_depth > 0).flatten(1).any(1)
            errors += depth_abs_rel(seen.depth.flatten(0, 1)[known], true_depth[known]).tolist() if known.any() else []
        for b in range(len(batch)):
            depth = colour_depth(seen.depth[b, 0])
            rows.append(torch.cat([truth[b, 0], seen.rgb[b, 0].clamp(0, 1), depth], dim=1).cpu())
    return Validation(_mean(psnrs), _mean(ssims) if ssims else None, _mean(errors) if errors else None, torch.cat(rows))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
