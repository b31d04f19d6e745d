"""Camera steps of a refinement: their geometry, their gradients, and that wrong cameras find their place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import ilrm
from ilrm.core.cameras import Cameras
from ilrm.core.errors import ConfigError
from ilrm.core.scene import Scene
from ilrm.pipeline.refine import RefineConfig, refine
from ilrm.pipeline.refining.losses import squared_error
from ilrm.pipeline.refining.poses import PoseSteps, align_views, exponential
from ilrm.render import render
from tests.conftest import CAPTURE, make_cameras, make_gaussians

GAUSSIANS = make_gaussians(400, scale=0.08)
CAMERAS = make_cameras(4, 48, 36)


def steps(seed: int, size: float, count: int = 4) -> Tensor:
    return size * torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def test_a_rotation_vector_turns_about_its_axis_by_its_length() -> None:
    """Rodrigues' formula."""
    turn = torch.tensor([0.3, -0.5, 0.2], dtype=torch.float64)
    angle, axis = turn.norm(), turn / turn.norm()
    K = torch.tensor([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]]).double()
    expected = torch.eye(3).double() + angle.sin() * K + (1 - angle.cos()) * K @ K
    found = exponential(torch.cat([turn, torch.tensor([1.0, 2.0, 3.0]).double()]))
    assert torch.allclose(found[:3, :3], expected)
    assert found[:, 3].tolist() == [1, 2, 3, 1]
    assert torch.equal(exponential(torch.zeros(6)), torch.eye(4))


def test_moved_gaussians_look_like_what_moved_cameras_see() -> None:
    poses = PoseSteps(CAMERAS, 1e-3, 1e-3)
    with torch.no_grad():
        poses.steps += steps(0, 0.05)
        seen = poses.render(GAUSSIANS, [2, 0])
        expected = render(GAUSSIANS, poses.moved()[[2, 0]]).rgb
    assert (seen - expected).abs().max() < 1e-3
    assert (expected - render(GAUSSIANS, CAMERAS[[2, 0]]).rgb).abs().mean() > 0.01


def test_gradients_equal_finite_differences() -> None:
    truth = render(GAUSSIANS, CAMERAS).rgb
    poses = PoseSteps(CAMERAS, 1e-3, 1e-3)
    start = steps(1, 0.02)

    def loss(at: Tensor) -> Tensor:
        poses.steps = at
        return squared_error(poses.render(GAUSSIANS, [0, 1, 2, 3]), truth, None)

    at = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(at), at)
    for view, axis in ((0, 0), (1, 2), (2, 4), (3, 5), (0, 3)):
        change = torch.zeros_like(start)
        change[view, axis] = 2e-3
        with torch.no_grad():
            expected = (loss(start + change) - loss(start - change)) / 4e-3
        assert gradient[view, axis].item() == pytest.approx(expected.item(), rel=0.05, abs=2e-4)


def test_a_photo_that_is_not_rendered_does_not_move() -> None:
    poses = PoseSteps(CAMERAS, 1e-2, 1e-2)
    poses.render(GAUSSIANS, [1]).sum().backward()
    poses.step([1], 1.0)
    assert poses.steps[[0, 2, 3]].abs().max() == 0
    # Adam's first step has the length of the rate.
    assert torch.allclose(poses.steps[1].abs(), torch.full((6,), 1e-2), rtol=1e-3)
    before = poses.steps.detach().clone()
    poses.steps.grad = torch.full_like(before, torch.nan)
    poses.step([0], 1.0)
    assert torch.equal(poses.steps, before)


def wrong_scene(size: float) -> tuple[Scene, Cameras]:
    """Photos through cameras that are a little off, and the true cameras."""
    poses = PoseSteps(CAMERAS, 1e-3, 1e-3)
    with torch.no_grad():
        poses.steps += steps(2, size)
    photos = render(GAUSSIANS, CAMERAS).rgb.clamp(0, 1)
    return Scene(photos, poses.moved(), ("a", "b", "c", "d")), CAMERAS


def apart(cameras: Cameras, true: Cameras) -> float:
    return float((cameras.c2w.double() - true.c2w.double()).abs().amax((1, 2)).median())


def test_cameras_are_aligned_to_fixed_gaussians() -> None:
    scene, true = wrong_scene(0.01)
    aligned = align_views(GAUSSIANS, scene, scene.cameras, squared_error, steps=200, rate=4e-3)
    assert aligned.names == scene.names
    assert apart(aligned.cameras, true) < 0.2 * apart(scene.cameras, true)


def test_refinement_with_wrong_cameras_fits_better_where_they_may_move() -> None:
    scene, true = wrong_scene(0.01)
    config = replace(RefineConfig.paper(), rates=replace(RefineConfig.paper().rates, turns=1e-3, shifts=1e-3))
    still = refine(GAUSSIANS, scene, 40, config=config)
    moved = refine(GAUSSIANS, scene, 40, config=replace(config, poses=True))
    assert moved.history[-1].psnr > still.history[-1].psnr + 2
    assert torch.equal(still.cameras.c2w, scene.cameras.c2w)
    assert apart(moved.cameras, true) < 0.5 * apart(scene.cameras, true)
    again = refine(GAUSSIANS, scene, 40, config=replace(config, poses=True))
    assert torch.equal(again.cameras.c2w, moved.cameras.c2w)


def test_a_run_says_that_held_out_cameras_were_aligned() -> None:
    options: dict[str, Any] = {"views": 2, "size": 48, "feedback": 0, "device": "cpu", "export": ()}
    result = ilrm.run(CAPTURE, refine=2, refine_poses=True, **options)
    assert result.metrics["held_out_aligned"]
    assert result.metrics["psnr_without_alignment"] is not None
    assert result.metrics["psnr"] >= result.metrics["psnr_without_alignment"]
    with pytest.raises(ConfigError, match="refine-poses"):
        ilrm.run(CAPTURE, refine=0, refine_poses=True, **options)
