"""The input views of each sample looking at each other's points.

Samples are folded into views: view v of sample b is view b * V + v, and its sources are views of the same sample. No
operation then loops over samples, so a batch costs as many launches as one sample.

Shape suffixes: B samples of V views, N = B * V views of all of them, S source views of each, H W rows and columns of
the viewpoint grid, C channels of a map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ilrm.core.cameras import rays

# Values of maps that are worked on at a time: on a CPU what stays in its cache, on a GPU what memory allows.
_MOST_VALUES = {"cpu": 1 << 20, "cuda": 1 << 28}


def at_a_time(like: Tensor) -> int:
    """How many maps of the size of ``like`` may be worked on at a time, on its device."""
    return max(1, _MOST_VALUES.get(like.device.type, _MOST_VALUES["cuda"]) // max(1, like.numel()))


@dataclass(frozen=True, eq=False)
class ViewGeometry:
    """All views: c2w (N, 4, 4), K (N, 3, 3), rays of their pixels (N, H, W, 3), S sources of each view (N, S), and
    which pixels a mask hides (N, H, W), None where none does."""

    c2w: Tensor
    K: Tensor
    origins: Tensor
    directions: Tensor
    sources: Tensor
    hidden: Tensor | None = None

    @staticmethod
    def of(
        c2w_BV44: Tensor, K_BV33: Tensor, width: int, height: int, sources: int, hidden_BVHW: Tensor | None = None
    ) -> ViewGeometry:
        """Views with their ``sources`` nearest others of the same sample each, or all others where there are fewer."""
        B, V = c2w_BV44.shape[:2]
        first = V * torch.arange(B, device=c2w_BV44.device)[:, None, None]
        folded = (source_views(c2w_BV44, sources) + first).flatten(0, 1)
        c2w, K = c2w_BV44.flatten(0, 1), K_BV33.flatten(0, 1)
        hidden = None if hidden_BVHW is None else hidden_BVHW.flatten(0, 1)
        return ViewGeometry(c2w, K, *rays(c2w, K, width, height), folded, hidden)

    def points(self, distance_NHW: Tensor) -> Tensor:
        """(N, H, W, 3) at these distances along the pixels' rays."""
        return self.origins + self.directions * distance_NHW[..., None]

    def project(self) -> tuple[Tensor, Tensor]:
        """(slope, base), (N, S, H, W, 3) and (N, S, 1, 1, 3): the point at distance t on a pixel's ray has the
        homogeneous pixel coordinates t * slope + base in each source of its view."""
        to_pixel = self._to_pixel(self.sources)
        slope = torch.einsum("nsij,nhwj->nshwi", to_pixel, self.directions)
        apart = self.c2w[:, None, :3, 3] - self.c2w[self.sources, :3, 3]
        return slope, torch.einsum("nsij,nsj->nsi", to_pixel, apart)[:, :, None, None]

    def _to_pixel(self, source: Tensor) -> Tensor:
        """(..., 3, 3): from directions in the world to homogeneous pixels of the views with these numbers (...)."""
        return self.K[source] @ self.c2w[source, :3, :3].transpose(-1, -2)

    def sampling_grid(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates for ``grid_sample`` (..., 2) of homogeneous pixels (..., 3), and where they lie in the image."""
        height, width = self.directions.shape[1:3]
        # The two numbers, made where they are needed: a tensor of them would have to be copied to the device.
        size = torch.linspace(width, height, 2, dtype=pixels.dtype, device=pixels.device)
        grid = 2 * pixels[..., :2] / pixels[..., 2:].clamp_min(1e-6) / size - 1
        seen = (grid.abs() < 1).all(-1) & (pixels[..., 2] > 1e-6)
        return grid.clamp(-2, 2), seen

    def unhidden(self, source_NS: Tensor, grid: Tensor, seen: Tensor) -> Tensor:
        """``seen`` (N, S, ..., W) without what falls on hidden pixels of sources, at (N, S, ..., W, 2) coordinates
        for ``grid_sample``."""
        if self.hidden is None:
            return seen
        maps = self.hidden[source_NS.flatten()][:, None].float()
        below = grid.reshape(len(maps), -1, *grid.shape[-2:])
        return seen & (F.grid_sample(maps, below, mode="nearest", align_corners=False).view(seen.shape) == 0)

    def look_from(self, source_NS: Tensor, points_NHW3: Tensor, maps_NHWC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What these sources of each view have at the pixels where they see the view's points.

        Returns:
            whether a point lies in the source's image (N, S, H, W), its distance from the source (N, S, H, W), and the
            source's own maps there (N, S, H, W, C), from the nearest pixel.
        """
        N, S = source_NS.shape
        offset = points_NHW3[:, None] - self.c2w[source_NS][..., None, None, :3, 3]
        pixels = torch.einsum("nsij,nshwj->nshwi", self._to_pixel(source_NS), offset)
        grid, seen = self.sampling_grid(pixels)
        seen = self.unhidden(source_NS, grid, seen)
        maps = maps_NHWC[source_NS.flatten()].permute(0, 3, 1, 2)
        theirs = F.grid_sample(maps, grid.flatten(0, 1), mode="nearest", padding_mode="border", align_corners=False)
        return seen, offset.norm(dim=-1).clamp_min(1e-6), theirs.permute(0, 2, 3, 1).unflatten(0, (N, S))


def source_views(c2w_BV44: Tensor, count: int) -> Tensor:
    """(..., V, S) indices, within each sample (..., V, 4, 4), of the views most like each view: near by, looking the
    same way. S <= V - 1."""
    centre, forward = c2w_BV44[..., :3, 3].float(), c2w_BV44[..., :3, 2].float()
    apart = torch.cdist(centre, centre)
    widest = apart.amax((-2, -1), keepdim=True).clamp_min(1e-12)
    cost = apart / widest + (1 - forward @ forward.transpose(-1, -2))
    views = cost.shape[-1]
    cost = cost.masked_fill(torch.eye(views, dtype=torch.bool, device=cost.device), float("inf"))
    return cost.argsort(dim=-1, stable=True)[..., : min(count, views - 1)]
