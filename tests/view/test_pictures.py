"""Depth, normals and opacity of a plane whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ilrm.cameras import Cameras
from ilrm.view.pictures import depth_normals, picture
from tests.conftest import make_gaussians

CAMERA = Cameras(
    torch.eye(4, dtype=torch.float64)[None],
    torch.tensor([[[50.0, 0, 32], [0, 50, 24], [0, 0, 1]]], dtype=torch.float64),
    64,
    48,
)


@pytest.mark.parametrize(("tilt_x", "tilt_y"), [(0, 0), (30, 0), (0, -40)])
def test_normals_of_a_tilted_plane(tilt_x: float, tilt_y: float) -> None:
    """The plane n . p = -2 with n towards the camera; expected in axes right, up, towards the camera."""
    a, b = math.radians(tilt_x), math.radians(tilt_y)
    right, up = math.sin(b), math.sin(a)
    toward = math.sqrt(1 - right**2 - up**2)
    normal = torch.tensor([right, -up, -toward], dtype=torch.float64)  # in x right, y down, z forward
    _, directions = CAMERA.rays()
    distance = -2 / (directions[0] @ normal)
    found = depth_normals(distance * directions[0, ..., 2], CAMERA)
    inner = found[1:-1, 1:-1]
    assert torch.allclose(inner, torch.tensor([right, up, toward], dtype=torch.float64).expand_as(inner), atol=1e-9)


def test_kinds() -> None:
    g = make_gaussians(200, scale=0.3)
    near = Cameras(CAMERA.c2w.clone(), CAMERA.K, 64, 48)
    near.c2w[0, 2, 3] = -4
    pictures = {kind: picture(g, near, kind, 0.01) for kind in ("colour", "depth", "normals", "opacity")}
    assert all(p.shape == (48, 64, 3) and p.dtype == np.uint8 for p in pictures.values())
    assert pictures["opacity"][24, 32, 0] > 200 > 50 > pictures["opacity"][0, 0, 0]
    assert (pictures["colour"][0, 0] > 230).all(), "white where there is next to nothing"


def test_nearer_is_brighter() -> None:
    g = make_gaussians(2, scale=0.3)
    g.means[:] = torch.tensor([[-1.0, 0, 3], [1.5, 0, 6]])
    g.scales[:] = 0.4
    g.opacities[:] = 1
    depth = picture(g, CAMERA, "depth", 0.01)
    left, right = depth[24, 32 - 17, 0], depth[24, 32 + 13, 0]
    assert left > right > 0


def test_nothing_left_is_drawn_white() -> None:
    empty = make_gaussians(3)[:0]
    assert (picture(empty, CAMERA, "colour", 0.01) == 255).all()
    assert (picture(empty, CAMERA, "depth", 0.01) == 0).all()
