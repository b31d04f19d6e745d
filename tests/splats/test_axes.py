"""Axes: rotations that put the cameras' up where the name says, and SH that rotate as well."""

from __future__ import annotations

import pytest
import torch

from ilrm.core.cameras import Cameras, Similarity
from ilrm.core.gaussians import quaternion_to_matrix
from ilrm.render import render
from ilrm.splats.axes import GLTF, OPENGL, to_frame
from tests.conftest import make_cameras, make_gaussians

UP = {"y-up": [0.0, 1, 0], "z-up": [0.0, 0, 1]}
BEHIND = {"y-up": [0.0, 0, 1], "z-up": [0.0, -1, 0]}


def turned(cameras: Cameras) -> Cameras:
    rotation = quaternion_to_matrix(torch.tensor([0.3, -0.5, 0.7, 0.2], dtype=torch.float64))
    return cameras.to(dtype=torch.float64).transform(Similarity(2.0, rotation, torch.tensor([1.0, 2, 3]).double()))


@pytest.mark.parametrize("frame", UP)
def test_upright_by_the_cameras(frame: str) -> None:
    cameras = turned(make_cameras(7, 32, 24))
    similarity = to_frame(frame, cameras)  # pyright: ignore[reportArgumentType]
    moved = cameras.transform(similarity)
    up = torch.nn.functional.normalize(-moved.c2w[:, :3, 1].mean(0), dim=0)
    torch.testing.assert_close(up, torch.tensor(UP[frame]).double(), atol=1e-9, rtol=0)
    assert moved.forward.mean(0) @ torch.tensor(BEHIND[frame]).double() < -0.9
    assert torch.linalg.det(similarity.rotation).item() == pytest.approx(1)


@pytest.mark.parametrize("frame", UP)
def test_without_cameras_down_is_y(frame: str) -> None:
    similarity = to_frame(frame)  # pyright: ignore[reportArgumentType]
    assert similarity.apply_points(torch.tensor([0.0, -1, 0])).tolist() == UP[frame]
    assert similarity.apply_points(torch.tensor([1.0, 0, 0])).tolist() == [1, 0, 0]
    assert similarity.apply_points(torch.tensor([0.0, 0, -1])).tolist() == BEHIND[frame]


def test_cameras_all_around_or_straight_down_still_give_a_rotation() -> None:
    ring = torch.eye(4).repeat(4, 1, 1)
    for view in range(4):
        angle = torch.tensor(view * torch.pi / 2)
        ring[view, 0, 0], ring[view, 0, 2] = angle.cos(), angle.sin()
        ring[view, 2, 0], ring[view, 2, 2] = -angle.sin(), angle.cos()
    around = Cameras(ring, torch.eye(3).repeat(4, 1, 1), 4, 4)
    flipped = Cameras(torch.stack([ring[0], ring[0] @ torch.diag(torch.tensor([-1.0, -1, 1, 1]))]), around.K[:2], 4, 4)
    for cameras in (around, flipped):
        rotation = to_frame("y-up", cameras).rotation
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(3).double(), atol=1e-9, rtol=0)
        assert torch.linalg.det(rotation).item() == pytest.approx(1)


@pytest.mark.parametrize("similarity", [OPENGL, GLTF, to_frame("z-up")], ids=["opengl", "gltf", "z-up"])
def test_pictures_stay_the_same(similarity: Similarity) -> None:
    """Gaussians with view-dependent colour, turned with their cameras."""
    cameras, gaussians = make_cameras(1, 24, 16), make_gaussians(40, 3)
    before = render(gaussians, cameras, backend="reference").rgb
    after = render(gaussians.transform(similarity), cameras.transform(similarity), backend="reference").rgb
    torch.testing.assert_close(after, before, atol=2e-4, rtol=0)
