"""Gaussians of sparse points that lie where no input view has a surface.

The network's Gaussians are those of the input views' pixels. Sparse points come from more photos, so some lie outside
of all inputs, or behind what these see. Such a point becomes a Gaussian of its own: a disc along its neighbours.

Shape suffixes: V views, P points, M of them that become Gaussians, H W rows and columns of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ilrm.core.cameras import Cameras
from ilrm.core.gaussians import Gaussians, matrix_to_quaternion
from ilrm.core.spherical_harmonics import C0
from ilrm.model.matching.neighbours import nearest_others, spacing
from ilrm.model.matching.sparse import SparsePoints, in_image, project
from ilrm.render import render

# How much farther than an input's surface a point must be to be hidden by it, and from what opacity on there is one.
_BEHIND, _SOLID = 1.05, 0.5
# Surfaces within so many pixels of a point's place count, too.
_AROUND = 2
# Neighbours that say how a Gaussian lies, and the fewest points that have enough of them.
_NEIGHBOURS, _FEWEST = 8, 4
# Where points lie so much farther apart than usual, as seen from the nearest camera, they are too few to trust.
_SPARSEST = 10.0
# No larger than this share of the distance to the nearest camera; no flatter than this share of its mean size.
_LARGEST, _FLATTEST, _LONGEST = 0.1, 0.3, 1.5
_OPACITY = 0.9


@torch.no_grad()
def gaussians_of_unseen(points: SparsePoints, surface: Gaussians, cameras: Cameras) -> Gaussians:
    """M Gaussians, of the same SH degree, of those points that no input has a surface for; M may be 0.

    Args:
        points: of one sample; without colours, or if they are fewer than four, they become none.
        surface: N Gaussians that the network made of the inputs, in the frame of the points.
        cameras: V of the inputs in that frame.
    """
    xyz = points.xyz[0]
    rgb = xyz.new_zeros(0, 3) if points.rgb is None else points.rgb[0]
    if points.rgb is None or len(xyz) < _FEWEST:
        return _discs(xyz[:0], rgb[:0], xyz.new_zeros(0), xyz.new_zeros(0, 1, 3), surface)
    distances, neighbours = nearest_others(xyz, _NEIGHBOURS)
    size = spacing(distances)
    from_camera = (xyz[:, None] - cameras.centers.to(xyz)).norm(dim=-1).amin(1)
    spread = size / from_camera.clamp_min(1e-6)
    dense = spread < _SPARSEST * spread.median()
    unseen = (is_unseen(xyz, surface, cameras) & dense).nonzero()[:, 0]
    offsets = xyz[neighbours[unseen]] - xyz[unseen, None]
    size = torch.minimum(size, _LARGEST * from_camera).clamp_min(1e-6)
    return _discs(xyz[unseen], rgb[unseen], size[unseen], offsets, surface)


def is_unseen(xyz: Tensor, surface: Gaussians, cameras: Cameras) -> Tensor:
    """(P,) bool: points that each view has outside of its image, or behind its surface.

    A point before a view's surface, or on it, is not: what the view sees there is known better by matching.
    """
    height, width = cameras.height, cameras.width
    drawn = render(surface, cameras)
    depth = torch.where(drawn.alpha > _SOLID, drawn.depth, torch.inf)
    farthest = F.max_pool2d(depth[:, None], 2 * _AROUND + 1, 1, _AROUND).flatten(1)
    xy, z, _ = project(xyz, cameras.c2w.to(xyz), cameras.K.to(xyz))
    column, row = xy[..., 0].clamp(0, width - 1).long(), xy[..., 1].clamp(0, height - 1).long()
    hidden = z > _BEHIND * farthest.gather(1, row * width + column)
    return (hidden | ~in_image(xy, z, height, width)).all(0)


def _discs(xyz_M3: Tensor, rgb_M3: Tensor, size_M: Tensor, offsets_Mk3: Tensor, like: Gaussians) -> Gaussians:
    """Discs of about that size, along the offsets of their neighbours."""
    # Axes of the neighbours' spread; the shortest one is the normal.
    variances, axes = torch.linalg.eigh(offsets_Mk3.mT @ offsets_Mk3)
    # Their signs mean nothing; chosen by the neighbours, they turn with the world.
    signs = (offsets_Mk3[:, :1] @ axes).sign()
    axes = torch.where(signs == 0, axes, axes * signs)
    axes = torch.cat([axes[..., :2], torch.linalg.cross(axes[..., 0], axes[..., 1], dim=-1)[..., None]], dim=-1)
    shape = (variances / variances.mean(1, keepdim=True).clamp_min(1e-20)).clamp_min(0).sqrt()
    sh = xyz_M3.new_zeros(len(xyz_M3), like.sh.shape[-2], 3)
    sh[:, 0] = (rgb_M3 - 0.5) / C0
    return Gaussians(
        means=xyz_M3,
        scales=size_M[:, None] * shape.clamp(_FLATTEST, _LONGEST),
        quats=matrix_to_quaternion(axes),
        opacities=torch.full_like(size_M, _OPACITY),
        sh=sh,
        antialiased=like.antialiased,
        background=like.background,
    )
