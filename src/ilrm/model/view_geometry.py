"""The input views of one sample looking at each other's points.

Shape suffixes: V views, S source views of each, H W rows and columns of the viewpoint grid, C channels of a map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ilrm.cameras import rays


@dataclass(frozen=True, eq=False)
class Views:
    """One sample: c2w (V, 4, 4), K (V, 3, 3), rays of its pixels (V, H, W, 3), and S sources of each view (V, S)."""

    c2w: Tensor
    K: Tensor
    origins: Tensor
    directions: Tensor
    sources: Tensor

    @staticmethod
    def of(c2w_V44: Tensor, K_V33: Tensor, width: int, height: int, sources: int) -> Views:
        """Views with their ``sources`` nearest others each, or all others where there are fewer."""
        return Views(c2w_V44, K_V33, *rays(c2w_V44, K_V33, width, height), source_views(c2w_V44, sources))

    def points(self, distance_VHW: Tensor) -> Tensor:
        """(V, H, W, 3) at these distances along the pixels' rays."""
        return self.origins + self.directions * distance_VHW[..., None]

    def project(self, slot: int) -> tuple[Tensor, Tensor]:
        """(slope, base), (V, H, W, 3) and (V, 1, 1, 3): the point at distance t on a pixel's ray has the homogeneous
        pixel coordinates t * slope + base in that pixel's source number ``slot``."""
        source = self.sources[:, slot]
        to_pixel = self.K[source] @ self.c2w[source, :3, :3].transpose(1, 2)
        slope = torch.einsum("vij,vhwj->vhwi", to_pixel, self.directions)
        apart = self.c2w[:, :3, 3] - self.c2w[source, :3, 3]
        return slope, torch.einsum("vij,vj->vi", to_pixel, apart)[:, None, None]

    def sampling_grid(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates for ``grid_sample`` (V, H, W, 2) of homogeneous pixels, and where they lie in the image."""
        height, width = self.directions.shape[1:3]
        size = torch.tensor([width, height], dtype=pixels.dtype, device=pixels.device)
        grid = 2 * pixels[..., :2] / pixels[..., 2:].clamp_min(1e-6) / size - 1
        seen = (grid.abs() < 1).all(-1) & (pixels[..., 2] > 1e-6)
        return grid.clamp(-2, 2), seen

    def look_from(self, slot: int, points_VHW3: Tensor, maps_VHWC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What each point's source number ``slot`` has at the pixel where it sees the point.

        Returns:
            whether it lies in the source's image (V, H, W), its distance from the source (V, H, W), and the source's
            own maps there (V, H, W, C), from the nearest pixel.
        """
        source = self.sources[:, slot]
        offset = points_VHW3 - self.c2w[source, None, None, :3, 3]
        to_pixel = self.K[source] @ self.c2w[source, :3, :3].transpose(1, 2)
        grid, seen = self.sampling_grid(torch.einsum("vij,vhwj->vhwi", to_pixel, offset))
        maps = maps_VHWC[source].permute(0, 3, 1, 2)
        theirs = F.grid_sample(maps, grid, mode="nearest", padding_mode="border", align_corners=False)
        return seen, offset.norm(dim=-1).clamp_min(1e-6), theirs.permute(0, 2, 3, 1)


def source_views(c2w_V44: Tensor, count: int) -> Tensor:
    """(V, S) indices of the views most like each view: near by, looking the same way. S <= V - 1."""
    centre, forward = c2w_V44[:, :3, 3].float(), c2w_V44[:, :3, 2].float()
    apart = torch.cdist(centre, centre)
    cost = apart / apart.max().clamp_min(1e-12) + (1 - forward @ forward.T)
    cost.fill_diagonal_(float("inf"))
    return cost.argsort(dim=-1, stable=True)[:, : min(count, len(c2w_V44) - 1)]
