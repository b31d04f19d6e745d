"""Plane-sweep matching between input views: an optional extra input of the network.

Not part of the paper. A small network trained for an hour learns the layout of scenes but hardly learns to match
across views, while a sweep over depth hypotheses matches well wherever there is texture. The sweep's depth, its score
and its agreement between views are more channels of the image tokens, and the footprint decoder starts from that depth
through a gate that it can close. The sweep itself computes correlations and learns nothing; a small convolutional
network (``MatchingNet``) may then weigh the hypotheses.

Shape suffixes: V views of one sample, S source views of each, H W rows and columns of the viewpoint grid, P planes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ilrm.errors import ConfigError
from ilrm.model.config import FootprintDecoder, ILRMConfig, MatchingConfig
from ilrm.model.matching_net import MatchingNet
from ilrm.model.view_geometry import Views

# Variance of grey values below which a window counts as plain: (two grey levels of 255) squared.
_PLAIN_VARIANCE = (2 / 255) ** 2
# Score of a hypothesis that no source view sees: worse than any correlation.
_UNSEEN = -1.0
# Window that scores of the fine sweep are averaged over; smaller than the coarse one, to follow surfaces.
_FINE_WINDOW = 3
# Planes on either side of the likeliest one that its place is averaged over.
_NEIGHBOURS = 2
# Error in log-distance at which a source view's own depth half contradicts a pixel's (factor 1 / e).
AGREEMENT_TOLERANCE = 0.1


@dataclass(frozen=True, eq=False)
class Match:
    """Matched depth of every viewpoint pixel, three maps (B, V, H, W).

    fraction: log(distance / near) / log(far / near) in [0, 1], filled in smoothly where views disagree.
    score: in [-1, 1], correlation of the hypothesis that won, or twice its learned probability less one.
    agreement: of the views' own depths, in [0, 1].
    logits: (B, V, P, H, W) of all hypotheses, if they are weighed by a learned network.
    """

    fraction: Tensor
    score: Tensor
    agreement: Tensor
    logits: Tensor | None = None

    def channels(self) -> Tensor:
        """(B, V, H, W, 3), all in [-1, 1]."""
        return torch.stack([2 * self.fraction - 1, self.score, 2 * self.agreement - 1], dim=-1)

    def error(self, distance_BVHW: Tensor, decoder: FootprintDecoder) -> Tensor:
        """Mean cross-entropy (B,) of the learned probabilities with the true distance along each pixel's ray.

        The truth between two planes counts for both, by nearness. Pixels of unknown distance (0) do not count; a
        sample without any known one has error 0.
        """
        assert self.logits is not None, "only learned matching has probabilities"
        planes = self.logits.shape[2]
        log_range = math.log(decoder.far / decoder.near)
        place = torch.log(distance_BVHW.clamp_min(1e-6) / decoder.near) / log_range * (planes - 1)
        place = place.clamp(0, planes - 1 - 1e-3)[:, :, None]
        below = place.floor().long()
        log_p = self.logits.float().log_softmax(2)
        upper = place - below
        entropy = -((1 - upper) * log_p.gather(2, below) + upper * log_p.gather(2, below + 1))[:, :, 0]
        known = distance_BVHW > 0
        return torch.where(known, entropy, 0.0).flatten(1).sum(1) / known.flatten(1).sum(1).clamp_min(1)


def match_depth(rgb: Tensor, c2w: Tensor, K: Tensor, config: ILRMConfig, net: MatchingNet | None = None) -> Match:
    """Depth of every pixel by correlation with the nearest other views.

    Hypotheses are distances along the pixel's ray, uniform in log between the decoder's near and far. The score of
    one is the zero-mean normalised correlation of grey windows, averaged over the better half of the source views
    that see it (the others may be occluded) and over a window of neighbours. The winner is refined between the planes,
    then compared with what the source views found at the same place: where they disagree it is replaced by what lies
    around it. Gradients flow to the network that weighs the hypotheses, if there is one.

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
        return Match(middle, torch.full_like(middle, _UNSEEN), torch.zeros_like(middle))
    log_range = math.log(decoder.far / decoder.near)
    planes_P = torch.linspace(0, 1, matching.planes, device=rgb.device)
    distances_P = decoder.near * torch.exp(log_range * planes_P)
    matches = []
    for b in range(B):  # one sample at a time bounds memory by the views of one sample
        poses, K_V33 = c2w[b].float(), K[b].float()
        with torch.no_grad(), torch.autocast(rgb.device.type, enabled=False):
            views = Views.of(poses, K_V33, W, H, matching.sources)
            correlation = _Correlation(rgb[b].float().mean(-1), views, matching.window)
            volume = _sweep(correlation, distances_P)
        logits = None if net is None else net(volume, rgb[b])
        with torch.autocast(rgb.device.type, enabled=False):
            if net is None or logits is None:
                fraction, score = _winner(volume[:, 0])
            else:
                fraction, score = _likeliest(logits)
                if net.fine_sharpness is not None:
                    with torch.no_grad():
                        fine = _fine_sweep(correlation, fraction, decoder, matching)
                    fraction = _sharpened(*fine, logits, net.fine_sharpness)
            matches.append(_settle(fraction, score, logits, views, decoder))
    names = ("fraction", "score", "agreement") if net is None else ("fraction", "score", "agreement", "logits")
    return Match(**{name: torch.stack([getattr(m, name) for m in matches]) for name in names})


def _settle(fraction: Tensor, score: Tensor, logits: Tensor | None, views: Views, decoder: FootprintDecoder) -> Match:
    """One sample's match: each view's own finding, replaced by its surroundings where the views disagree."""
    with torch.no_grad():
        agreement = _agreement(fraction, views, decoder.near, math.log(decoder.far / decoder.near))
        confidence = score.clamp_min(0) if logits is None else (score + 1) / 2
        weight = agreement.square() * confidence
    return Match(_fill(fraction[:, None], weight[:, None])[:, 0], score, agreement, logits)


class _Correlation:
    """Zero-mean normalised correlation of grey windows between each view and its sources, at any hypothesis."""

    def __init__(self, grey_VHW: Tensor, views: Views, window: int) -> None:
        self.window, self.views = window, views
        slots = range(views.sources.shape[1])
        self.images = grey_VHW[views.sources]  # (V, S, H, W)
        projections = [views.project(s) for s in slots]
        self.slope = torch.stack([slope for slope, _ in projections], dim=1)  # (V, S, H, W, 3)
        self.base = torch.stack([base for _, base in projections], dim=1)
        self.reference = grey_VHW[:, None]
        self.mean = _box(self.reference, window)
        self.spread = _box(self.reference.square(), window) - self.mean.square()

    def at(self, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Correlations (V, S, H, W) and where each source sees the point.

        Args:
            distance: one for all pixels, or (V, H, W, 1).
        """
        V, S = self.images.shape[:2]
        each = distance if distance.ndim == 0 else distance[:, None]
        grid, seen = self.views.sampling_grid(self.slope * each + self.base)
        images = self.images.flatten(0, 1)[:, None]
        warped = F.grid_sample(images, grid.flatten(0, 1), padding_mode="border", align_corners=False)
        warped = warped[:, 0].unflatten(0, (V, S))
        moments = torch.stack([warped, warped.square(), warped * self.reference])
        mean, square, product = _box(moments, self.window)
        spread = (square - mean.square()).clamp_min(0) + _PLAIN_VARIANCE
        of_view = self.spread.clamp_min(0) + _PLAIN_VARIANCE
        return (product - mean * self.mean) * (of_view * spread).rsqrt(), seen


def _score(correlation_VSHW: Tensor, seen_VSHW: Tensor, window: int) -> Tensor:
    """(V, H, W): mean over the better half of the sources that see the hypothesis, then over a window."""
    better = (correlation_VSHW.shape[1] + 1) // 2
    best = _largest(torch.where(seen_VSHW, correlation_VSHW, _UNSEEN), better)
    counted = best > _UNSEEN
    mean = torch.where(counted, best, 0.0).sum(1) / counted.sum(1).clamp_min(1)
    return _box(torch.where(counted[:, 0], mean, _UNSEEN), window)


def _largest(values_VSHW: Tensor, count: int) -> Tensor:
    """The ``count`` largest along S, in order: ``topk`` by comparing neighbours, many times faster for a handful."""
    rest = list(values_VSHW.unbind(1))
    for first in range(count):
        for i in range(len(rest) - 1, first, -1):
            rest[i - 1], rest[i] = torch.maximum(rest[i - 1], rest[i]), torch.minimum(rest[i - 1], rest[i])
    return torch.stack(rest[:count], dim=1)


def _sweep(correlation: _Correlation, distances_P: Tensor) -> Tensor:
    """Volume (V, 3, P, H, W) of all hypotheses of one sample: their score, the mean correlation over all sources that
    see them, and the share of those."""
    planes = []
    for distance in distances_P:
        found, seen = correlation.at(distance)
        of_all = torch.where(seen, found, 0.0).sum(1) / seen.sum(1).clamp_min(1)
        of_all = torch.where(seen.any(1), of_all, _UNSEEN)
        planes.append(torch.stack([_score(found, seen, correlation.window), of_all, seen.float().mean(1)], dim=1))
    return torch.stack(planes, dim=2)


def _fine_sweep(
    correlation: _Correlation, fraction_VHW: Tensor, decoder: FootprintDecoder, config: MatchingConfig
) -> tuple[Tensor, Tensor]:
    """Scores and fractions (V, F, H, W) of hypotheses within one plane's distance of each pixel's own depth."""
    log_range = math.log(decoder.far / decoder.near)
    steps = torch.linspace(-1, 1, config.fine, device=fraction_VHW.device) / (config.planes - 1)
    places = (fraction_VHW[:, None] + steps[:, None, None]).clamp(0, 1)
    scores = [
        _score(*correlation.at(decoder.near * torch.exp(log_range * place)[..., None]), _FINE_WINDOW)
        for place in places.unbind(1)
    ]
    return torch.stack(scores, dim=1), places


def _box(x: Tensor, window: int) -> Tensor:
    """Mean over a window around each pixel of (..., H, W), cut at the border.

    Rows, then columns, as sums of shifted copies: on a CPU ten times faster than average pooling.
    """
    half, (height, width) = window // 2, x.shape[-2:]
    padded = F.pad(x, (half, half, half, half))
    rows = sum((padded[..., i : i + height, :] for i in range(1, window)), start=padded[..., :height, :])
    total = sum((rows[..., i : i + width] for i in range(1, window)), start=rows[..., :width])
    inside_rows, inside_columns = (_inside(side, half, x.device) for side in (height, width))
    return total / (inside_rows[:, None] * inside_columns)


def _inside(side: int, half: int, device: torch.device) -> Tensor:
    """How many pixels of the window around each of ``side`` places lie inside."""
    place = torch.arange(side, device=device)
    return (place.clamp_max(half) + (side - 1 - place).clamp_max(half) + 1).float()


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


def _likeliest(logits_VPHW: Tensor) -> tuple[Tensor, Tensor]:
    """As ``_winner``, from learned logits: the mean place of the hypotheses around the likeliest one, and twice their
    probability less one. The choice is discrete, the mean is differentiable."""
    planes = logits_VPHW.shape[1]
    p_VPHW = logits_VPHW.float().softmax(1)
    around = torch.arange(-_NEIGHBOURS, _NEIGHBOURS + 1, device=p_VPHW.device)[:, None, None]
    place = p_VPHW.argmax(1, keepdim=True) + around
    inside = (place >= 0) & (place < planes)
    weight = torch.where(inside, p_VPHW.gather(1, place.clamp(0, planes - 1)), 0.0)
    total = weight.sum(1)
    return (weight * place).sum(1) / total.clamp_min(1e-9) / (planes - 1), 2 * total.clamp_max(1) - 1


def _sharpened(scores_VFHW: Tensor, places_VFHW: Tensor, logits_VPHW: Tensor, sharpness: Tensor) -> Tensor:
    """Mean place (V, H, W) of the fine hypotheses: probable by their own scores and by the coarse ones around them."""
    planes = logits_VPHW.shape[1]
    log_p = logits_VPHW.float().log_softmax(1)
    plane = places_VFHW * (planes - 1)
    below = plane.floor().long().clamp(0, planes - 2)
    upper = plane - below
    prior = (1 - upper) * log_p.gather(1, below) + upper * log_p.gather(1, below + 1)
    return ((sharpness * scores_VFHW + prior).softmax(1) * places_VFHW).sum(1)


def _agreement(fraction_VHW: Tensor, views: Views, near: float, log_range: float) -> Tensor:
    """How well each pixel's depth fits the depth that the source views found there, in [0, 1] (V, H, W).

    Mean over the better half of the sources, as for the scores; a source that does not see the point counts as 0.
    """
    points = views.points(near * torch.exp(log_range * fraction_VHW))
    fits = []
    for s in range(views.sources.shape[1]):
        seen, from_source, theirs = views.look_from(s, points, fraction_VHW[..., None])
        error = log_range * theirs[..., 0] - torch.log(from_source / near)
        fits.append(torch.where(seen, torch.exp(-error.abs() / AGREEMENT_TOLERANCE), 0.0))
    return torch.stack(fits, dim=1).topk((len(fits) + 1) // 2, dim=1).values.mean(1)


def _fill(values: Tensor, weights: Tensor) -> Tensor:
    """Replace values (V, 1, H, W) of low weight in [0, 1] by weighted means of ever wider surroundings (push-pull)."""
    size = values.shape[-2:]
    weight = F.avg_pool2d(weights, 2, ceil_mode=True, count_include_pad=False)
    mean = F.avg_pool2d(values * weights, 2, ceil_mode=True, count_include_pad=False) / weight.clamp_min(1e-6)
    if max(mean.shape[-2:]) > 1:
        mean = _fill(mean, (4 * weight).clamp_max(1))
    around = F.interpolate(mean, size=size, mode="bilinear", align_corners=False)
    return weights * values + (1 - weights) * around
