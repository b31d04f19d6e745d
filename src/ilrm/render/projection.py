"""From world to image: projected centres, covariances, depths and colours, in plain torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ilrm.core import spherical_harmonics
from ilrm.core.cameras import Cameras
from ilrm.core.errors import CameraError
from ilrm.core.gaussians import Gaussians, quaternion_to_matrix
from ilrm.render.rules import ALPHA_MIN, BLUR, COMPENSATION_MIN, JACOBIAN_MARGIN


@dataclass(frozen=True, eq=False)
class Pinhole:
    """One view: world-to-camera (4, 4), centre (3,), and intrinsics as numbers in pixels (no skew)."""

    w2c: Tensor
    centre: Tensor
    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    @staticmethod
    def of(cameras: Cameras, like: Tensor) -> list[Pinhole]:
        """One for each of V cameras; poses are inverted in float64, then get dtype and device of ``like``."""
        c2w, K = cameras.c2w.detach().double().cpu(), cameras.K.detach().double().cpu()
        w2c = torch.linalg.inv(c2w).to(like)
        views = []
        for i in range(len(cameras)):
            (fx, _, cx), (_, fy, cy), _ = K[i].tolist()
            if not (0 < fx < math.inf and 0 < fy < math.inf):
                raise CameraError(
                    f"View {i} has the focal lengths {fx:g} and {fy:g}.", expected="positive ones, in pixels"
                )
            centre = c2w[i, :3, 3].to(like)
            views.append(Pinhole(w2c[i], centre, fx, fy, cx, cy, cameras.width, cameras.height))
        return views

    @property
    def jacobian_limits(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Lowest and highest x/z, then y/z, at which the projection is linearised."""
        margin_x = JACOBIAN_MARGIN * 0.5 * self.width / self.fx
        margin_y = JACOBIAN_MARGIN * 0.5 * self.height / self.fy
        return (
            (-self.cx / self.fx - margin_x, (self.width - self.cx) / self.fx + margin_x),
            (-self.cy / self.fy - margin_y, (self.height - self.cy) / self.fy + margin_y),
        )


@dataclass(frozen=True, eq=False)
class Projected:
    """M visible Gaussians of one view, nearest first.

    Attributes:
        index: (M,) positions in the set that was projected.
        means: (M, 2) centres in pixels, x then y.
        covariances: (M, 2, 2) in square pixels, blur included.
        depths: (M,) camera z.
        opacities: (M,), compensated for the blur where the Gaussians are made for it.
        colours: (M, 3).
    """

    index: Tensor
    means: Tensor
    covariances: Tensor
    depths: Tensor
    opacities: Tensor
    colours: Tensor


def project(gaussians: Gaussians, view: Pinhole, near: float, far: float) -> Projected:
    """Project the Gaussians that the view can see, sorted by depth.

    Left out, without a gradient: those outside [near, far], fainter than ALPHA_MIN, or with NaN or infinite values.
    """
    with torch.no_grad():
        depths = gaussians.means @ view.w2c[2, :3] + view.w2c[2, 3]
        usable = (depths >= near) & (depths <= far) & (gaussians.opacities >= ALPHA_MIN) & gaussians.finite()
        index = usable.nonzero()[:, 0]
        index = index[depths[index].argsort(stable=True)]
    seen = gaussians[index]
    rotation, translation = view.w2c[:3, :3], view.w2c[:3, 3]
    x, y, z = (seen.means @ rotation.T + translation).unbind(-1)
    axes = _jacobian(x, y, z, view) @ rotation @ _axes(seen)  # (M, 2, 3)
    covariances = axes @ axes.transpose(-1, -2) + BLUR * torch.eye(2).to(axes)
    return Projected(
        index=index,
        means=torch.stack([view.fx * x / z + view.cx, view.fy * y / z + view.cy], dim=-1),
        covariances=covariances,
        depths=z,
        opacities=seen.opacities * _compensation(axes, covariances) if seen.antialiased else seen.opacities,
        colours=spherical_harmonics.colours(seen.sh, F.normalize(seen.means - view.centre, dim=-1)),
    )


def _compensation(axes: Tensor, blurred: Tensor) -> Tensor:
    """(M,) sqrt(det C / det (C + BLUR I)) of C = axes axes^T, for axes (M, 2, 3).

    det C is the squared length of the cross product of the rows, which no digits cancel in.
    """
    determinant = torch.linalg.cross(axes[:, 0], axes[:, 1], dim=-1).square().sum(-1)
    return (determinant / torch.linalg.det(blurred)).clamp_min(COMPENSATION_MIN).sqrt()


def _axes(gaussians: Gaussians) -> Tensor:
    """(M, 3, 3) columns: the own axes in the world, as long as the standard deviations."""
    return quaternion_to_matrix(gaussians.quats) * gaussians.scales[:, None, :]


def _jacobian(x: Tensor, y: Tensor, z: Tensor, view: Pinhole) -> Tensor:
    """(M, 2, 3) derivative of the pixel position by the camera-space position."""
    (low_x, high_x), (low_y, high_y) = view.jacobian_limits
    u, v = (x / z).clamp(low_x, high_x), (y / z).clamp(low_y, high_y)
    zero = torch.zeros_like(z)
    rows = [view.fx / z, zero, -view.fx * u / z, zero, view.fy / z, -view.fy * v / z]
    return torch.stack(rows, dim=-1).unflatten(-1, (2, 3))
