"""Which views see which sparse points, and how much pairs of views see of the same.

Files of points do not say which photo saw them, and a point behind a surface is seen by none: points hide each other.

Shape suffixes: V views, P points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ilrm.core.cameras import Cameras, normalise
from ilrm.core.scene import Scene
from ilrm.scenes.views.hidden import unhidden_points
from ilrm.scenes.views.selection import evenly_spaced, select_inputs

# Cells of the depth buffer along the longer side of an image.
_CELLS = 32
_NEAREST_DEPTH = 1e-6
# With more points than this, an even subset of them decides.
_MOST_POINTS = 4096
# A typical view must see this many, or points say too little about views.
_LEAST_POINTS = 50
# Between these angles, in degrees, two views tell the depth of a point. It counts this much beside being seen at all.
_LEAST_ANGLE, _LARGEST_ANGLE = 2.0, 35.0
_TRIANGULATED = 0.5
# A view is of use if another one tells the depth of this share of what it sees.
_LEAST_SHARED = 0.2
# Of fewer inputs, those of ``select_inputs`` gave the better PSNR on average (docs/benchmarks/scenes.md).
_LEAST_CHOSEN = 4
# Exchanges of views must gain this much of the points. Candidates, and pairs of views times points, are limited.
_CLEARLY_MORE = 0.005
_MOST_EXCHANGES = 100
_MOST_CANDIDATES = 128
_MOST_TRIANGULATED = 1 << 24


@dataclass(frozen=True, eq=False)
class Covisibility:
    """What V views see of P sparse points.

    Attributes:
        seen: (V, P) bool.
        directions: (V, P, 3) float32 unit vectors from the cameras to the points.
    """

    seen: Tensor
    directions: Tensor

    @property
    def overlap(self) -> Tensor:
        """(V, V) in [0, 1]: points that both views see, as a share of those of the view that sees fewer; 1 for a view
        with itself, 0 for a view that sees none."""
        seen = self.seen.float()
        each = seen.sum(1)
        fewer = torch.minimum(each[:, None], each).clamp_min(1)
        return ((seen @ seen.T) / fewer).fill_diagonal_(1.0)

    def select(self, views: list[int]) -> Covisibility:
        """The same points, as only these views see them."""
        return Covisibility(self.seen[views], self.directions[views])

    def thinned(self, most: int) -> Covisibility:
        """The same views with an even subset of at most so many points, at least one."""
        every = -(-self.seen.shape[1] // max(most, 1))
        return Covisibility(self.seen[:, ::every], self.directions[:, ::every])


def covisibility(scene: Scene) -> Covisibility | None:
    """What the views of a scene see of its points; None if it has none, or too few to tell."""
    points = scene.points
    if points is None or len(points) < _LEAST_POINTS:
        return None
    points = points[torch.isfinite(points).all(-1)]
    found = see_points(scene.cameras, points[:: -(-len(points) // _MOST_POINTS) if len(points) else 1])
    return found if found.seen.sum(1).double().median() >= _LEAST_POINTS else None


def see_points(cameras: Cameras, points: Tensor) -> Covisibility:
    """What V cameras see of points (P, 3) in their world."""
    # Numbers that single precision holds: the world's origin may be far away.
    cameras, to_world = normalise(cameras.to("cpu", torch.float64))
    points = to_world.inverse().apply_points(points.to("cpu", torch.float64))
    seen = [_seen(cameras[view], points) for view in range(len(cameras))]
    toward = F.normalize(points - cameras.centers[:, None], dim=-1).float()
    return Covisibility(torch.stack(seen), toward)


def _seen(camera: Cameras, points: Tensor) -> Tensor:
    """(P,) bool: in the frame of one camera, and not behind others."""
    local = (points - camera.centers) @ camera.c2w[0, :3, :3]
    x, y, z = local.unbind(-1)
    K = camera.K[0]
    ahead = z.clamp_min(_NEAREST_DEPTH)
    xy = torch.stack([x / ahead * K[0, 0] + K[0, 2], y / ahead * K[1, 1] + K[1, 2]], -1)
    size = camera.width, camera.height
    inside = (z > _NEAREST_DEPTH) & (xy >= 0).all(-1) & (xy < xy.new_tensor(size)).all(-1)
    return unhidden_points(xy[None], z[None], inside[None], size, max(size) / _CELLS)[0]


def choose_inputs(scene: Scene, count: int, candidates: Sequence[int] | None = None, seed: int = 0) -> list[int]:
    """``count`` views that together see the scene's points, most of them from two sides.

    The choice starts from ``select_inputs``, whose views are spread over the cameras, and exchanges one view at a time
    as long as the views that are chosen then cover clearly more (``coverage``). Fewer than four views, and those of
    scenes without enough points, are those of ``select_inputs``.

    Args:
        scene: its points and cameras count, not its photos.
        count: how many views to choose.
        candidates: which views may be chosen; all by default.
        seed: of ``select_inputs``.

    Returns:
        distinct indices, sorted.

    Raises:
        SceneError: fewer candidates than ``count``.
    """
    pool = sorted(set(range(len(scene)) if candidates is None else candidates))
    start = select_inputs(scene.cameras, count, pool, seed)
    if count < _LEAST_CHOSEN or count == len(pool) or (found := covisibility(scene)) is None:
        return start
    pool = _fewer(pool, start)
    found = found.select(pool).thinned(_MOST_TRIANGULATED // len(pool) ** 2)
    places = {view: place for place, view in enumerate(pool)}
    return sorted(pool[place] for place in _exchange(found, [places[view] for view in start]))


def _fewer(pool: list[int], chosen: Sequence[int]) -> list[int]:
    """An even subset of the pool with the chosen views: work grows with the square of their number."""
    return sorted({*chosen, *(pool[place] for place in evenly_spaced(len(pool), _MOST_CANDIDATES))})


def covered_share(scene: Scene, chosen: Sequence[int], candidates: Sequence[int]) -> float:
    """The ``coverage`` of the chosen views in units of that of all candidates; 1 without enough points to tell."""
    pool = _fewer(sorted({*chosen, *candidates}), chosen)
    if (found := covisibility(scene)) is None:
        return 1.0
    found = found.select(pool).thinned(_MOST_TRIANGULATED // len(pool) ** 2)
    whole = coverage(found, range(len(pool)))
    return coverage(found, [pool.index(view) for view in chosen]) / whole if whole > 0 else 1.0


def coverage(found: Covisibility, chosen: Sequence[int]) -> float:
    """How well the chosen views cover the points that any view sees: the share that one of them sees, and half the
    share that two of them see at a useful angle. Of views that share little with every other chosen one, from which
    no depth can be told, nothing counts.

    Of a dozen measures compared on eight captures, shares of the first kind followed the PSNR of held-out views most
    closely, and of the second kind their SSIM.
    """
    chosen = list(chosen)
    return _Coverage(found).with_each(chosen[:-1])[chosen[-1]].item()


class _Coverage:
    """What ``coverage`` is computed from."""

    def __init__(self, found: Covisibility) -> None:
        least, largest = (math.cos(math.radians(angle)) for angle in (_LEAST_ANGLE, _LARGEST_ANGLE))
        cosine = torch.einsum("vpi,wpi->vwp", found.directions, found.directions)
        self.seen, self.known = found.seen.float(), found.seen.any(0).sum().clamp_min(1)
        # (V, V, P): whether two views see a point at an angle that tells its depth and at which it still looks alike.
        self.pairs = (cosine <= least) & (cosine >= largest) & found.seen[:, None] & found.seen
        # (V, V): whether enough of what the first view sees can be told from the second one, too.
        self.linked = self.pairs.sum(2) >= _LEAST_SHARED * found.seen.sum(1, keepdim=True).clamp_min(1)

    def with_each(self, chosen: list[int]) -> Tensor:
        """(V,) coverage of the chosen views and one more, for each that may be this one."""
        among = self.linked[chosen][:, chosen].any(1)
        counted = (among | self.linked[chosen].T).float()  # (V, n): each chosen one, beside each further one
        counted_further = self.linked[:, chosen].any(1, keepdim=True)
        views = counted @ self.seen[chosen] + counted_further * self.seen
        pairs = self.pairs[chosen][:, chosen].any(0).any(0) | self.pairs[:, chosen].any(1)
        return ((views > 0).sum(1) + _TRIANGULATED * pairs.sum(1)) / self.known


def _exchange(found: Covisibility, chosen: list[int]) -> list[int]:
    """The places of a better choice, found by the best exchange of one view at a time."""
    coverage_of = _Coverage(found)
    value = coverage_of.with_each(chosen[:-1])[chosen[-1]].item()
    for _ in range(_MOST_EXCHANGES):
        best, improved = value + _CLEARLY_MORE, None
        for place in range(len(chosen)):
            rest = chosen[:place] + chosen[place + 1 :]
            values = coverage_of.with_each(rest)
            values[chosen] = -1.0
            candidate = int(values.argmax())
            if values[candidate] > best:
                best, improved = values[candidate].item(), [*rest, candidate]
        if improved is None:
            break
        chosen, value = improved, best
    return chosen
