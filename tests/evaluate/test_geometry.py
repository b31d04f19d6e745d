"""Distances between surfaces, compared with pairs counted one by one."""

from __future__ import annotations

import pytest
import torch

from ilrm.core.errors import SceneError
from ilrm.evaluate.geometry import SurfaceScore, compare_surfaces, nearest_distances


def clouds(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(300, 3, generator=draw), torch.randn(170, 3, generator=draw) * 1.2 + 0.1


@pytest.mark.parametrize("seed", [0, 1])
def test_scores_equal_those_of_all_pairs(seed: int) -> None:
    points, truth = clouds(seed)
    pairs = (points.double()[:, None] - truth.double()[None]).square().sum(-1).sqrt()
    to_truth, to_points = pairs.amin(1), pairs.amin(0)
    score = compare_surfaces(points, truth, 0.3)
    assert score.accuracy == pytest.approx(to_truth.mean().item())
    assert score.completeness == pytest.approx(to_points.mean().item())
    assert score.precision == pytest.approx((to_truth <= 0.3).double().mean().item())
    assert score.recall == pytest.approx((to_points <= 0.3).double().mean().item())
    assert 0.1 < score.precision < 0.9
    assert score.chamfer == pytest.approx((to_truth.mean() + to_points.mean()).item() / 2)
    torch.testing.assert_close(nearest_distances(points, truth), to_truth)


def test_half_of_a_shifted_plane() -> None:
    """A grid of spacing 1 lifted by 0.25, of which the reconstruction has one half."""
    x, y = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
    truth = torch.stack([x, y, torch.zeros_like(x)], dim=-1).reshape(-1, 3)
    points = truth[:200] + torch.tensor([0, 0, 0.25])
    score = compare_surfaces(points, truth, 0.3)
    assert (score.precision, score.recall) == (1.0, 0.5)
    assert score.f_score == pytest.approx(2 / 3)
    assert score.accuracy == pytest.approx(0.25)
    assert compare_surfaces(points, truth, 0.2).f_score == 0.0
    part = compare_surfaces(points, truth, 0.3, required=truth[:200])
    assert (part.precision, part.recall, part.completeness) == (1.0, 1.0, pytest.approx(0.25))


def test_f_score_is_the_harmonic_mean() -> None:
    assert SurfaceScore(0, 0, 0.5, 1.0).f_score == pytest.approx(2 / 3)
    assert SurfaceScore(0, 0, 0.0, 0.0).f_score == 0.0


def test_bad_points() -> None:
    points, truth = clouds(0)
    with pytest.raises(SceneError, match=r"points have shape \(0, 3\)"):
        compare_surfaces(points[:0], truth, 0.1)
    with pytest.raises(SceneError, match=r"others have shape \(170, 2\)"):
        nearest_distances(points, truth[:, :2])
    with pytest.raises(SceneError, match="threshold 0"):
        compare_surfaces(points, truth, 0.0)
