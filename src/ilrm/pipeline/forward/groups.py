"""Overlapping groups of photos that are reconstructed one after the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ilrm.core.scene import Scene
from ilrm.scenes.views.covisibility import covisibility
from ilrm.scenes.views.selection import camera_features

# Of a group, about this share are photos of its neighbours, which are looked at but make no Gaussians of the result.
_BORROWED = 0.25
# All views are linked a little, so that parts that share nothing can still be ordered.
_LEAST_AFFINITY = 1e-3
# Cameras whose features differ by less see much of the same.
_NEAR_FEATURES = 0.5


@dataclass(frozen=True)
class Group:
    """Views that are reconstructed together.

    Attributes:
        own: views whose Gaussians go into the result.
        borrowed: views of other groups, which show the same things.
    """

    own: tuple[int, ...]
    borrowed: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.own) + len(self.borrowed)

    @property
    def views(self) -> list[int]:
        """All of them, its own ones first."""
        return [*self.own, *self.borrowed]


def make_groups(affinity: Tensor, size: int) -> list[Group]:
    """Divide V views into groups of at most ``size``; every view is one group's own.

    Views are halved again and again where they are linked least: in the order of the second eigenvector of their
    graph's Laplacian (Shi and Malik, 2000). Each group then borrows the views that are linked to it most.

    Args:
        affinity: (V, V) how much pairs of views see of the same, at least 0.
        size: views of a group, its borrowed ones included; at least 2.
    """
    count = len(affinity)
    if count <= size:
        return [Group(tuple(range(count)))]
    links = affinity.double().cpu().numpy()
    parts = _divide(np.arange(count), links, group_count(count, size))
    return [_with_neighbours(part, links, size) for part in sorted(parts, key=lambda part: int(part.min()))]


def group_count(count: int, size: int) -> int:
    """How many groups of at most ``size`` views (at least 2) are made of ``count`` views."""
    return 1 if count <= size else -(-count // max(1, size - max(1, round(_BORROWED * size))))


def view_affinity(scene: Scene) -> Tensor:
    """(V, V) in [0, 1]: overlap by sparse points, or nearness of the cameras where there are too few."""
    if (found := covisibility(scene)) is not None:
        return found.overlap
    features = torch.from_numpy(camera_features(scene.cameras))
    return torch.exp(-(torch.cdist(features, features) / _NEAR_FEATURES).square())


def _divide(views: np.ndarray, links: np.ndarray, parts: int) -> list[np.ndarray]:
    if parts == 1:
        return [views]
    ordered = views[_order(links[np.ix_(views, views)])]
    first = parts // 2
    cut = round(len(views) * first / parts)
    return _divide(ordered[:cut], links, first) + _divide(ordered[cut:], links, parts - first)


def _order(links: np.ndarray) -> np.ndarray:
    """Views along the direction in which their links are weakest."""
    weights = np.maximum(links, _LEAST_AFFINITY)
    scale = 1 / np.sqrt(weights.sum(1))
    laplacian = np.eye(len(weights)) - scale[:, None] * weights * scale
    vector = np.linalg.eigh((laplacian + laplacian.T) / 2)[1][:, 1] * scale
    if vector[np.abs(vector).argmax()] < 0:  # an eigenvector has no sign of its own
        vector = -vector
    return np.argsort(vector.round(9), kind="stable")


def _with_neighbours(own: np.ndarray, links: np.ndarray, size: int) -> Group:
    toward = links[own].sum(0)
    toward[own] = -1.0
    nearest = np.argsort(-toward.round(9), kind="stable")[: min(size, len(links)) - len(own)]
    return Group(tuple(sorted(own.tolist())), tuple(sorted(nearest.tolist())))
