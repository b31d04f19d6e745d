"""Thresholds, crop box and states, on Gaussians counted by hand."""

from __future__ import annotations

import math

import pytest
import torch

from ilrm.core.errors import ConfigError
from ilrm.core.gaussians import Gaussians
from ilrm.view.edit import Box, Edit, Session
from tests.conftest import make_gaussians


def line() -> Gaussians:
    """Five Gaussians on the x axis at 0 ... 4, of increasing opacity and size."""
    steps = torch.arange(5.0)
    return Gaussians(
        means=torch.stack([steps, torch.zeros(5), torch.zeros(5)], dim=1),
        scales=torch.stack([0.1 * (steps + 1), torch.full((5,), 0.05), torch.full((5,), 0.05)], dim=1),
        quats=torch.tensor([1.0, 0, 0, 0]).repeat(5, 1),
        opacities=torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]),
        sh=torch.zeros(5, 1, 3),
    )


def kept(edit: Edit) -> list[int]:
    return edit.keep(line()).nonzero()[:, 0].tolist()


def test_thresholds() -> None:
    assert kept(Edit()) == [0, 1, 2, 3, 4]
    assert kept(Edit(min_opacity=0.5)) == [2, 3, 4]
    assert kept(Edit(max_scale=0.35)) == [0, 1, 2]
    assert kept(Edit(min_opacity=0.5, max_scale=0.35)) == [2]


def test_the_box_turns_with_its_axes() -> None:
    long = torch.tensor([3.0, 0.2, 0.2], dtype=torch.float64)
    centre = torch.tensor([2.0, 0, 0], dtype=torch.float64)
    along = Box(centre, torch.eye(3, dtype=torch.float64), long)
    assert kept(Edit(box=along)) == [1, 2, 3]
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)  # its x axis is the world's y
    assert kept(Edit(box=Box(centre, quarter, long))) == [2]


@pytest.mark.parametrize("up", [[0, -1.0, 0], [0, 0, 1.0], [0.6, 0, 0.8]])
def test_a_fresh_box_is_upright_and_holds_nearly_all(up: list[float]) -> None:
    means, direction = make_gaussians(1000).means, torch.tensor(up)
    box = Box.around(means, direction)
    assert torch.allclose(box.rotation[:, 2], direction.double())
    assert torch.allclose(box.rotation.T @ box.rotation, torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert torch.linalg.det(box.rotation) == pytest.approx(1)
    assert 0.85 < box.contains(means).double().mean() < 1


def test_session() -> None:
    session = Session([("early", line()[:3]), ("result", line())])
    assert (session.names, session.name, len(session.shown())) == (["early", "result"], "result", 5)
    session.change(min_opacity=0.2)
    assert len(session.shown()) == 4
    session.choose("early")
    assert len(session.shown()) == 2, "the edit stays"
    assert session.edit.max_scale == math.inf
    with pytest.raises(ConfigError, match="early, result"):
        session.choose("late")
    with pytest.raises(ConfigError):
        Session([])


def test_scale_quantile() -> None:
    session = Session([("result", line())])
    session.change(max_scale=session.scale_quantile(0.5))
    assert session.keep().tolist() == [True, True, True, False, False]
    assert session.scale_quantile(1.0) == math.inf
    session.change(max_scale=session.scale_quantile(0.0))
    assert session.keep().tolist() == [True, False, False, False, False]
