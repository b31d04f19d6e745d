"""What a training step minimises: the terms of ``LossConfig``, each a mean over samples.

Every term is computed for each sample alone and then averaged over the samples of the batch, so that the mean over
two half batches (two ranks, two accumulated parts) is the value of the whole one. The terms that need true depth
average over the known pixels of a sample first; a sample without any counts as 0.

Shape suffixes: B samples, V input views, T target views, H W rows and columns of an image, L rows * columns of the
viewpoint grid, N = V * L Gaussians of a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ilrm.core.cameras import Cameras, pixel_centres, points_at_depth
from ilrm.core.errors import ConfigError
from ilrm.core.gaussians import Gaussians
from ilrm.core.precision import autocast
from ilrm.model import FootprintDecoder, ILRMConfig
from ilrm.model.matching import Match
from ilrm.render import render
from ilrm.train.config import FeedbackTraining, LossConfig
from ilrm.train.data.batch import Batch

# Error of a rendering that equals its photo to the last bit; keeps its PSNR (100 dB) finite in logs.
_LEAST_ERROR = 1e-10
_LEAST_DEPTH = 1e-6
# Added to errors whose logarithm counts: nothing is won beyond 40 dB.
_LEAST_LOG_ERROR = 1e-4

Network = Callable[..., Any]
Distance = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Losses:
    """Loss of one batch.

    Attributes:
        total: weighted sum of the terms, with a gradient.
        terms: each active term by its name in ``LossConfig``, unweighted and without a gradient.
        weighted: the same as it enters the total, with a gradient.
        psnr: mean over samples and targets of the clamped renderings' PSNR in dB, without a gradient.
    """

    total: Tensor
    terms: dict[str, Tensor]
    weighted: dict[str, Tensor]
    psnr: Tensor


def losses(
    model: Network,
    batch: Batch,
    config: LossConfig,
    step: int,
    *,
    model_config: ILRMConfig,
    precision: Literal["fp32", "bf16"],
    perceptual: Distance | None = None,
    feedback: FeedbackTraining | None = None,
) -> Losses:
    """Reconstruct from the inputs, render the targets, compare.

    The network is called once, as a whole, so that it may be wrapped (DDP, FSDP, compile). It runs in autocast, and
    so does the perceptual network; rendering and all other terms are fp32.

    Args:
        model: ``ILRM`` or a wrapper of it.
        step: optimiser step from 0; decides whether the perceptual term has started.
        model_config: of the network, which a wrapper may hide.
        perceptual: distances (T,) of two stacks of images (T, H, W, 3), from ``ilrm.train.perceptual.load``; needed
            where ``config.perceptual`` is set.
        feedback: how feedback is taught, where the network has it. The number of iterations, as every draw here, comes
            from torch's global generator.
    """
    inputs = (batch.images[:, : batch.inputs], batch.c2w[:, : batch.inputs], batch.K[:, : batch.inputs])
    wanted = {"iterations": config.iterations > 0, "with_match": config.matching > 0}
    options: dict[str, Any] = {name: True for name, value in wanted.items() if value}
    if feedback is not None:
        fewest, most = feedback.iterations
        options["feedback"] = int(torch.randint(fewest, most + 1, ()))
        options |= {"iterations": "feedback"} if wanted["iterations"] else {}
    with autocast(precision, batch.images.device):
        output = model(*inputs, **options)
    output, match = output if wanted["with_match"] else (output, None)
    every_layer = output if wanted["iterations"] else None
    if every_layer is not None and feedback is not None and feedback.base_rate == 0:
        every_layer = every_layer[1:]  # what does not learn needs no renderings
    gaussians = output[-1] if wanted["iterations"] else output
    rendered = render_targets(gaussians, batch)
    truth = batch.target_images

    terms: dict[str, tuple[float, Tensor]] = {}
    if config.mse > 0:
        terms["mse"] = config.mse, squared_error(rendered, truth, config)
    if config.perceptual is not None and config.perceptual_weight > 0 and step >= config.perceptual_start:
        assert perceptual is not None, "the perceptual network was not loaded"
        with autocast(precision, batch.images.device):
            distances = perceptual(rendered.flatten(0, 1), truth.flatten(0, 1))
        terms["perceptual"] = config.perceptual_weight, distances.float().mean()
    if every_layer is not None:
        earlier = [every_layer[i] for i in range(every_layer.means.shape[0] - 1)]
        terms["iterations"] = config.iterations, iterations_term(earlier, batch, config)
    if config.closer > 0:
        terms["closer"] = config.closer, closer_term(gaussians, batch, config)
    if config.depth > 0:
        terms["depth"] = config.depth, depth_term(gaussians, batch, model_config.viewpoint_factor)
    if config.points > 0:
        terms["points"] = config.points, points_term(gaussians, batch, model_config.viewpoint_factor)
    if config.opacity > 0:
        terms["opacity"] = config.opacity, gaussians.opacities.mean()
    if config.scale > 0:
        terms["scale"] = config.scale, scale_term(gaussians, batch)
    if config.matching > 0:
        terms["matching"] = config.matching, matching_term(match, batch, model_config)

    weighted = {name: weight * value for name, (weight, value) in terms.items()}
    return Losses(
        total=torch.stack(list(weighted.values())).sum(),
        terms={name: value.detach() for name, (_, value) in terms.items()},
        weighted=weighted,
        psnr=_psnr(rendered.detach(), truth),
    )


def render_targets(gaussians: Gaussians, batch: Batch) -> Tensor:
    """(B, T, H, W, 3) renderings of the target views on white, not clamped."""
    return render(gaussians, batch.target_cameras).rgb


def squared_error(rendered: Tensor, truth: Tensor, config: LossConfig) -> Tensor:
    """Mean over samples of each one's mean squared error (B, ...), or of its logarithm."""
    squared = (rendered - truth).square()
    return (squared.flatten(1).mean(1) + _LEAST_LOG_ERROR).log().mean() if config.logarithmic else squared.mean()


def iterations_term(earlier: Sequence[Gaussians], batch: Batch, config: LossConfig) -> Tensor:
    """Sum over the update layers before the last of decay^(distance to the last) times the layer's squared error."""
    truth = batch.target_images
    errors = [squared_error(render_targets(gaussians, batch), truth, config) for gaussians in earlier]
    weighted = [config.iterations_decay ** (len(errors) - i) * error for i, error in enumerate(errors)]
    return torch.stack(weighted).sum() if weighted else truth.new_zeros(())


def closer_term(gaussians: Gaussians, batch: Batch, config: LossConfig) -> Tensor:
    """Squared error of one target, rendered at one of these multiples of its size and averaged down.

    Renderers widen what is smaller than a pixel, so Gaussians that leave gaps look right at the photos' own size.
    """
    factor = config.closer_factors[int(torch.randint(len(config.closer_factors), ()))]
    target = batch.inputs + int(torch.randint(batch.targets, ()))
    height, width = batch.images.shape[2:4]
    cameras = Cameras(batch.c2w[:, target, None], batch.K[:, target, None], width, height)
    large = render(gaussians, cameras.resize(factor * width, factor * height)).rgb[:, 0]
    small = F.avg_pool2d(large.permute(0, 3, 1, 2), factor).permute(0, 2, 3, 1)
    return squared_error(small, batch.images[:, target], config)


def depth_term(gaussians: Gaussians, batch: Batch, factor: int) -> Tensor:
    """Mean |log z - log z_true| over the input views' Gaussians, z along each Gaussian's own view."""
    if batch.depth is None:
        return batch.images.new_zeros(())
    z_BVL, true_BVL = camera_depth(gaussians, batch), _known_depth(batch.depth[:, : batch.inputs], factor)
    error = (z_BVL.clamp_min(_LEAST_DEPTH).log() - true_BVL.clamp_min(_LEAST_DEPTH).log()).abs()
    return _mean_where(error, (true_BVL > 0) & (z_BVL > 0))


def points_term(gaussians: Gaussians, batch: Batch, factor: int) -> Tensor:
    """Mean distance of the Gaussians' centres from the surface points that their viewpoint pixels see, over z_true."""
    if batch.depth is None:
        return batch.images.new_zeros(())
    true_BVL = _known_depth(batch.depth[:, : batch.inputs], factor)
    points = surface_points(true_BVL, batch, factor)
    centres = gaussians.means.unflatten(1, (batch.inputs, -1))
    return _mean_where((centres - points).norm(dim=-1) / true_BVL.clamp_min(_LEAST_DEPTH), true_BVL > 0)


def matching_term(match: Match | None, batch: Batch, model_config: ILRMConfig) -> Tensor:
    """Mean cross-entropy of the learned matching with the true distances, over the pixels where depth is known."""
    if match is None or match.logits is None or not isinstance(model_config.decoder, FootprintDecoder):
        raise ConfigError(
            "The loss term 'matching' needs a network with learned matching.",
            fix="set loss.matching to 0, or model.matching.channels above 0",
        )
    if batch.depth is None:
        return batch.images.new_zeros(())
    factor = model_config.viewpoint_factor
    true_BVL = _known_depth(batch.depth[:, : batch.inputs], factor)
    offset = surface_points(true_BVL, batch, factor) - batch.c2w[:, : batch.inputs, None, :3, 3]
    distance = offset.norm(dim=-1).unflatten(2, match.fraction.shape[2:])
    return match.error(distance, model_config.decoder).mean()


def scale_term(gaussians: Gaussians, batch: Batch) -> Tensor:
    """Mean of the Gaussians' scales over their depths."""
    # Detached: a smaller Gaussian shall pay, not one that flees from the camera.
    depth = camera_depth(gaussians, batch).detach().clamp_min(_LEAST_DEPTH)
    return (gaussians.scales.mean(-1) / depth.flatten(1)).mean()


def camera_depth(gaussians: Gaussians, batch: Batch) -> Tensor:
    """(B, V, L) z-depth of each Gaussian's centre in the input view that it came from."""
    c2w = batch.c2w[:, : batch.inputs]
    offset = gaussians.means.unflatten(1, (batch.inputs, -1)) - c2w[:, :, None, :3, 3]
    return torch.einsum("bvlc,bvc->bvl", offset, c2w[..., :3, 2])


def surface_points(depth_BVL: Tensor, batch: Batch, factor: int) -> Tensor:
    """(B, V, L, 3) points at these z-depths on the rays through the centres of the viewpoint pixels."""
    height, width = (side // factor for side in batch.images.shape[2:4])
    c2w, K = batch.c2w[:, : batch.inputs], batch.K[:, : batch.inputs]
    pixels = factor * pixel_centres(width, height, K).flatten(0, 1)
    return points_at_depth(depth_BVL, pixels, c2w, K)


def _known_depth(depth_BVHW: Tensor, factor: int) -> Tensor:
    """(B, V, L): the nearest sample of each block, because a mean across an edge would make up a surface in between."""
    return depth_BVHW[:, :, factor // 2 :: factor, factor // 2 :: factor].flatten(2)


def _mean_where(values: Tensor, known: Tensor) -> Tensor:
    """Mean over the samples of each sample's mean over its known values (B, ...); 0 for a sample that has none."""
    count = known.flatten(1).sum(1)
    return (torch.where(known, values, 0.0).flatten(1).sum(1) / count.clamp_min(1)).mean()


def _psnr(rendered: Tensor, truth: Tensor) -> Tensor:
    error = (rendered.clamp(0, 1) - truth).square().mean((2, 3, 4)).clamp_min(_LEAST_ERROR)
    return -10 * error.log10().mean()
