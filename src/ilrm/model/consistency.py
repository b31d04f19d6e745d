"""What the input views say about each other's matched surfaces: an optional extra input of the network.

Not part of the paper. Every view makes Gaussians of its own, so what several views see is covered several times: their
Gaussians must then be smaller, or the picture blurs with every further view; and a Gaussian that stands where another
view looks through must go, or it hides what is behind. Both can be counted by looking from view to view.

Shape suffixes: B batch, V views, H W rows and columns of the viewpoint grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ilrm.model.config import FootprintDecoder
from ilrm.model.matching import AGREEMENT_TOLERANCE, Match
from ilrm.model.view_geometry import Views

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
def cross_check(match: Match, rgb: Tensor, c2w: Tensor, K: Tensor, decoder: FootprintDecoder) -> Consistency:
    """Look at every view's matched points from every other view.

    Args:
        rgb: (B, V, H, W, 3) in [0, 1] on the viewpoint grid.
        c2w: (B, V, 4, 4).  K: (B, V, 3, 3) in pixels of that grid.
    """
    with torch.autocast(rgb.device.type, enabled=False):
        samples = [
            _cross_check(match.fraction[b].float(), rgb[b].float(), c2w[b].float(), K[b].float(), decoder)
            for b in range(len(rgb))
        ]
    return Consistency(*torch.stack(samples).unbind(-1))


def _cross_check(fraction: Tensor, rgb: Tensor, c2w: Tensor, K: Tensor, decoder: FootprintDecoder) -> Tensor:
    """(V, H, W, 6): the fields of ``Consistency`` in their order, of one sample."""
    V, H, W = fraction.shape
    log_range = math.log(decoder.far / decoder.near)
    views = Views.of(c2w, K, W, H, V - 1)
    distance = decoder.near * torch.exp(log_range * fraction)
    points = views.points(distance)
    focal = 0.5 * (K[:, 0, 0] + K[:, 1, 1])[:, None, None]
    maps = torch.cat([distance[..., None].log(), rgb], dim=-1)
    density, agreeing, contradicting, hiding, seeing, difference = torch.zeros(6, V, H, W, device=rgb.device)
    for slot in range(views.sources.shape[1]):
        seen, from_source, theirs = views.look_from(slot, points, maps)
        behind = theirs[..., 0] - from_source.log()  # above 0: the source's surface lies behind the point
        agrees = torch.where(seen, torch.exp(-behind.abs() / AGREEMENT_TOLERANCE), 0.0)
        samples = (distance / focal * focal[views.sources[:, slot]] / from_source).square().clamp_max(_MOST_SAMPLES)
        density = density + agrees * samples
        agreeing = agreeing + agrees
        contradicting = contradicting + torch.where(seen, _beyond_doubt(behind), 0.0)
        hiding = hiding + torch.where(seen, _beyond_doubt(-behind), 0.0)
        seeing = seeing + seen
        difference = difference + agrees * (theirs[..., 1:] - rgb).abs().mean(-1)
    colour_error = difference / agreeing.clamp_min(0.1)
    return torch.stack([1 + density, agreeing, contradicting, hiding, seeing, colour_error], dim=-1)


def _beyond_doubt(error: Tensor) -> Tensor:
    """0 up to the slack, then towards 1 as the error leaves what still counts as agreement."""
    return 1 - torch.exp(-F.relu(error - _SLACK) / AGREEMENT_TOLERANCE)
