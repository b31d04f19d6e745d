"""What the input views say about each other's matched surfaces: an optional extra input of the network.

Not part of the paper. Every view makes Gaussians of its own, so what several views see is covered several times: their
Gaussians must then be smaller, or the picture blurs with every further view; and a Gaussian that stands where another
view looks through must go, or it hides what is behind. Both can be counted by looking from view to view.

Shape suffixes: B samples of V views, H W rows and columns of the viewpoint grid. Samples are folded into views, as in
``view_geometry``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ilrm.core.precision import without_autocast
from ilrm.model.config import FootprintDecoder
from ilrm.model.matching.sweep import AGREEMENT_TOLERANCE, Match
from ilrm.model.matching.view_geometry import ViewGeometry, at_a_time

# Errors in log-distance below this are no contradiction.
_SLACK = 0.05
# A nearer view counts for more samples of the surface, but no more than this.
_MOST_SAMPLES = 4.0


@dataclass(frozen=True, eq=False)
class Consistency:
    """Maps (B, V, H, W) over the viewpoint pixels' matched points, counted over all other views.

    density: samples of the surface by all views, in units of the view's own (from 1).
    agreeing: views that matched the same surface.
    contradicting: views that look through the point to something behind it.
    hiding: views that see something else in front of it.
    seeing: views in whose image it lies.
    colour_error: mean difference from the colours in the agreeing views, in [0, 1].
    """

    density: Tensor
    agreeing: Tensor
    contradicting: Tensor
    hiding: Tensor
    seeing: Tensor
    colour_error: Tensor

    def doubt(self) -> Tensor:
        """(B, V, H, W) in [0, 1): contradicting views as a share of those that see the point and one more."""
        return self.contradicting / (self.seeing + 1)

    def channels(self) -> Tensor:
        """(B, V, H, W, 6), all of about unit size."""
        share = self.seeing + 1
        return torch.stack(
            [
                0.5 * self.density.log(),
                self.agreeing / share,
                self.doubt(),
                self.hiding / share,
                0.5 * share.log(),
                5 * self.colour_error,
            ],
            dim=-1,
        )


@torch.no_grad()
def cross_check(
    match: Match, rgb: Tensor, c2w: Tensor, K: Tensor, decoder: FootprintDecoder, hidden: Tensor | None = None
) -> Consistency:
    """Look at every view's matched points from every other view.

    Args:
        rgb: (B, V, H, W, 3) in [0, 1] on the viewpoint grid.
        c2w: (B, V, 4, 4).  K: (B, V, 3, 3) in pixels of that grid.
        hidden: (B, V, H, W) bool, pixels that say nothing.
    """
    B, V, H, W = match.fraction.shape
    with without_autocast(rgb.device):
        views = ViewGeometry.of(c2w.float(), K.float(), W, H, V - 1, hidden)
        counted = _count(match.fraction.flatten(0, 1).float(), rgb.flatten(0, 1).float(), views, decoder)
    return Consistency(*(x.unflatten(0, (B, V)) for x in counted))


def _count(fraction: Tensor, rgb: Tensor, views: ViewGeometry, decoder: FootprintDecoder) -> tuple[Tensor, ...]:
    """Six maps (B * V, H, W): the fields of ``Consistency`` in their order."""
    distance = decoder.near * torch.exp(math.log(decoder.far / decoder.near) * fraction)
    points = views.points(distance)
    focal = 0.5 * (views.K[:, 0, 0] + views.K[:, 1, 1])[:, None, None]
    maps = torch.cat([distance[..., None].log(), rgb], dim=-1)
    density, agreeing, contradicting, hiding, seeing, difference = rgb.new_zeros(6, *fraction.shape).unbind()
    # A few sources at a time: each view looks at all others, and memory would grow with the square of their number.
    for source in views.sources.split(at_a_time(maps), dim=1):
        seen, from_source, theirs = views.look_from(source, points, maps)
        behind = theirs[..., 0] - from_source.log()  # above 0: the source's surface lies behind the point
        agrees = torch.where(seen, torch.exp(-behind.abs() / AGREEMENT_TOLERANCE), 0.0)
        own = (distance / focal)[:, None]
        samples = (own * focal[source] / from_source).square().clamp_max(_MOST_SAMPLES)
        density = density + (agrees * samples).sum(1)
        agreeing = agreeing + agrees.sum(1)
        contradicting = contradicting + torch.where(seen, _beyond_doubt(behind), 0.0).sum(1)
        hiding = hiding + torch.where(seen, _beyond_doubt(-behind), 0.0).sum(1)
        seeing = seeing + seen.sum(1)
        difference = difference + (agrees * (theirs[..., 1:] - rgb[:, None]).abs().mean(-1)).sum(1)
    colour_error = difference / agreeing.clamp_min(0.1)
    return 1 + density, agreeing, contradicting, hiding, seeing, colour_error


def _beyond_doubt(error: Tensor) -> Tensor:
    """0 up to the slack, then towards 1 as the error leaves what still counts as agreement."""
    return 1 - torch.exp(-F.relu(error - _SLACK) / AGREEMENT_TOLERANCE)
