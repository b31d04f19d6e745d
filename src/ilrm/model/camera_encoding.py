"""Relative camera encoding in attention over views: PRoPE (Li et al. 2025, "Cameras as Relative Positional Encoding").

Not part of the paper. Token t of view v transforms its query, key and value by a block-diagonal matrix D_t, so that the
score of two tokens depends on the projective matrix that takes one camera into the other, and on how far apart their
patches lie in the image, but on no world frame. One half of a head's channels takes the cameras, a quarter each the
patch columns and rows (rotary encoding).

Shape suffixes: B batch, V views, L tokens of a view, T = V * L tokens of a sample, H heads, D channels of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ilrm.core.precision import without_autocast

# Base of the rotary frequencies; patch grids are at most some hundred tokens wide.
_ROTARY_BASE = 100.0


@dataclass(frozen=True, eq=False)
class CameraEncoding:
    """Transforms of a sample's tokens: P (B, T, 4, 4) takes the world into each token's normalised view, inverse is
    P^-1, cos and sin (T, D / 4) turn the patch half of the channels."""

    P: Tensor
    inverse: Tensor
    cos: Tensor
    sin: Tensor

    @staticmethod
    def of_views(c2w: Tensor, K: Tensor, height: int, width: int, patch_size: int, head_width: int) -> CameraEncoding:
        """The encoding of all patches of a viewpoint grid.

        Args:
            c2w: (B, V, 4, 4).  K: (B, V, 3, 3) in pixels of the grid.
            height, width: of the grid in pixels.
        """
        rows, columns = height // patch_size, width // patch_size
        with without_autocast(c2w.device):
            lift = torch.eye(4, device=c2w.device).repeat(*K.shape[:2], 1, 1)
            # Image coordinates from -1 to 1, so that no entry depends on the resolution.
            x, y, last = K.float().unbind(-2)
            lift[..., :3, :3] = torch.stack([2 / width * x - last, 2 / height * y - last, last], dim=-2)
            # inv_ex, unlike inv, does not wait for the device to tell whether it worked.
            P_BV44 = lift @ torch.linalg.inv_ex(c2w.float()).inverse
            inverse_BV44 = torch.linalg.inv_ex(P_BV44).inverse
            angles = _rotary_angles(rows, columns, head_width // 8, c2w.device).repeat(c2w.shape[1], 1)
        patches = rows * columns
        P, inverse = (x.repeat_interleave(patches, dim=1) for x in (P_BV44, inverse_BV44))
        return CameraEncoding(P, inverse, angles.cos(), angles.sin())

    def queries(self, q_BTHD: Tensor) -> Tensor:
        """Queries in the common frame: P^T q and the rotated patch half."""
        return self._apply(q_BTHD, self.P.transpose(-1, -2), self.sin)

    def keys(self, x_BTHD: Tensor) -> Tensor:
        """Keys or values in the common frame: P^-1 x and the rotated patch half."""
        return self._apply(x_BTHD, self.inverse, self.sin)

    def outputs(self, x_BTHD: Tensor) -> Tensor:
        """Attended values back in each token's own frame: P x and the patch half rotated back."""
        return self._apply(x_BTHD, self.P, -self.sin)

    def _apply(self, x_BTHD: Tensor, matrix_BT44: Tensor, sin: Tensor) -> Tensor:
        camera, patch = x_BTHD.chunk(2, dim=-1)
        groups = camera.unflatten(-1, (-1, 4))
        turned = torch.einsum("btij,bthgj->bthgi", matrix_BT44.to(x_BTHD.dtype), groups).flatten(-2)
        even, odd = patch.unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = (y.to(x_BTHD.dtype)[:, None] for y in (self.cos, sin))
        rotated = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
        return torch.cat([turned, rotated], dim=-1)


def _rotary_angles(rows: int, columns: int, frequencies: int, device: torch.device) -> Tensor:
    """(rows * columns, 2 * frequencies): for each patch its column's angles, then its row's."""
    rates = _ROTARY_BASE ** -(torch.arange(frequencies, device=device) / frequencies)
    row, column = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    return torch.cat([column.flatten()[:, None] * rates, row.flatten()[:, None] * rates], dim=-1)
