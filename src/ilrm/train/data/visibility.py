"""Which views see which sparse points. Files of points do not say, and a point behind a surface is no depth of it.

A point counts as seen where no clearly nearer points surround it in the image, and where the photo around it looks
like other photos around it. The second test finds the far side of smooth things, whose near side has few points.

Shape suffixes: V views, P points, N pairs of a view and a point, S samples of a patch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ilrm.core.cameras import Cameras, normalise
from ilrm.scenes.views.hidden import unhidden_points

_CELL = 8  # pixels along a cell of the depth buffer
_BORDER = 3  # pixels
# Photos are compared at angles at which a hidden point would move against the surface before it, and patches keep
# their look.
_LEAST_ANGLE, _LARGEST_ANGLE = 4.0, 40.0  # degrees
_PARTNERS = 3
_PATCH = 2  # pixels on each side of the middle
_LEAST_CORRELATION = 0.7
_LEAST_CONTRAST = 1e-3
_NEAR = 1e-6


def project(points: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Image positions (V, P, 2) and z-depths (V, P) of points (P, 3); positions behind a camera mean nothing."""
    w2c = cameras.w2c
    local = torch.einsum("vij,pj->vpi", w2c[:, :3, :3], points) + w2c[:, None, :3, 3]
    pixels = torch.einsum("vij,vpj->vpi", cameras.K, local)
    return pixels[..., :2] / pixels[..., 2:].abs().clamp_min(1e-12), local[..., 2]


def seen_points(grey: Tensor, cameras: Cameras, points: Tensor) -> Tensor:
    """(V, P) bool: whether a view sees a point.

    Args:
        grey: (V, H, W) in [0, 1].
        cameras: V cameras of that size.
        points: (P, 3) in their world.
    """
    # Small numbers that single precision holds: the world's origin may be far away.
    cameras, to_world = normalise(cameras.to(dtype=torch.float64))
    points = to_world.inverse().apply_points(points.double())
    xy_VP, z_VP = project(points, cameras)
    size = xy_VP.new_tensor([cameras.width, cameras.height])
    inside_VP = (z_VP > 0) & (xy_VP > _BORDER).all(-1) & (xy_VP < size - _BORDER).all(-1)
    front_VP = unhidden_points(xy_VP, z_VP, inside_VP, (cameras.width, cameras.height), _CELL)
    photos = _Photos(grey.float(), cameras.to(dtype=torch.float32))
    return front_VP & _alike(photos, points.float(), z_VP.float(), inside_VP, front_VP)


def _alike(photos: _Photos, points: Tensor, z_VP: Tensor, inside_VP: Tensor, asked_VP: Tensor) -> Tensor:
    """(V, P) whether two other photos, or all there are, look the same around the point; True without any."""
    toward_VP3 = F.normalize(points - photos.cameras.centers[:, None], dim=-1)
    widest, narrowest = (math.cos(math.radians(angle)) for angle in (_LARGEST_ANGLE, _LEAST_ANGLE))
    alike_VP = torch.ones_like(asked_VP)
    for view, asked_P in enumerate(asked_VP):
        point_N = asked_P.nonzero()[:, 0]
        cosine_VN = (toward_VP3[view, point_N] * toward_VP3[:, point_N]).sum(-1)
        usable_VN = inside_VP[:, point_N] & (cosine_VN > widest) & (cosine_VN < narrowest)
        cosine_VN = torch.where(usable_VN, cosine_VN, -1.0)
        nearest, partner = cosine_VN.topk(min(_PARTNERS, len(toward_VP3)), dim=0)
        world_N3S = photos.patch(view, points[point_N], z_VP[view, point_N])
        own = photos.look(torch.full_like(point_N, view), world_N3S)
        correlation = torch.stack([(own * photos.look(other_N, world_N3S)).sum(1) for other_N in partner])
        asked = nearest > -1
        agreeing = (asked & (correlation > _LEAST_CORRELATION)).sum(0)
        alike_VP[view, point_N] = agreeing >= asked.sum(0).clamp_max(2)
    return alike_VP


class _Photos:
    """Grey photos (V, H, W) and their cameras, to be looked at around points of the world."""

    def __init__(self, grey: Tensor, cameras: Cameras) -> None:
        self.cameras = cameras
        smooth = F.avg_pool2d(grey[:, None], 3, stride=1, padding=1, count_include_pad=False)
        self._values, self._height, self._width = smooth.flatten(), *grey.shape[1:]
        self._projections = cameras.K @ cameras.w2c[:, :3]  # (V, 3, 4)

    def patch(self, view: int, points_N3: Tensor, z_N: Tensor) -> Tensor:
        """(N, 3, S) samples of the planes through the points that face a view, a pixel of it apart."""
        c2w, K = self.cameras.c2w[view], self.cameras.K[view]
        steps = torch.arange(-_PATCH, _PATCH + 1, dtype=points_N3.dtype)
        y_S, x_S = (x.flatten() for x in torch.meshgrid(steps, steps, indexing="ij"))
        offset_3S = c2w[:3, :1] * x_S / K[0, 0] + c2w[:3, 1:2] * y_S / K[1, 1]
        return points_N3[:, :, None] + z_N[:, None, None] * offset_3S

    def look(self, view_N: Tensor, world_N3S: Tensor) -> Tensor:
        """(N, S) what photos show at such samples, each patch of mean 0 and length 1."""
        P = self._projections[view_N]
        x, y, z = (P[:, :, :3] @ world_N3S + P[:, :, 3:]).unbind(1)
        z = z.clamp_min(_NEAR)
        # The nearest pixel will do: the photos are smoothed.
        column = (x / z).clamp(0, self._width - 1).int()
        row = (y / z).clamp(0, self._height - 1).int()
        at = (view_N[:, None].int() * self._height + row) * self._width + column
        patch = self._values.index_select(0, at.flatten()).view(at.shape)
        patch = patch - patch.mean(1, keepdim=True)
        return patch / patch.norm(dim=1, keepdim=True).clamp_min(_LEAST_CONTRAST)
