"""From raw decoder channels to Gaussians (paper section 3.1 and supplement).

Shape suffixes: B batch, V views, H W rows and columns of the viewpoint grid, N = V * H * W Gaussians, C raw channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ilrm.core.cameras import rays
from ilrm.core.gaussians import Gaussians, matrix_to_quaternion, quaternion_multiply
from ilrm.core.precision import without_autocast
from ilrm.core.spherical_harmonics import C0
from ilrm.model.config import CHANNEL_WIDTH, FootprintDecoder, ILRMConfig, ReleasedDecoder
from ilrm.model.matching import Match
from ilrm.model.matching.consistency import Consistency

# A matched depth at the very end of the range has no finite logit.
_MATCH_MARGIN = 1e-3
# Samples of overlapping views fall irregularly: two layers need larger Gaussians to close their gaps than eight do.
# Both numbers gave the best untrained pictures of procedural scenes with 2 to 12 views.
_TILING, _FEW_LAYERS = 0.4, 2.5
# What the opacity's logit loses where all other views look through a Gaussian.
_CONTRADICTED = 8.0


@dataclass(frozen=True, eq=False)
class GaussianLogits:
    """Gaussians before the last activations: means (B, N, 3), log_scales (B, N, 3), rotations (B, N, 4) of any length,
    opacity_logits (B, N), sh (B, N, K, 3)."""

    means: Tensor
    log_scales: Tensor
    rotations: Tensor
    opacity_logits: Tensor
    sh: Tensor

    def activate(self) -> Gaussians:
        """Physical values."""
        return Gaussians(
            means=self.means,
            scales=self.log_scales.exp(),
            quats=F.normalize(self.rotations, dim=-1),
            opacities=self.opacity_logits.sigmoid(),
            sh=self.sh,
        )


@dataclass(frozen=True, eq=False)
class DecoderInputs:
    """What the decoder reads beside the raw channels.

    c2w (B, V, 4, 4); K (B, V, 3, 3) in pixels of the viewpoint grid; rgb (B, V, H, W, 3) of that grid in [0, 1];
    blocks (B, V, H, W, 3 r^2): the image pixels that each viewpoint pixel stands for, row by row;
    match: depth matched between the views; consistency: what they say of each other's; where the config asks for them.
    """

    c2w: Tensor
    K: Tensor
    rgb: Tensor
    blocks: Tensor
    match: Match | None = None
    consistency: Consistency | None = None


class PixelHead(nn.Module):
    """A correction of each Gaussian's raw channels from those around it, their pixels and matches; starts at zero.

    A token describes a whole patch; which of its pixels lie on an edge or matched badly is known per pixel.
    """

    def __init__(self, config: ILRMConfig) -> None:
        super().__init__()
        inputs = config.gaussian_channels + 3 * config.viewpoint_factor**2
        inputs += CHANNEL_WIDTH["match"] if config.matching else 0
        inputs += CHANNEL_WIDTH["consistency"] if config.cross_checks else 0
        self.read = nn.Conv2d(inputs, config.pixel_head, 3, padding=1)
        self.mix = nn.Conv2d(config.pixel_head, config.pixel_head, 3, padding=1)
        # Without a bias: the decoder's own offsets stay the only ones.
        self.write = nn.Conv2d(config.pixel_head, config.gaussian_channels, 1, bias=False)
        nn.init.zeros_(self.write.weight)

    def forward(self, raw_BVHWC: Tensor, inputs: DecoderInputs) -> Tensor:
        """(B, V, H, W, C)."""
        seen = [raw_BVHWC, 2 * inputs.blocks - 1]
        seen += [x.channels() for x in (inputs.match, inputs.consistency) if x is not None]
        x = torch.cat([y.to(raw_BVHWC.dtype) for y in seen], dim=-1).flatten(0, 1).permute(0, 3, 1, 2)
        y = self.write(F.silu(self.mix(F.silu(self.read(x)))))
        return y.permute(0, 2, 3, 1).unflatten(0, raw_BVHWC.shape[:2])


def decode(raw_BVHWC: Tensor, inputs: DecoderInputs, config: ILRMConfig) -> GaussianLogits:
    """Gaussians in view, row, column order, in the frame of the cameras; fp32 whatever the autocast."""
    with without_autocast(raw_BVHWC.device):
        parts = raw_BVHWC.float().split(config.raw_split(), dim=-1)
        if isinstance(config.decoder, ReleasedDecoder):
            return _decode_released(parts, inputs, config, config.decoder)
        return _decode_footprint(parts, inputs, config, config.decoder)


def _flat(x: Tensor) -> Tensor:
    """(B, V, H, W, ...) -> (B, N, ...)."""
    return x.flatten(1, 3)


def _rays(inputs: DecoderInputs, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
    height, width = inputs.rgb.shape[2:4]
    return rays(inputs.c2w.float(), inputs.K.float(), width, height, offsets)


def _decode_released(
    parts: tuple[Tensor, ...], inputs: DecoderInputs, config: ILRMConfig, decoder: ReleasedDecoder
) -> GaussianLogits:
    offset, xyz, sh, scale, rotation, opacity = parts
    origins, directions = _rays(inputs, offset.sigmoid() - 0.5 if decoder.offset else None)
    # The three "xyz" channels of the release are only ever averaged into one distance along the ray.
    distance = decoder.max_distance * xyz.mean(-1, keepdim=True).sigmoid()
    coefficients = (config.sh_degree + 1) ** 2
    if decoder.sh_order == "coefficient_rgb":
        sh = sh.unflatten(-1, (coefficients, 3))
    else:
        sh = sh.unflatten(-1, (3, coefficients)).transpose(-1, -2)
    return GaussianLogits(
        means=_flat(directions * distance + origins),
        log_scales=_flat((scale + decoder.scale_bias).clamp_max(decoder.scale_max_log)),
        rotations=_flat(rotation),
        opacity_logits=_flat(opacity[..., 0] + decoder.opacity_bias),
        sh=_flat(sh),
    )


def _decode_footprint(
    parts: tuple[Tensor, ...], inputs: DecoderInputs, config: ILRMConfig, decoder: FootprintDecoder
) -> GaussianLogits:
    offset, depth, sh, scale, rotation, opacity, gate = parts
    origins, directions = _rays(inputs, offset.sigmoid() - 0.5)
    logit = depth[..., 0]
    if inputs.match is not None:
        # The gate starts at one: until the network knows better, depth is what was matched.
        logit = logit + (1 + gate[..., 0].tanh()) * torch.logit(inputs.match.fraction, eps=_MATCH_MARGIN)
    log_range = math.log(decoder.far / decoder.near)
    distance = decoder.near * torch.exp(log_range * logit.sigmoid())  # (B, V, H, W)
    # One viewpoint pixel seen at that distance; half of it is the standard deviation of a gap-free blanket.
    pixel = 0.5 * (1 / inputs.K[..., 0, 0] + 1 / inputs.K[..., 1, 1]).float()[..., None, None]
    log_footprint = torch.log(0.5 * pixel * distance)[..., None]
    opacity_logit = opacity[..., 0] + decoder.opacity_bias
    if inputs.consistency is not None:
        # n samples of a surface tile it with 1 / n of the area each.
        n = inputs.consistency.density[..., None]
        log_footprint = log_footprint + torch.log(_TILING * (1 + _FEW_LAYERS / n)) - 0.5 * n.log()
        opacity_logit = opacity_logit - _CONTRADICTED * inputs.consistency.doubt()
    log_limit = math.log(decoder.scale_range)
    log_scales = log_footprint + log_limit * torch.tanh(scale / log_limit)
    if decoder.smoothing:
        log_least = torch.log(math.sqrt(decoder.smoothing) / config.viewpoint_factor * pixel * distance)[..., None]
        log_scales = 0.5 * torch.logaddexp(2 * log_scales, 2 * log_least)
    turn = matrix_to_quaternion(inputs.c2w[..., :3, :3].float())[:, :, None, None]
    rotation = torch.cat([rotation[..., :1] + 1, rotation[..., 1:]], dim=-1)  # zeros are the identity
    sh = sh.unflatten(-1, ((config.sh_degree + 1) ** 2, 3))
    own_colour = ((inputs.rgb.float() - 0.5) / C0)[..., None, :]
    return GaussianLogits(
        means=_flat(directions * distance[..., None] + origins),
        log_scales=_flat(log_scales),
        rotations=_flat(quaternion_multiply(turn.expand_as(rotation), rotation)),
        opacity_logits=_flat(opacity_logit),
        sh=_flat(torch.cat([sh[..., :1, :] + own_colour, sh[..., 1:, :]], dim=-2)),
    )
