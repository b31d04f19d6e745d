"""Ray casting: nearest hits and soft shadows of analytic primitives.

Shapes: N views, each in its own world; R rays per view; P primitives, ordered ellipsoids, boxes, cylinders. A primitive
is a unit sphere, cube or z-cylinder under an affine map, so a ray's parameter t is the same in the world and in the
primitive's own frame. Masks are computed by arithmetic (relu, clamp) instead of ``where``, which is ten times faster on
the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

# Added to t for a miss, times the violation of an inequality: such a hit is beyond every true surface.
_FAR = 1e12
_TINY = 1e-12
# Surfaces after the primitives: six room walls (-x, +x, -y, +y, -z, +z), the ground, the sky.
WALLS, GROUND, SKY, BACKDROP = 0, 6, 7, 8
# The index of a surface is stored in the low bits of its distance, see ``_first``; all surfaces must fit.
_INDEX_BITS = 6
MAX_PRIMITIVES = 2**_INDEX_BITS - BACKDROP


@dataclass(frozen=True, eq=False)
class Geometry:
    """The surfaces of N worlds.

    Attributes:
        to_local: (N, P, 3, 3) from world offsets to the unit shape's frame.
        centre: (N, P, 3).
        thickness: (N, P) the middle one of the half extents; determines how soft a shadow's edge is.
        room: (N, 3) half extents of the room around ``room_centre``; huge outdoors.
        room_centre: (N, 3).
        dome: (N,) radius of the sky around the origin; huge in rooms without a view.
        ground: (N,) height of the ground; far down in rooms.
        counts: how many ellipsoids, boxes and cylinders there are.
    """

    to_local: Tensor
    centre: Tensor
    thickness: Tensor
    room: Tensor
    room_centre: Tensor
    dome: Tensor
    ground: Tensor
    counts: tuple[int, int, int]

    def select(self, index: Tensor) -> Geometry:
        """The entries at ``index`` (N',)."""
        tensors = {f.name: getattr(self, f.name)[index] for f in fields(self) if f.name != "counts"}
        return Geometry(counts=self.counts, **tensors)

    @property
    def primitives(self) -> int:
        return sum(self.counts)


def _project(matrix: Tensor, vector: Tensor) -> list[Tensor]:
    """Three (N, P, R) components of matrix (N, P, 3, 3) @ vector (N, 3, R)."""
    x, y, z = (vector[:, None, k] for k in range(3))
    rows = matrix[..., None]
    return [
        torch.addcmul(torch.addcmul(rows[:, :, k, 0] * x, rows[:, :, k, 1], y), rows[:, :, k, 2], z) for k in range(3)
    ]


def _local(geometry: Geometry, points: Tensor) -> list[Tensor]:
    """Three (N, P, R) coordinates of points (N, 3, R) in the frames of the primitives."""
    shift = (geometry.to_local @ geometry.centre[..., None])[..., 0]
    return [part - shift[..., k, None] for k, part in enumerate(_project(geometry.to_local, points))]


def _split(parts: list[Tensor], counts: tuple[int, int, int]) -> list[list[Tensor]]:
    return [list(group) for group in zip(*(p.split(counts, dim=1) for p in parts), strict=True)]


def _miss(t: Tensor, violation: Tensor) -> Tensor:
    return torch.add(t, violation.relu_(), alpha=_FAR)


def _hit_ellipsoids(o: list[Tensor], d: list[Tensor]) -> Tensor:
    a = torch.addcmul(torch.addcmul(d[0] * d[0], d[1], d[1]), d[2], d[2])
    b = torch.addcmul(torch.addcmul(o[0] * d[0], o[1], d[1]), o[2], d[2])
    c = o[0] * o[0] + o[1] * o[1] + o[2] * o[2] - 1.0
    discriminant = b * b - a * c
    t = (-b - discriminant.relu().sqrt_()) / a
    return _miss(t, torch.maximum(-discriminant, b))


def _hit_boxes(o: list[Tensor], d: list[Tensor]) -> Tensor:
    near, far = None, None
    for origin, direction in zip(o, d, strict=True):
        inverse = (direction + _TINY).reciprocal_()
        middle, half = -origin * inverse, inverse.abs()
        enter, leave = middle - half, middle + half
        near = enter if near is None else torch.maximum(near, enter)
        far = leave if far is None else torch.minimum(far, leave)
    assert near is not None
    assert far is not None
    return _miss(near, torch.maximum(near - far, -near))


def _hit_cylinders(o: list[Tensor], d: list[Tensor]) -> Tensor:
    a = torch.addcmul(d[0] * d[0], d[1], d[1]) + _TINY
    b = torch.addcmul(o[0] * d[0], o[1], d[1])
    c = o[0] * o[0] + o[1] * o[1] - 1.0
    discriminant = b * b - a * c
    root = discriminant.relu().sqrt_()
    inverse = (d[2] + _TINY).reciprocal_()
    middle, half = -o[2] * inverse, inverse.abs()
    near = torch.maximum((-b - root) / a, middle - half)
    far = torch.minimum((root - b) / a, middle + half)
    return _miss(near, torch.maximum(torch.maximum(near - far, -near), -discriminant))


def _hit_backdrop(geometry: Geometry, o: Tensor, d: Tensor) -> Tensor:
    """Distances (N, BACKDROP, R) to walls, ground and sky from origins o (N, 3, 1) inside them."""
    inverse = d.abs().clamp_min(_TINY).reciprocal_() * (d >= 0).to(d).mul_(2.0).sub_(1.0)
    offset = o - geometry.room_centre[..., None]
    reach = torch.stack([-geometry.room[..., None] - offset, geometry.room[..., None] - offset], dim=2)  # (N, 3, 2, 1)
    walls = (reach * inverse[:, :, None]).flatten(1, 2)
    walls = _miss(walls, -walls)
    sky = sky_distance(geometry, o, d)
    fall = -d[:, 2]
    ground = _miss((o[:, 2] - geometry.ground[:, None]) / fall.clamp_min(1e-6), -fall)
    return torch.cat([walls, ground[:, None], sky[:, None]], dim=1)


def sky_distance(geometry: Geometry, o: Tensor, d: Tensor) -> Tensor:
    """Distances (N, R) to the sky from origins o (N, 3, 1) inside it."""
    a, b = (d * d).sum(1), (o * d).sum(1)
    return ((b * b + a * (geometry.dome[:, None] ** 2 - (o * o).sum(1))).sqrt() - b) / a


def nearest(geometry: Geometry, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """The first surface along each ray.

    Args:
        origins: (N, 3, 1) or (N, 3, R), outside all primitives, inside the backdrop.
        directions: (N, 3, R), not necessarily of unit length.

    Returns:
        t (N, R), where the hit is origin + t * direction, and the surface's index (N, R): primitives, then backdrop.
    """
    o = _local(geometry, origins)
    d = _project(geometry.to_local, directions)
    hits = (_hit_ellipsoids, _hit_boxes, _hit_cylinders)
    groups = zip(hits, _split(o, geometry.counts), _split(d, geometry.counts), strict=True)
    candidates = [*(hit(*group) for hit, *group in groups), _hit_backdrop(geometry, origins, directions)]
    return _first(candidates)


def _first(candidates: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The smallest t (N, R) of candidates (N, any, R) and its index among all of them.

    Positive floats have the same order as their bits. With the index in the low bits, an integer minimum gives both;
    argmin is 50 times slower on the CPU. Groups are processed one by one, because together they do not fit the cache.
    """
    nearest_t, packed, before = None, None, 0
    for t in candidates:
        label = torch.arange(before, before + t.shape[1], dtype=torch.int32, device=t.device)[:, None]
        here = ((t.view(torch.int32) & -(2**_INDEX_BITS)) | label).amin(1)
        nearest_t = t.amin(1) if nearest_t is None else torch.minimum(nearest_t, t.amin(1))
        packed = here if packed is None else torch.minimum(packed, here)
        before += t.shape[1]
    assert nearest_t is not None
    assert packed is not None
    return nearest_t, (packed & (2**_INDEX_BITS - 1)).long()


def _pair(a: Tensor, da: Tensor, b: Tensor, db: Tensor) -> Tensor:
    """min over t of max(|a + t da|, |b + t db|), in closed form."""
    return (a * db - b * da).abs_() / (da.abs() + db.abs() + _TINY)


def _reach_ellipsoids(o: list[Tensor], d: list[Tensor]) -> tuple[Tensor, Tensor]:
    a = torch.addcmul(torch.addcmul(d[0] * d[0], d[1], d[1]), d[2], d[2]) + _TINY
    b = torch.addcmul(torch.addcmul(o[0] * d[0], o[1], d[1]), o[2], d[2])
    c = torch.addcmul(torch.addcmul(o[0] * o[0], o[1], o[1]), o[2], o[2])
    closest = -b / a
    return torch.addcmul(c, closest, b).relu_().sqrt_(), closest


def _reach_boxes(o: list[Tensor], d: list[Tensor]) -> tuple[Tensor, Tensor]:
    # The sublevel sets of each |o_k + t d_k| are intervals. Intervals that intersect in pairs have a common point
    # (Helly's theorem), so the minimum over three axes is the largest of the minima over pairs.
    reach = torch.maximum(_pair(o[0], d[0], o[1], d[1]), _pair(o[0], d[0], o[2], d[2]))
    a = torch.addcmul(torch.addcmul(d[0] * d[0], d[1], d[1]), d[2], d[2]) + _TINY
    b = torch.addcmul(torch.addcmul(o[0] * d[0], o[1], d[1]), o[2], d[2])
    return torch.maximum(reach, _pair(o[1], d[1], o[2], d[2])), -b / a


def _reach_cylinders(o: list[Tensor], d: list[Tensor]) -> tuple[Tensor, Tensor]:
    # Exact for the round side. For the caps, the cylinder is replaced by the rectangle in which the vertical plane of
    # the line cuts it through the axis; the ends of shadows are therefore slightly square.
    square = torch.addcmul(d[0] * d[0], d[1], d[1]) + _TINY
    speed = square.sqrt()
    forward = torch.addcmul(o[0] * d[0], o[1], d[1])
    beside = (o[0] * d[1] - o[1] * d[0]).abs_() / speed
    reach = torch.maximum(beside, _pair(forward / speed, speed, o[2], d[2]))
    return reach, -torch.addcmul(forward, o[2], d[2]) / torch.addcmul(square, d[2], d[2])


def visibility(geometry: Geometry, points: Tensor, index: Tensor, light: Tensor, size: Tensor) -> Tensor:
    """The visible share of a spherical light at each point, in [0, 1].

    The "reach" of a primitive is the factor by which it must be scaled so that it touches the line to the light. Below
    1 the line is blocked; the difference from 1, relative to the light's cone there, gives the penumbra.

    Args:
        points: (N, 3, R) on surfaces ``index`` (N, R); a convex primitive does not shadow itself.
        light: (N, 3) position.
        size: (N,) radius of the light.
    """
    lamp = (geometry.to_local @ (light[:, None, :, None] - geometry.centre[..., None]))[..., None, :, 0]
    o = _local(geometry, points)
    d = [lamp[..., k] - part for k, part in enumerate(o)]
    casts = (_reach_ellipsoids, _reach_boxes, _reach_cylinders)
    thickness = geometry.thickness[..., None].split(geometry.counts, dim=1)
    groups = zip(casts, thickness, _split(o, geometry.counts), _split(d, geometry.counts), strict=True)
    parts = [_cover(*cast(*group), thick, size[:, None, None]) for cast, thick, *group in groups]
    covers = torch.cat([*parts, torch.zeros_like(parts[0][:, :1])], dim=1)
    covers.scatter_(1, index.clamp_max(geometry.primitives)[:, None], 0.0)
    covered = covers.amax(1)
    return 1.0 - covered * covered * (3.0 - 2.0 * covered)


def _cover(reach: Tensor, along: Tensor, thickness: Tensor, size: Tensor) -> Tensor:
    """(N, P, R) share of a light of radius ``size`` that each primitive hides, before smoothing.

    Args:
        reach: see ``visibility``.
        along: position on the line where it passes the primitive, 0 at the point and 1 at the light.
        thickness: (N, P, 1).
    """
    # Where it passes the primitive, the cone from the point to the light has the radius size * along.
    sharp = thickness / (along * size).clamp_min_(1e-4)
    share = (1.0 - reach).mul_(sharp).mul_(0.5).add_(0.5).clamp_(0.0, 1.0)
    # A rod thinner than the cone never hides the whole light. Primitives behind the point or the light hide nothing.
    share *= sharp.clamp_max_(1.0)
    share *= (along * 1e4).clamp_(0.0, 1.0)
    return share.mul_((20.0 - 20.0 * along).clamp_(0.0, 1.0))
