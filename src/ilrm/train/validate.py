"""How good the network is on fixed scenes, in numbers and to look at."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ilrm.cameras import Cameras
from ilrm.evaluate import depth_abs_rel, psnr, ssim
from ilrm.evaluate.metrics import SSIM_WINDOW
from ilrm.files import write_bytes
from ilrm.gaussians import Gaussians
from ilrm.render import render
from ilrm.render.depth_colours import colour_depth
from ilrm.train.batch import Batch


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
        height, width = batch.images.shape[2:4]
        targets = slice(batch.inputs, None)
        for b in range(len(batch)):
            seen = render(gaussians[b], Cameras(batch.c2w[b, targets], batch.K[b, targets], width, height))
            truth = batch.images[b, targets]
            psnrs += psnr(seen.rgb, truth).tolist()
            if min(height, width) >= SSIM_WINDOW:
                ssims += ssim(seen.rgb.clamp(0, 1), truth).tolist()
            if batch.depth is not None:
                known = (batch.depth[b, targets] > 0).flatten(1).any(1)
                if known.any():
                    errors += depth_abs_rel(seen.depth[known], batch.depth[b, targets][known]).tolist()
            rows.append(torch.cat([truth[0], seen.rgb[0].clamp(0, 1), colour_depth(seen.depth[0])], dim=1).cpu())
    return Validation(_mean(psnrs), _mean(ssims) if ssims else None, _mean(errors) if errors else None, torch.cat(rows))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def save_picture(image: Tensor, path: Path) -> None:
    """Write an image (H, W, 3) in [0, 1] as PNG. Raises OutputError."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image.mul(255).round().byte().numpy()).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())
