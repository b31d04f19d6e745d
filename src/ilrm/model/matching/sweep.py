"""Plane-sweep matching between input views: an optional extra input of the network.

Not part of the paper. A small network trained for an hour learns the layout of scenes but hardly learns to match
across views, while a sweep over depth hypotheses matches well wherever there is texture. The sweep's depth, its score
and its agreement between views are more channels of the image tokens, and the footprint decoder starts from that depth
through a gate that it can close. The sweep itself computes correlations and learns nothing; a small convolutional
network (``MatchingNet``) may then weigh the hypotheses.

Samples are folded into views (see ``view_geometry``), and several planes are taken at a time: many small operations
are what a GPU waits for.

Shape suffixes: B samples of V views, N = B * V views of all of them, S source views of each, H W rows and columns of
the viewpoint grid, P planes, Q of them at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ilrm.core.errors import ConfigError
from ilrm.core.precision import without_autocast
from ilrm.model.config import FootprintDecoder, ILRMConfig, MatchingConfig
from ilrm.model.matching.net import SHARPNESS, MatchingNet
from ilrm.model.matching.sparse import SparsePoints, Votes
from ilrm.model.matching.view_geometry import ViewGeometry, at_a_time

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

    def map(self, change: Callable[[Tensor], Tensor]) -> Match:
        """The same function of each map."""
        logits = None if self.logits is None else change(self.logits)
        return Match(change(self.fraction), change(self.score), change(self.agreement), logits)

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


def match_depth(
    rgb: Tensor,
    c2w: Tensor,
    K: Tensor,
    config: ILRMConfig,
    net: MatchingNet | None = None,
    hidden: Tensor | None = None,
    points: SparsePoints | None = None,
) -> Match:
    """Depth of every pixel by correlation with the nearest other views.

    Hypotheses are distances along the pixel's ray, uniform in log between the decoder's near and far. The score of
    one is the zero-mean normalised correlation of grey windows, averaged over the better half of the source views
    that see it (the others may be occluded) and over a window of neighbours. The winner is refined between the planes,
    then compared with what the source views found at the same place: where they disagree it is replaced by what lies
    around it. Gradients flow to the network that weighs the hypotheses, if there is one.

    Args:
        rgb: (B, V, H, W, 3) in [0, 1] on the viewpoint grid.
        c2w: (B, V, 4, 4).  K: (B, V, 3, 3) in pixels of that grid.
        hidden: (B, V, H, W) bool, pixels that say nothing: no source shows anything there, and their own depth is
            what lies around them.
        points: sparse points in the frame of the cameras, as evidence beside the correlation.
    """
    matching, decoder = config.matching, config.decoder
    if matching is None or not isinstance(decoder, FootprintDecoder):
        raise ConfigError("match_depth needs a config with matching and a footprint decoder.")
    B, V, H, W, _ = rgb.shape
    if V == 1:
        middle = torch.full((B, V, H, W), 0.5, device=rgb.device)
        return Match(middle, torch.full_like(middle, _UNSEEN), torch.zeros_like(middle))
    rgb_NHW3 = rgb.flatten(0, 1)
    with torch.no_grad(), without_autocast(rgb.device):
        views = ViewGeometry.of(c2w.float(), K.float(), W, H, matching.sources, hidden)
        correlation = _Correlation(rgb_NHW3.float().mean(-1), views, matching.window)
        volume = _sweep(correlation, matching.planes, decoder)
        votes = None if points is None else Votes.cast(points, rgb, c2w, K, decoder, hidden)
    logits = None if net is None else net(volume, rgb_NHW3)
    with without_autocast(rgb.device):
        scores = volume[:, 0]
        if votes is not None:
            added = votes.logits(matching.planes)
            scores, logits = scores + added / SHARPNESS, None if logits is None else logits + added
        if net is None or logits is None:
            fraction, score = _winner(scores)
        else:
            fraction, score = _likeliest(logits)
            if net.fine_sharpness is not None:
                with torch.no_grad():
                    fine = _fine_sweep(correlation, fraction, decoder, matching)
                fraction = _sharpened(*fine, logits, net.fine_sharpness)
        maps = _settle(fraction, score, logits, views, decoder, votes)
    fraction, score, agreement = (x.unflatten(0, (B, V)) for x in maps)
    return Match(fraction, score, agreement, None if logits is None else logits.unflatten(0, (B, V)))


def _settle(
    fraction: Tensor,
    score: Tensor,
    logits: Tensor | None,
    views: ViewGeometry,
    decoder: FootprintDecoder,
    votes: Votes | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fraction, score and agreement (N, H, W): each view's own finding, moved towards sparse points that are close to
    it, and replaced by its surroundings where the views disagree and no point vouches for it."""
    log_range = math.log(decoder.far / decoder.near)
    with torch.no_grad():
        agreement = _agreement(fraction, views, decoder.near, log_range)
        confidence = score.clamp_min(0) if logits is None else (score + 1) / 2
        weight, shift = agreement.square() * confidence, None
        if votes is not None:
            shift, vouched = votes.pull(fraction, log_range)
            weight = torch.maximum(weight, vouched)
        if views.hidden is not None:
            weight = torch.where(views.hidden, 0.0, weight)
    fraction = fraction if shift is None else fraction + shift
    return _fill(fraction[:, None], weight[:, None])[:, 0], score, agreement


class _Correlation:
    """Zero-mean normalised correlation of grey windows between each view and its sources, at any hypothesis."""

    def __init__(self, grey_NHW: Tensor, views: ViewGeometry, window: int) -> None:
        self.views, self.window = views, _Window(window, grey_NHW)
        self.images = grey_NHW[views.sources]  # (N, S, H, W)
        slope, base = views.project()
        self.slope = slope.contiguous()[:, :, None]  # (N, S, 1, H, W, 3)
        self.base = base[:, :, None]  # (N, S, 1, 1, 1, 3)
        self.reference = grey_NHW[:, None, None]
        self.mean = self.window.mean(self.reference)
        self.spread = self.window.mean(self.reference.square()) - self.mean.square()

    def at(self, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Correlations (N, S, Q, H, W) and where each source sees the point.

        Args:
            distance: (N, Q, H, W), or (1, Q, 1, 1) for all pixels.
        """
        N, S, height, width = self.images.shape
        grid, seen = self.views.sampling_grid(self.slope * distance[:, None, ..., None] + self.base)
        seen = self.views.unhidden(self.views.sources, grid, seen)
        images = self.images.flatten(0, 1)[:, None]
        # The planes of a source lie below each other, so that its image is not copied for each of them.
        below = grid.reshape(N * S, -1, width, 2)
        warped = F.grid_sample(images, below, padding_mode="border", align_corners=False)
        warped = warped.view(N, S, -1, height, width)
        moments = torch.stack([warped, warped.square(), warped * self.reference])
        mean, square, product = self.window.mean(moments)
        spread = (square - mean.square()).clamp_min(0) + _PLAIN_VARIANCE
        of_view = self.spread.clamp_min(0) + _PLAIN_VARIANCE
        return (product - mean * self.mean) * (of_view * spread).rsqrt(), seen


def _score(correlation_NSQHW: Tensor, seen_NSQHW: Tensor, window: _Window) -> Tensor:
    """(N, Q, H, W): mean over the better half of the sources that see the hypothesis, then over a window."""
    better = (correlation_NSQHW.shape[1] + 1) // 2
    best = _largest(torch.where(seen_NSQHW, correlation_NSQHW, _UNSEEN), better)
    counted = best > _UNSEEN
    mean = torch.where(counted, best, 0.0).sum(1) / counted.sum(1).clamp_min(1)
    return window.mean(torch.where(counted[:, 0], mean, _UNSEEN))


def _largest(values_NSQHW: Tensor, count: int) -> Tensor:
    """The ``count`` largest along S, in order: ``topk`` by comparing neighbours, many times faster for a handful."""
    rest = list(values_NSQHW.unbind(1))
    for first in range(count):
        for i in range(len(rest) - 1, first, -1):
            rest[i - 1], rest[i] = torch.maximum(rest[i - 1], rest[i]), torch.minimum(rest[i - 1], rest[i])
    return torch.stack(rest[:count], dim=1)


def _sweep(correlation: _Correlation, planes: int, decoder: FootprintDecoder) -> Tensor:
    """Volume (N, 3, P, H, W) of all hypotheses: their score, the mean correlation over all sources that see them, and
    the share of those."""
    fraction_P = torch.linspace(0, 1, planes, device=correlation.images.device)
    distance_P = decoder.near * torch.exp(math.log(decoder.far / decoder.near) * fraction_P)
    volume = []
    for distance_Q in distance_P.split(at_a_time(correlation.images)):
        found, seen = correlation.at(distance_Q[None, :, None, None])
        of_all = torch.where(seen, found, 0.0).sum(1) / seen.sum(1).clamp_min(1)
        of_all = torch.where(seen.any(1), of_all, _UNSEEN)
        volume.append(torch.stack([_score(found, seen, correlation.window), of_all, seen.float().mean(1)], dim=1))
    return torch.cat(volume, dim=2)


def _fine_sweep(
    correlation: _Correlation, fraction_NHW: Tensor, decoder: FootprintDecoder, config: MatchingConfig
) -> tuple[Tensor, Tensor]:
    """Scores and fractions (N, F, H, W) of hypotheses within one plane's distance of each pixel's own depth."""
    log_range = math.log(decoder.far / decoder.near)
    steps = torch.linspace(-1, 1, config.fine, device=fraction_NHW.device) / (config.planes - 1)
    places = (fraction_NHW[:, None] + steps[:, None, None]).clamp(0, 1)
    distances = decoder.near * torch.exp(log_range * places)
    window = _Window(_FINE_WINDOW, fraction_NHW)
    scores = [
        _score(*correlation.at(distance), window) for distance in distances.split(at_a_time(correlation.images), dim=1)
    ]
    return torch.cat(scores, dim=1), places


class _Window:
    """Means over a window around each pixel of maps (..., H, W), cut at the border.

    Rows, then columns, as sums of shifted copies: on a CPU ten times faster than average pooling.
    """

    def __init__(self, side: int, like_HW: Tensor) -> None:
        self.side = side
        rows, columns = (_inside(length, side // 2, like_HW.device) for length in like_HW.shape[-2:])
        self.inside = rows[:, None] * columns

    def mean(self, x: Tensor) -> Tensor:
        """(..., H, W)."""
        half, (height, width) = self.side // 2, x.shape[-2:]
        padded = F.pad(x, (half, half, half, half))
        # In place after the first two: fresh memory costs more than the sums.
        rows = padded[..., :height, :] + padded[..., 1 : 1 + height, :]
        for i in range(2, self.side):
            rows += padded[..., i : i + height, :]
        total = rows[..., :width] + rows[..., 1 : 1 + width]
        for i in range(2, self.side):
            total += rows[..., i : i + width]
        return total.div_(self.inside)


def _inside(side: int, half: int, device: torch.device) -> Tensor:
    """How many pixels of the window around each of ``side`` places lie inside."""
    place = torch.arange(side, device=device)
    return (place.clamp_max(half) + (side - 1 - place).clamp_max(half) + 1).float()


def _winner(scores_NPHW: Tensor) -> tuple[Tensor, Tensor]:
    """Fraction of the log range (N, H, W) and score (N, H, W) of the best hypothesis, refined between planes."""
    planes = scores_NPHW.shape[1]
    score, index = scores_NPHW.max(dim=1, keepdim=True)
    before = scores_NPHW.gather(1, (index - 1).clamp_min(0))
    after = scores_NPHW.gather(1, (index + 1).clamp_max(planes - 1))
    curvature = before - 2 * score + after
    shift = torch.where(curvature < -1e-6, 0.5 * (before - after) / curvature, 0.0).clamp(-0.5, 0.5)
    inside = (index > 0) & (index < planes - 1) & (before > _UNSEEN) & (after > _UNSEEN)
    fraction = (index + torch.where(inside, shift, 0.0)) / (planes - 1)
    return fraction[:, 0], score[:, 0]


def _likeliest(logits_NPHW: Tensor) -> tuple[Tensor, Tensor]:
    """As ``_winner``, from learned logits: the mean place of the hypotheses around the likeliest one, and twice their
    probability less one. The choice is discrete, the mean is differentiable."""
    planes = logits_NPHW.shape[1]
    p_NPHW = logits_NPHW.float().softmax(1)
    around = torch.arange(-_NEIGHBOURS, _NEIGHBOURS + 1, device=p_NPHW.device)[:, None, None]
    place = p_NPHW.argmax(1, keepdim=True) + around
    inside = (place >= 0) & (place < planes)
    weight = torch.where(inside, p_NPHW.gather(1, place.clamp(0, planes - 1)), 0.0)
    total = weight.sum(1)
    return (weight * place).sum(1) / total.clamp_min(1e-9) / (planes - 1), 2 * total.clamp_max(1) - 1


def _sharpened(scores_NFHW: Tensor, places_NFHW: Tensor, logits_NPHW: Tensor, sharpness: Tensor) -> Tensor:
    """Mean place (N, H, W) of the fine hypotheses: probable by their own scores and by the coarse ones around them."""
    planes = logits_NPHW.shape[1]
    log_p = logits_NPHW.float().log_softmax(1)
    plane = places_NFHW * (planes - 1)
    below = plane.floor().long().clamp(0, planes - 2)
    upper = plane - below
    prior = (1 - upper) * log_p.gather(1, below) + upper * log_p.gather(1, below + 1)
    return ((sharpness * scores_NFHW + prior).softmax(1) * places_NFHW).sum(1)


def _agreement(fraction_NHW: Tensor, views: ViewGeometry, near: float, log_range: float) -> Tensor:
    """How well each pixel's depth fits the depth that the source views found there, in [0, 1] (N, H, W).

    Mean over the better half of the sources, as for the scores; a source that does not see the point counts as 0.
    """
    points = views.points(near * torch.exp(log_range * fraction_NHW))
    fits = []
    for source in views.sources.split(at_a_time(fraction_NHW), dim=1):
        seen, from_source, theirs = views.look_from(source, points, fraction_NHW[..., None])
        error = log_range * theirs[..., 0] - torch.log(from_source / near)
        fits.append(torch.where(seen, torch.exp(-error.abs() / AGREEMENT_TOLERANCE), 0.0))
    fit = torch.cat(fits, dim=1)
    return fit.topk((fit.shape[1] + 1) // 2, dim=1).values.mean(1)


def _fill(values: Tensor, weights: Tensor) -> Tensor:
    """Replace values (N, 1, H, W) of low weight in [0, 1] by weighted means of ever wider surroundings (push-pull)."""
    size = values.shape[-2:]
    weight = F.avg_pool2d(weights, 2, ceil_mode=True, count_include_pad=False)
    mean = F.avg_pool2d(values * weights, 2, ceil_mode=True, count_include_pad=False) / weight.clamp_min(1e-6)
    if max(mean.shape[-2:]) > 1:
        mean = _fill(mean, (4 * weight).clamp_max(1))
    around = F.interpolate(mean, size=size, mode="bilinear", align_corners=False)
    return weights * values + (1 - weights) * around
