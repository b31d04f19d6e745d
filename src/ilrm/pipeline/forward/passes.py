"""The forward pass of a run: in one go, or group by group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ilrm.core.gaussians import Gaussians
from ilrm.core.reporting import Reporter
from ilrm.core.scene import Scene
from ilrm.model.hidden import hidden_pixels
from ilrm.model.ilrm import ILRM
from ilrm.model.reconstruct import Precision, reconstruct
from ilrm.model.tokens import round_size
from ilrm.pipeline.forward.fusion import Part, fuse
from ilrm.pipeline.forward.groups import Group
from ilrm.render import render

# Where less of a pixel is covered, it shows no surface.
_LEAST_ALPHA = 0.5


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """What a forward pass gave.

    Attributes:
        gaussians: N in the scene's world frame.
        groups: how many groups of photos they come from.
        made: Gaussians before groups were fused.
        merged: of these, left out because another group made the same surface.
        dropped: of these, left out because they were in front of what other groups saw.
        near: near plane in world units.
    """

    gaussians: Gaussians
    groups: int
    made: int
    merged: int
    dropped: int
    near: float

    def report(self) -> dict[str, int]:
        """Of metrics.json."""
        return {
            "groups": self.groups,
            "gaussians_before_fusion": self.made,
            "gaussians_merged": self.merged,
            "gaussians_dropped": self.dropped,
        }


def forward_pass(
    inputs: Scene,
    model: ILRM,
    groups: Sequence[Group],
    *,
    precision: Precision,
    feedback: int,
    points: bool = False,
    reporter: Reporter,
) -> ForwardPass:
    """Gaussians of all inputs. Only one group's photos and activations are in memory at a time.

    Args:
        inputs: the photos, decoded or not.
        groups: of their indices. A single one is what ``reconstruct`` makes.
        precision, feedback, points: see ``reconstruct``. Gaussians of points alone are made only of a single group.

    Raises:
        SceneError, CameraError, ConfigError: as ``reconstruct``.
    """
    if len(groups) == 1:
        gaussians = reconstruct(inputs.loaded(), model, precision=precision, feedback=feedback, points=points)
        return ForwardPass(gaussians, 1, len(gaussians), 0, 0, inputs.cameras.near_plane())
    device, parts = next(model.parameters()).device, []
    with reporter.progress("groups", len(groups)) as advance:
        for group in groups:
            photos = inputs.select(group.views).loaded()
            gaussians = reconstruct(photos, model, precision=precision, feedback=feedback, points=points)
            parts.append(_part(gaussians, photos, len(group.own), model))
            advance(f"{len(group)} photos, {len(parts[-1].gaussians):,} Gaussians")
    made = sum(len(part.gaussians) for part in parts)
    with reporter.progress("fusing", len(parts)) as advance:
        fused = fuse(parts, lambda: advance(""))
    near = min(inputs.cameras[group.views].near_plane() for group in groups)
    gaussians = fused.gaussians.to(device)
    return ForwardPass(gaussians, len(groups), made, fused.duplicates, fused.doubtful, near)


@torch.no_grad()
def _part(gaussians: Gaussians, photos: Scene, own: int, model: ILRM) -> Part:
    """The first ``own`` photos' Gaussians, and the surface that they see of all, on the CPU."""
    near, factor = photos.cameras.near_plane(), model.config.viewpoint_factor
    cameras = photos.cameras[list(range(own))]
    # Half as fine as the photos are where Gaussians are: one of its own for each pixel of the viewpoint grid.
    cameras = cameras.resize(max(1, cameras.width // factor), max(1, cameras.height // factor))
    depth = []
    for view in range(own):
        seen = render(gaussians, cameras[view], near=near)
        depth.append(torch.where(seen.alpha[0] >= _LEAST_ALPHA, seen.depth[0], 0.0).cpu())
    count = _count(photos.select(range(own)), model)
    return Part(gaussians[:count].to("cpu"), cameras.to("cpu"), torch.stack(depth))


def _count(photos: Scene, model: ILRM) -> int:
    """How many Gaussians ``reconstruct`` makes of these photos: one for each viewpoint pixel that counts."""
    config = model.config
    rows, columns = (
        round_size(side, config.size_multiple) // config.viewpoint_factor
        for side in (photos.cameras.height, photos.cameras.width)
    )
    if photos.mask is None:
        return len(photos) * rows * columns
    return int((~hidden_pixels(photos.mask[:][None], rows, columns)).sum())
