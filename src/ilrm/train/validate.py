"""How good the network is on fixed scenes, in numbers and to look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

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
        psnr_by_kind: of each kind of source by its name, where there is more than one.
        picture: (H, W, 3) in [0, 1] on the CPU; a row for each sample: truth, rendering, rendered depth of a target.
    """

    psnr: float
    ssim: float | None
    depth_abs_rel: float | None
    picture: Tensor
    psnr_by_kind: Mapping[str, float] = field(default_factory=dict)

    @property
    def scores(self) -> dict[str, float | None]:
        by_kind = {f"psnr_{kind}": value for kind, value in self.psnr_by_kind.items()}
        return {"psnr": self.psnr, "ssim": self.ssim, "depth_abs_rel": self.depth_abs_rel, **by_kind}


@torch.no_grad()
def validate(reconstruct: Callable[[Batch], Gaussians], batches: Sequence[Batch]) -> Validation:
    """Render the targets of fixed batches and compare.

    Args:
        reconstruct: batch -> Gaussians (B, N) in the batch's frame.
        batches: of one image size.
    """
    psnrs, ssims, errors, rows = [], [], [], []
    by_kind: dict[str, list[float]] = {}
    for batch in batches:
        gaussians = reconstruct(batch)
        batch = batch.to(gaussians.device)
        seen, truth = render(gaussians, batch.target_cameras), batch.target_images
        found = psnr(seen.rgb.flatten(0, 1), truth.flatten(0, 1)).view(len(batch), -1)
        psnrs += found.flatten().tolist()
        for kind, of_sample in zip(batch.kinds, found, strict=False):
            by_kind.setdefault(kind, []).extend(of_sample.tolist())
        if min(truth.shape[2:4]) >= SSIM_WINDOW:
            ssims += ssim(seen.rgb.clamp(0, 1).flatten(0, 1), truth.flatten(0, 1)).tolist()
        if batch.depth is not None:
            true_depth = batch.depth[:, batch.inputs :].flatten(0, 1)
            known = (true_depth > 0).flatten(1).any(1)
            errors += depth_abs_rel(seen.depth.flatten(0, 1)[known], true_depth[known]).tolist() if known.any() else []
        for b in range(len(batch)):
            depth = colour_depth(seen.depth[b, 0])
            rows.append(torch.cat([truth[b, 0], seen.rgb[b, 0].clamp(0, 1), depth], dim=1).cpu())
    return Validation(
        psnr=_mean(psnrs),
        ssim=_mean(ssims) if ssims else None,
        depth_abs_rel=_mean(errors) if errors else None,
        picture=torch.cat(rows),
        psnr_by_kind={kind: _mean(values) for kind, values in by_kind.items()} if len(by_kind) > 1 else {},
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
