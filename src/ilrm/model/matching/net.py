"""A small network that weighs depth hypotheses: cost-volume regularisation (as in MVSNet, Yao et al. 2018).

Correlation alone cannot tell a surface from a repeated pattern or a plain wall; what lies around a pixel, in the image
and in depth, can. Convolutions over (plane, row, column) share what they learn between near and far.

Shape suffixes: N views, P planes, H W rows and columns of the viewpoint grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Per hypothesis: score, mean correlation and share of the sources; and the pixel's own colour.
_INPUTS = 6
_GROUPS = 4
# Untrained, probabilities follow the correlation: e^-10 for a hypothesis that is uncorrelated beside a perfect one.
SHARPNESS = 10.0
# The same for the fine sweep, where scores differ less.
_FINE_SHARPNESS = 30.0


class MatchingNet(nn.Module):
    """Logits of all hypotheses of every pixel: correlation, sharpened, plus a learned correction that starts at zero.

    A U-Net at half the viewpoint grid's resolution (there, planes keep their number) and two plane-mixing convolutions
    at full resolution, guided by the image.

    Args:
        planes: P.
        channels: width of the U-Net's first level, a multiple of 4.
        fine: whether a fine sweep follows, whose scores want a sharpness of their own.
    """

    def __init__(self, planes: int, channels: int, *, fine: bool = False) -> None:
        super().__init__()
        widths = [channels, 2 * channels, 4 * channels, 4 * channels]
        self.stem = _block(_INPUTS, channels, stride=(1, 2, 2))
        self.down = nn.ModuleList(
            nn.Sequential(_block(a, b, stride=(2, 2, 2)), _block(b, b)) for a, b in pairwise(widths)
        )
        self.lateral = nn.ModuleList(nn.Conv3d(b, a, 1) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_block(a, a) for a in widths[:-1])
        self.out = nn.Conv3d(channels, 1, 3, padding=1)
        self.sharpen_in = nn.Conv2d(2 * planes + 3, 4 * channels, 3, padding=1)
        self.sharpen_out = nn.Conv2d(4 * channels, planes, 3, padding=1)
        self.sharpness = nn.Parameter(torch.tensor(SHARPNESS))
        self.fine_sharpness = nn.Parameter(torch.tensor(_FINE_SHARPNESS)) if fine else None
        for last in (self.out.weight, self.out.bias, self.sharpen_out.weight, self.sharpen_out.bias):
            if last is not None:
                nn.init.zeros_(last)

    def forward(self, volume_N3PHW: Tensor, rgb_NHW3: Tensor) -> Tensor:
        """Logits (N, P, H, W), fp32 whatever the autocast."""
        colour = 2 * rgb_NHW3.permute(0, 3, 1, 2) - 1
        score = volume_N3PHW[:, 0]
        everywhere = colour[:, :, None].expand(-1, -1, volume_N3PHW.shape[2], -1, -1)
        x = torch.cat([volume_N3PHW, everywhere], dim=1).contiguous(memory_format=torch.channels_last_3d)
        levels = [self.stem(x)]
        for down in self.down:
            levels.append(down(levels[-1]))
        x = levels.pop()
        for lateral, up in zip(reversed(self.lateral), reversed(self.up), strict=True):
            skip = levels.pop()
            x = up(skip + _upsampled(lateral(x), skip.shape[2:]))
        coarse = F.interpolate(self.out(x)[:, 0].float(), size=score.shape[2:], mode="bilinear", align_corners=False)
        maps = torch.cat([score, coarse / SHARPNESS, colour], dim=1)
        if maps.device.type == "cuda":  # whose convolutions would change the layout, each for itself
            maps = maps.contiguous(memory_format=torch.channels_last)
        fine = self.sharpen_out(F.silu(self.sharpen_in(maps)))
        return self.sharpness * score + coarse + fine.float()


def _upsampled(x_NCPHW: Tensor, size: Sequence[int]) -> Tensor:
    """Trilinear interpolation to (P', H', W')."""
    if x_NCPHW.device.type != "cuda" or torch.compiler.is_compiling():
        return F.interpolate(x_NCPHW, size=tuple(size), mode="trilinear", align_corners=False)
    return interpolate_by_products(x_NCPHW, size)


def interpolate_by_products(x_NCPHW: Tensor, size: Sequence[int]) -> Tensor:
    """Trilinear interpolation, one axis at a time, by matrix products in the layout of channels-last.

    torch's kernel knows only the other layout, and adds gradients by atomic operations: it took an eighth of the time
    of a training step on an H200.
    """
    planes, rows, columns = (
        _linear_weights(there, here, x_NCPHW.dtype, x_NCPHW.device)
        for there, here in zip(size, x_NCPHW.shape[2:], strict=True)
    )
    x_NPHWC = columns @ x_NCPHW.permute(0, 2, 3, 4, 1)
    x_NPHWC = (rows @ x_NPHWC.flatten(3)).unflatten(3, x_NPHWC.shape[3:])
    x_NPHWC = (planes @ x_NPHWC.flatten(2)).unflatten(2, x_NPHWC.shape[2:])
    return x_NPHWC.permute(0, 4, 1, 2, 3)


@lru_cache(maxsize=64)
def _linear_weights(there: int, here: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(there, here) matrix that interpolates between the centres of ``here`` cells at those of ``there`` cells."""
    with torch.inference_mode(mode=False):  # tensors of inference could not be used in training
        at = ((torch.arange(there, dtype=torch.float64) + 0.5) * (here / there) - 0.5).clamp(0, here - 1)
        cells = torch.arange(here, dtype=torch.float64)
        return (1 - (at[:, None] - cells).abs()).clamp_min(0).to(device, dtype)


def _block(inputs: int, outputs: int, stride: tuple[int, int, int] = (1, 1, 1)) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1), nn.GroupNorm(_GROUPS, outputs), nn.SiLU()
    )
