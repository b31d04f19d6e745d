"""Viewpoint tokens and image tokens: rays and pixels, cut into patches and projected (paper section 3.1).

Shape suffixes: B batch, V views, H W rows and columns of pixels, C channels per pixel, h w rows and columns of patches,
L = h * w tokens of a view, T = V * L tokens of a sample, d token width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ilrm.core.cameras import rays
from ilrm.core.precision import without_autocast
from ilrm.model.config import CHANNEL_WIDTH

LAYER_NORM_EPS = 1e-5


def patchify(pixels_BVHWC: Tensor, patch_size: int) -> Tensor:
    """Tokens (B, T, p * p * C): views, patch rows, patch columns; inside a token rows, columns, channels."""
    B, V, H, W, C = pixels_BVHWC.shape
    p = patch_size
    x = pixels_BVHWC.reshape(B, V, H // p, p, W // p, p, C)
    return x.permute(0, 1, 2, 4, 3, 5, 6).reshape(B, V * (H // p) * (W // p), p * p * C)


def unpatchify(tokens_BTc: Tensor, views: int, height: int, width: int, patch_size: int) -> Tensor:
    """The inverse of ``patchify``: pixels (B, V, H, W, C)."""
    p, B = patch_size, tokens_BTc.shape[0]
    x = tokens_BTc.reshape(B, views, height // p, width // p, p, p, -1)
    return x.permute(0, 1, 2, 4, 3, 5, 6).reshape(B, views, height, width, -1)


class PatchTokens(nn.Module):
    """One bias-free projection of patches, then one LayerNorm without bias."""

    def __init__(self, channels: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.project = nn.Linear(channels * patch_size**2, width, bias=False)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS, bias=False)

    def forward(self, pixels_BVHWC: Tensor) -> Tensor:
        """Tokens (B, T, d) of pixels (B, V, H, W, C)."""
        return self.norm(self.project(patchify(pixels_BVHWC, self.patch_size)))


def channel_count(names: Sequence[str]) -> int:
    """Channels per pixel of the named parts."""
    return sum(CHANNEL_WIDTH[name] for name in names)


@torch.no_grad()
def ray_maps(c2w_BV44: Tensor, K_BV33: Tensor, width: int, height: int) -> dict[str, Tensor]:
    """Origin, direction and moment of every pixel's ray, each (B, V, H, W, 3), in fp32 whatever the autocast."""
    with without_autocast(c2w_BV44.device):
        origin, direction = rays(c2w_BV44.float(), K_BV33.float(), width, height)
        moment = torch.linalg.cross(origin, direction, dim=-1)
    return {"origin": origin, "direction": direction, "moment": moment}


def scale_intrinsics(K: Tensor, factor_x: float, factor_y: float) -> Tensor:
    """Intrinsics (..., 3, 3) of a grid with factor_x times the columns and factor_y times the rows."""
    # Row by row: a tensor of the factors would have to be copied to the device.
    x, y, last = K.unbind(-2)
    return torch.stack([factor_x * x, factor_y * y, last], dim=-2)


def reduce(images_BVHW3: Tensor, factor: int) -> Tensor:
    """Images of 1 / factor the size, each pixel the mean of a block."""
    flat = F.avg_pool2d(images_BVHW3.flatten(0, 1).permute(0, 3, 1, 2), factor)
    return flat.permute(0, 2, 3, 1).unflatten(0, images_BVHW3.shape[:2])


def blocks(images_BVHW3: Tensor, factor: int) -> Tensor:
    """(B, V, H / factor, W / factor, 3 factor^2): the pixels of each block, row by row."""
    B, V, H, W, _ = images_BVHW3.shape
    return patchify(images_BVHW3, factor).reshape(B, V, H // factor, W // factor, 3 * factor**2)


def round_size(side: int, multiple: int) -> int:
    """The multiple nearest to a side in pixels, at least one."""
    return max(multiple, int(side / multiple + 0.5) * multiple)


def fit_size(images_BVHW3: Tensor, K_BV33: Tensor, multiple: int) -> tuple[Tensor, Tensor]:
    """Stretch images and intrinsics to the nearest size that patches divide; unchanged where it already fits."""
    B, V, H, W, _ = images_BVHW3.shape
    height, width = round_size(H, multiple), round_size(W, multiple)
    if (height, width) == (H, W):
        return images_BVHW3, K_BV33
    flat = images_BVHW3.flatten(0, 1).permute(0, 3, 1, 2)
    flat = F.interpolate(flat, (height, width), mode="bilinear", align_corners=False, antialias=True)
    images = flat.permute(0, 2, 3, 1).unflatten(0, (B, V))
    return images, scale_intrinsics(K_BV33, width / W, height / H)
