"""Sparse points of a scene as evidence for the depth of pixels: with a weight, never as truth.

Not part of the paper. Structure from motion finds points together with the cameras. Where an input view sees one, the
hypotheses around its depth become likelier, at its pixel and at pixels of its colour around it. Where matching then
comes close to the point, the rest of the difference is shared out over these pixels, so that slants and details of
the matched surface stay. A wrong point loses against matching that is sure, and against other points around it.

Shape suffixes: B samples of V views, N = B * V views of all of them, P points of each sample, K pixels of a window,
H W rows and columns of the viewpoint grid, D planes of the sweep.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ilrm.core.cameras import rigid_inverse
from ilrm.core.precision import without_autocast
from ilrm.model.config import FootprintDecoder
from ilrm.model.matching.view_geometry import at_a_time

# A point is hidden where two others near it in the image are nearer by this factor: oblique ground varies so much.
# Cells of the depth buffer are this many viewpoint pixels wide, and their neighbours count, too.
_FARTHER, _CELL = 1.3, 4
# Difference of a point's colour from the photo at which its weight is down by e^-0.5: what it sees is something else.
_OTHER_COLOUR = 0.25
# The window around a point's pixel, and its two Gaussian kernels: by viewpoint pixels, and by difference in colour.
_REACH, _SPREAD, _ALIKE = 4, 2.0, 0.1
# What the votes add to a logit at most, and how many votes add half of it.
_WEIGHT, _DOUBT = 12.0, 0.5
# Difference in log-distance between a point and the matched surface at which it is believed to be of another one.
_CLOSE = 0.1
# Confidence of a depth that points vouch for, beside one that the views agree on.
_VOUCHED = 0.5
_LEAST_DEPTH = 1e-6


@dataclass(frozen=True, eq=False)
class SparsePoints:
    """Points of each sample: xyz (B, P, 3) finite, in the frame of the cameras; rgb (B, P, 3) in [0, 1], if known."""

    xyz: Tensor
    rgb: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Votes:
    """What the points say of the depths in each view.

    Attributes:
        xy: (N, P, 2) places in viewpoint pixels.
        weight: (N, P) in [0, 1], 0 where a view does not see the point.
        fraction: (N, P) depths, as in ``Match``.
        rgb: (N, H, W, 3) of the views.
    """

    xy: Tensor
    weight: Tensor
    fraction: Tensor
    rgb: Tensor

    @staticmethod
    @torch.no_grad()
    def cast(
        points: SparsePoints,
        rgb: Tensor,
        c2w: Tensor,
        K: Tensor,
        decoder: FootprintDecoder,
        hidden: Tensor | None = None,
    ) -> Votes:
        """Of all views.

        Args:
            rgb: (B, V, H, W, 3) in [0, 1] on the viewpoint grid.
            c2w: (B, V, 4, 4).  K: (B, V, 3, 3) in pixels of that grid.
            hidden: (B, V, H, W) bool, pixels that say nothing.
        """
        H, W = rgb.shape[2:4]
        with without_autocast(rgb.device):
            xy, z, distance = (x.flatten(0, 1) for x in project(points.xyz.float(), c2w.float(), K.float()))
            inside = in_image(xy, z, H, W)
            seen = inside & (z <= _FARTHER * _front(xy, z, inside, H, W))
            fraction = torch.log(distance.clamp_min(_LEAST_DEPTH) / decoder.near) / math.log(decoder.far / decoder.near)
            seen = seen & (fraction > 0) & (fraction < 1)
            pixels = rgb.flatten(0, 1).float()
            if hidden is not None:
                seen = seen & ~hidden.flatten(0, 1).flatten(1).gather(1, _pixel_of(xy, H, W))
            weight = seen.float()
            if points.rgb is not None:
                given = points.rgb.float()[:, None].expand(-1, rgb.shape[1], -1, -1).flatten(0, 1)
                shown = _look(pixels, _pixel_of(xy, H, W))
                weight = weight * torch.exp(-0.5 * ((given - shown) / _OTHER_COLOUR).square().sum(-1))
        return Votes(xy, weight, fraction.clamp(0, 1), pixels)

    def logits(self, planes: int) -> Tensor:
        """(N, D, H, W) to be added to those of the hypotheses.

        The votes of a pixel, each for the two planes around its depth, as a share of all there and ``_DOUBT`` more.
        """
        N, (H, W) = len(self.xy), self.rgb.shape[1:3]
        volume = self.weight.new_zeros(N, planes * H * W)
        for part in self._parts():
            pixel, weight = part.around()
            place = part.fraction[..., None] * (planes - 1)
            below = place.floor().clamp_max(planes - 2)
            at = below.long() * (H * W) + pixel
            volume.scatter_add_(1, at.flatten(1), (weight * (1 + below - place)).flatten(1))
            volume.scatter_add_(1, (at + H * W).flatten(1), (weight * (place - below)).flatten(1))
        votes = volume.view(N, planes, H, W)
        return _WEIGHT * votes / (votes.sum(1, keepdim=True) + _DOUBT)

    def pull(self, fraction_NHW: Tensor, log_range: float) -> tuple[Tensor, Tensor]:
        """How far a map of depths should move towards the points that are close to it, and how far these vouch for it,
        in [0, 1).

        Args:
            fraction_NHW: as in ``Match``.
            log_range: log(far / near).
        """
        flat = fraction_NHW.flatten(1)
        total, moved = torch.zeros_like(flat), torch.zeros_like(flat)
        for part in self._parts():
            pixel, weight = part.around()
            apart = part.fraction - flat.gather(1, _pixel_of(part.xy, *self.rgb.shape[1:3]))
            weight = weight * torch.exp(-0.5 * (apart * (log_range / _CLOSE)).square())[..., None]
            total.scatter_add_(1, pixel.flatten(1), weight.flatten(1))
            moved.scatter_add_(1, pixel.flatten(1), (weight * apart[..., None]).flatten(1))
        shift, vouched = moved / (total + _DOUBT), _VOUCHED * total / (total + _DOUBT)
        return shift.view_as(fraction_NHW), vouched.view_as(fraction_NHW)

    def around(self) -> tuple[Tensor, Tensor]:
        """The pixels (N, P, K) of the window around each point, as places in a flat view, and their weights."""
        H, W = self.rgb.shape[1:3]
        steps = torch.arange(-_REACH, _REACH + 1, device=self.xy.device)
        down, right = (x.flatten() for x in torch.meshgrid(steps, steps, indexing="ij"))
        own = _pixel_of(self.xy, H, W)
        row, column = own[..., None] // W + down, own[..., None] % W + right
        inside = (row >= 0) & (row < H) & (column >= 0) & (column < W)
        pixel = torch.where(inside, row * W + column, 0)
        away = (column + 0.5 - self.xy[..., :1]).square() + (row + 0.5 - self.xy[..., 1:]).square()
        unlike = (_look(self.rgb, pixel) - _look(self.rgb, own)[..., None, :]).square().sum(-1)
        kernel = torch.exp(-0.5 * (away / _SPREAD**2 + unlike / _ALIKE**2))
        seen = inside & (self.weight > 0)[..., None]
        return pixel, torch.where(seen, self.weight[..., None] * kernel, 0.0)

    def _parts(self) -> Iterator[Votes]:
        """Some points at a time, so that memory does not grow with their number."""
        count = at_a_time(self.weight[:, :1].expand(-1, (2 * _REACH + 1) ** 2))
        parts = (x.split(count, dim=1) for x in (self.xy, self.weight, self.fraction))
        for xy, weight, fraction in zip(*parts, strict=True):
            yield Votes(xy, weight, fraction, self.rgb)


def project(xyz: Tensor, c2w: Tensor, K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Image places (..., V, P, 2), z-depths (..., V, P) and distances (..., V, P) of points (..., P, 3) in views.

    Args:
        c2w: (..., V, 4, 4).  K: (..., V, 3, 3) in pixels. Places behind a camera mean nothing.
    """
    w2c = rigid_inverse(c2w)
    local = torch.einsum("...vij,...pj->...vpi", w2c[..., :3, :3], xyz) + w2c[..., None, :3, 3]
    pixels = torch.einsum("...vij,...vpj->...vpi", K, local)
    return pixels[..., :2] / pixels[..., 2:].clamp_min(_LEAST_DEPTH), local[..., 2], local.norm(dim=-1)


def in_image(xy: Tensor, z: Tensor, height: int, width: int) -> Tensor:
    """(...) bool: which places (..., 2) of z-depths (...) lie in the image, before the camera."""
    x, y = xy.unbind(-1)
    return (z > _LEAST_DEPTH) & (x > 0) & (x < width) & (y > 0) & (y < height)


def _front(xy_NP2: Tensor, z_NP: Tensor, inside_NP: Tensor, height: int, width: int) -> Tensor:
    """(N, P) the second least z-depth of the points in the cell of each point and in those next to it.

    The second, so that one wrong point does not hide all others.
    """
    columns, rows = -(-width // _CELL), -(-height // _CELL)
    column = (xy_NP2[..., 0] / _CELL).clamp(0, columns - 1).long()
    row = (xy_NP2[..., 1] / _CELL).clamp(0, rows - 1).long()
    cell = row * columns + column
    depth = torch.where(inside_NP, z_NP, math.inf)
    empty = z_NP.new_full((len(z_NP), rows * columns), math.inf)
    first = empty.scatter_reduce(1, cell, depth, "amin")
    rest = torch.where(depth == first.gather(1, cell), math.inf, depth)
    second = empty.scatter_reduce(1, cell, rest, "amin")
    maps = F.pad(torch.stack([first, second], dim=1).unflatten(2, (rows, columns)), (1, 1, 1, 1), value=math.inf)
    shifted = [maps[:, :, i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    least = torch.cat(shifted, dim=1).topk(2, dim=1, largest=False).values[:, 1]
    return least.flatten(1).gather(1, cell)


def _pixel_of(xy_NP2: Tensor, height: int, width: int) -> Tensor:
    """(N, P) places in a flat view."""
    x, y = xy_NP2.unbind(-1)
    return y.clamp(0, height - 1).long() * width + x.clamp(0, width - 1).long()


def _look(rgb_NHW3: Tensor, pixel: Tensor) -> Tensor:
    """(N, ..., 3) colours of places (N, ...) in flat views."""
    flat = rgb_NHW3.flatten(1, 2)
    found = flat.gather(1, pixel.flatten(1)[..., None].expand(-1, -1, 3))
    return found.view(*pixel.shape, 3)
