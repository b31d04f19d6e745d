"""Comparing a reconstructed surface with the true one, as point sets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ilrm.core.errors import MissingExtraError, SceneError


@dataclass(frozen=True)
class SurfaceScore:
    """Distances between a reconstruction and the truth.

    Attributes:
        accuracy: mean distance from a reconstructed point to the nearest true one, in world units.
        completeness: mean distance from a true point to the nearest reconstructed one.
        precision: share of reconstructed points within the threshold of a true one.
        recall: share of true points within the threshold of a reconstructed one.
    """

    accuracy: float
    completeness: float
    precision: float
    recall: float

    @property
    def chamfer(self) -> float:
        """Mean of the two mean distances."""
        return (self.accuracy + self.completeness) / 2

    @property
    def f_score(self) -> float:
        """Harmonic mean of precision and recall; 0 if both are 0."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def compare_surfaces(points: Tensor, truth: Tensor, threshold: float, required: Tensor | None = None) -> SurfaceScore:
    """Compare points (N, 3) on a reconstruction with points (M, 3) on the true surface.

    The measures are those of Knapitsch et al., "Tanks and Temples" (2017), with distances not squared.

    Args:
        threshold: distance in world units for precision and recall.
        required: (M', 3) the part of the true surface that counts for completeness and recall; all of it by default.

    Raises:
        SceneError: one of the sets is empty or not (N, 3), or the threshold is not positive.
    """
    if not threshold > 0:
        raise SceneError(f"The threshold {threshold} was given.", expected="a positive length in world units")
    to_truth, to_points = (
        nearest_distances(points, truth),
        nearest_distances(truth if required is None else required, points),
    )
    return SurfaceScore(
        accuracy=to_truth.mean().item(),
        completeness=to_points.mean().item(),
        precision=(to_truth <= threshold).double().mean().item(),
        recall=(to_points <= threshold).double().mean().item(),
    )


def nearest_distances(points: Tensor, others: Tensor) -> Tensor:
    """(N,) float64 distance from each of the points (N, 3) to the nearest of the others (M, 3).

    Raises:
        SceneError: one of the sets is empty or not (N, 3).
        MissingExtraError: scipy is missing.
    """
    for name, some in (("points", points), ("others", others)):
        if some.ndim != 2 or some.shape[1] != 3 or len(some) == 0:
            raise SceneError(f"The {name} have shape {tuple(some.shape)}.", expected="(N, 3) with N at least 1")
    try:
        from scipy.spatial import KDTree
    except ImportError as error:
        raise MissingExtraError("scipy", "eval", "Comparing surfaces") from error
    distance, _ = KDTree(others.double().cpu().numpy()).query(points.double().cpu().numpy())
    return torch.from_numpy(distance)
