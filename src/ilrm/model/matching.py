"""Plane-sweep matching between input views: an optional, learned-from but not learned, extra input of the network.

Not part of the paper. A small network trained for an hour learns the layout of scenes but hardly learns to match
across views, while a winner-takes-all sweep matches well wherever there is texture. The sweep's depth and score are
two more channels of the image tokens, and the footprint decoder starts from it through a gate that it can close.

Shape suffixes: N = B * V reference views, S source views of each, H W rows and columns of the viewpoint grid, P planes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ilrm.cameras import rays
from ilrm.errors import ConfigError
from ilrm.model.config import FootprintDecoder, ILRMConfig

# Variance of grey values below which a window counts as plain: (two grey levels of 255) squared.
_PLAIN_VARIANCE = (2 / 255) ** 2
# Score of a hypothesis that no source view sees: worse than any correlation.
_UNSEEN = -1.0


@dataclass(frozen=True, eq=False)
class Match:
    """Matched depth of every viewpoint pixel.

    fraction (B, V, H, W): log(distance / near) / log(far / near) in [0, 1]; score (B, V, H, W): correlation in [-1, 1].
    """

    fraction: Tensor
    score: Tensor

    def channels(self, factor: int) -> Tensor:
        """(B, V, H * factor, W * factor, 2) image channels: fraction mapped to [-1, 1], score."""
        both = torch.stack([2 * self.fraction - 1, self.score], dim=-1)
        return both.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


@torch.no_grad()
def match_depth(rgb: Tensor, c2w: Tensor, K: Tensor, config: ILRMConfig) -> Match:
    """Winner-takes-all depth of every pixel by correlation with the nearest other views.

    Hypotheses are distances along the pixel's ray, uniform in log between the decoder's near and far. The score of
    one is the zero-mean normalised correlation of grey windows, averaged over the better half of the source views
    that see it (the others may be occluded). The winner is refined by a parabola through its neighbours.

    Args:
        rgb: (B, V, H, W, 3) in [0, 1] on the viewpoint grid.
        c2w: (B, V, 4, 4).  K: (B, V, 3, 3) in pixels of that grid.
    """
    matching, decoder = config.matching, config.decoder
    if matching is None or not isinstance(decoder, FootprintDecoder):
        raise ConfigError("match_depth needs a config with matching and a footprint decoder.")
    B, V, H, W, _ = rgb.shape
    if V == 1:
        middle = torch.full((B, V, H, W), 0.5, device=rgb.device)
        return Match(middle, torch.full_like(middle, _UNSEEN))
    with torch.autocast(rgb.device.type, enabled=False):
        grey_NHW = rgb.float().mean(-1).flatten(0, 1)
        sources_NS = source_views(c2w, matching.sources)
        planes_P = torch.linspace(0, 1, matching.planes, device=rgb.device)
        distances_P = decoder.near * torch.exp(math.log(decoder.far / decoder.near) * planes_P)
        # One sample at a time bounds memory by the views of one sample.
        scores = [
            _sweep(part, c2w[b].float(), K[b].float(), sources_NS[b], distances_P, matching.window)
            for b, part in enumerate(grey_NHW.split(V))
        ]
        fraction, score = zip(*(_winner(x) for x in scores), strict=True)
    return Match(torch.stack(fraction), torch.stack(score))


def source_views(c2w_BV44: Tensor, count: int) -> Tensor:
    """(B, V, S) indices of the views most like each view: near by, looking the same way. S <= V - 1."""
    centre, forward = c2w_BV44[..., :3, 3].float(), c2w_BV44[..., :3, 2].float()
    apart = torch.cdist(centre, centre)
    spread = apart.amax((1, 2), keepdim=True).clamp_min(1e-12)
    cost = apart / spread + (1 - forward @ forward.transpose(1, 2))
    cost.diagonal(dim1=1, dim2=2).fill_(float("inf"))
    count = min(count, c2w_BV44.shape[1] - 1)
    return cost.argsort(dim=-1, stable=True)[..., :count]


def _sweep(
    grey_VHW: Tensor, c2w_V44: Tensor, K_V33: Tensor, sources_VS: Tensor, distances_P: Tensor, window: int
) -> Tensor:
    """Scores (V, P, H, W) of all hypotheses of one sample."""
    V, H, W = grey_VHW.shape
    origins, directions = rays(c2w_V44, K_V33, W, H)
    reference = grey_VHW[:, None]
    mean_r = _box(reference, window)
    var_r = _box(reference.square(), window) - mean_r.square()
    better = (sources_VS.shape[1] + 1) // 2
    scores = torch.empty(V, len(distances_P), H, W, device=grey_VHW.device)

    projections = []  # a source sees the point at distance t at pixel-homogeneous t * slope + base
    for s in range(sources_VS.shape[1]):
        source = sources_VS[:, s]
        to_pixel = K_V33[source] @ c2w_V44[source, :3, :3].transpose(1, 2)
        slope = torch.einsum("vij,vhwj->vhwi", to_pixel, directions)
        base = torch.einsum("vij,vhwj->vhwi", to_pixel, origins - c2w_V44[source, None, None, :3, 3])
        projections.append((grey_VHW[source][:, None], slope, base))
    size = torch.tensor([W, H], dtype=torch.float32, device=grey_VHW.device)
    for p, distance in enumerate(distances_P):
        of_sources = []
        for image, slope, base in projections:
            point = slope * distance + base
            z = point[..., 2:]
            grid = 2 * point[..., :2] / z.clamp_min(1e-6) / size - 1
            seen = ((grid.abs() < 1).all(-1) & (z[..., 0] > 1e-6))[:, None]
            warped = F.grid_sample(image, grid.clamp(-2, 2), padding_mode="border", align_corners=False)
            mean_s = _box(warped, window)
            var_s = _box(warped.square(), window) - mean_s.square()
            covariance = _box(warped * reference, window) - mean_s * mean_r
            spread = (var_r.clamp_min(0) + _PLAIN_VARIANCE) * (var_s.clamp_min(0) + _PLAIN_VARIANCE)
            of_sources.append(torch.where(seen, covariance * spread.rsqrt(), _UNSEEN))
        best = torch.cat(of_sources, dim=1).topk(better, dim=1).values  # (V, better, H, W)
        count = (best > _UNSEEN).sum(1).clamp_min(1)
        seen_sum = torch.where(best > _UNSEEN, best, 0.0).sum(1)
        scores[:, p] = torch.where(best[:, 0] > _UNSEEN, seen_sum / count, _UNSEEN)
    return scores


def _box(x: Tensor, window: int) -> Tensor:
    """Mean over a window around each pixel (cut at the border), rows after columns: 2 w instead of w^2 additions."""
    half = window // 2
    rows = F.avg_pool2d(x, (window, 1), stride=1, padding=(half, 0), count_include_pad=False)
    return F.avg_pool2d(rows, (1, window), stride=1, padding=(0, half), count_include_pad=False)


def _winner(scores_VPHW: Tensor) -> tuple[Tensor, Tensor]:
    """Fraction of the log range (V, H, W) and score (V, H, W) of the best hypothesis, refined between planes."""
    planes = scores_VPHW.shape[1]
    score, index = scores_VPHW.max(dim=1, keepdim=True)
    before = scores_VPHW.gather(1, (index - 1).clamp_min(0))
    after = scores_VPHW.gather(1, (index + 1).clamp_max(planes - 1))
    curvature = before - 2 * score + after
    shift = torch.where(curvature < -1e-6, 0.5 * (before - after) / curvature, 0.0).clamp(-0.5, 0.5)
    inside = (index > 0) & (index < planes - 1) & (before > _UNSEEN) & (after > _UNSEEN)
    fraction = (index + torch.where(inside, shift, 0.0)) / (planes - 1)
    return fraction[:, 0], score[:, 0]
