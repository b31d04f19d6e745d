"""Choosing views: held-out views, representative inputs, evenly spaced subsets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ilrm.core.cameras import Cameras
from ilrm.core.errors import SceneError

_RESTARTS = 8
_MOST_ITERATIONS = 100
# Relative differences below this may be rounding of float32 poses.
_TIE = 1e-4


def split_holdout(count: int, every: int = 8) -> tuple[list[int], list[int]]:
    """Indices (rest, held out) of ``count`` views: every ``every``-th view is held out, starting with the first."""
    if every < 1:
        raise SceneError(f"Cannot hold out every {every}-th view.", expected="at least 1")
    held_out = list(range(0, count, every))
    return [i for i in range(count) if i % every], held_out


def evenly_spaced(count: int, most: int) -> list[int]:
    """Up to ``most`` evenly spaced indices out of ``count``, including the first and the last."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def select_inputs(cameras: Cameras, count: int, candidates: Sequence[int] | None = None, seed: int = 0) -> list[int]:
    """Choose ``count`` representative views: the one nearest to each centre of a k-means clustering.

    The features of a view are [centre / extent, viewing direction], where the extent is the largest distance of a
    candidate from their mean. The choice therefore does not depend on the world's position, orientation or scale.

    Args:
        cameras: V cameras.
        count: how many views to choose.
        candidates: which views may be chosen; all by default.
        seed: of the random starts of the clustering.

    Returns:
        distinct indices into ``cameras``, sorted.

    Raises:
        SceneError: fewer candidates than ``count``.
    """
    pool = sorted(set(range(len(cameras)) if candidates is None else candidates))
    if not 1 <= count <= len(pool):
        raise SceneError(
            f"{count} input views were requested from {len(pool)} candidates.",
            expected=f"1 to {len(pool)}",
            fix="request fewer views, or add photos",
        )
    features = camera_features(cameras[pool])
    return sorted(pool[i] for i in _representatives(features, count, np.random.default_rng(seed)))


def camera_features(cameras: Cameras) -> np.ndarray:
    """(V, 6) float64 [centre / extent, viewing direction]; the extent is the largest distance of a centre from their
    mean. Distances between them do not depend on the world's position, orientation or scale."""
    centres = cameras.centers.double().cpu().numpy()
    centres = centres - centres.mean(0)
    extent = np.linalg.norm(centres, axis=1).max()
    return np.concatenate([centres / (extent or 1.0), cameras.forward.double().cpu().numpy()], axis=1)


def farthest_points(positions: Tensor, count: int) -> list[int]:
    """Farthest-point sampling: indices of ``count`` positions (N, 3), in the order of their choice.

    The first is the farthest from the mean, each next one the farthest from all chosen so far. Ties go to the lowest
    index. If there are fewer distinct positions than ``count``, indices repeat.
    """
    chosen = [int((positions - positions.mean(0)).square().sum(-1).argmax())]
    nearest = torch.full_like(positions[:, 0], 1e10)
    while len(chosen) < count:
        nearest = torch.minimum(nearest, (positions - positions[chosen[-1]]).square().sum(-1))
        chosen.append(int(nearest.argmax()))
    return chosen


def _representatives(features: np.ndarray, count: int, rng: np.random.Generator) -> list[int]:
    """``count`` distinct rows of the features (N, D): the nearest one to each centre of the best of several runs."""
    clusterings = [_cluster(features, _spread_start(features, count, rng)) for _ in range(_RESTARTS)]
    spreads = np.array([_squared_distances(features, centres).min(1).sum() for centres in clusterings])
    distances = _squared_distances(features, clusterings[_first_least(spreads)])
    owner = distances.argmin(1)
    chosen = [
        int(members[_first_least(distances[members, cluster])])
        for cluster in range(count)
        if len(members := np.flatnonzero(owner == cluster))
    ]
    while len(chosen) < count:  # coincident views leave clusters empty
        gap = _squared_distances(features, features[chosen]).min(1)
        gap[chosen] = -1.0
        chosen.append(int(gap.argmax()))
    return chosen


def _spread_start(features: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Initial centres by k-means++ (Arthur and Vassilvitskii, 2007): each is drawn with a probability proportional to
    its squared distance from the previous ones."""
    centres = [features[rng.integers(len(features))]]
    while len(centres) < count:
        gap = _squared_distances(features, np.stack(centres)).min(1)
        total = gap.sum()
        index = int(np.searchsorted(gap.cumsum(), rng.random() * total, side="right")) if total > 0 else 0
        centres.append(features[min(index, len(features) - 1)])
    return np.stack(centres)


def _cluster(features: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Centres (k, D) after Lloyd's iterations from the given ones; a cluster that becomes empty keeps its centre."""
    owner = None
    for _ in range(_MOST_ITERATIONS):
        nearest = _squared_distances(features, centres).argmin(1)
        if owner is not None and (nearest == owner).all():
            break
        owner = nearest
        centres = np.stack(
            [features[owner == k].mean(0) if (owner == k).any() else centre for k, centre in enumerate(centres)]
        )
    return centres


def _first_least(values: np.ndarray) -> int:
    """Index of the least value; the first one among values that are equal up to rounding.

    Ties are common: both members of a cluster of two are equally far from its centre.
    """
    return int(np.flatnonzero(values <= values.min() * (1 + _TIE) + _TIE**2)[0])


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.square(a[:, None] - b[None]).sum(-1)
