"""Colour, depth, normals and opacity of one view."""

from __future__ import annotations

import numpy as np
import torch

from ilrm.core.cameras import Cameras
from ilrm.view.pictures import picture
from tests.conftest import make_gaussians

CAMERA = Cameras(
    torch.eye(4, dtype=torch.float64)[None],
    torch.tensor([[[50.0, 0, 32], [0, 50, 24], [0, 0, 1]]], dtype=torch.float64),
    64,
    48,
)


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
    left, right = (depth[24, column].astype(int).sum() for column in (32 - 17, 32 + 13))
    assert left > right > 0


def test_nothing_left_is_drawn_white() -> None:
    empty = make_gaussians(3)[:0]
    assert (picture(empty, CAMERA, "colour", 0.01) == 255).all()
    assert (picture(empty, CAMERA, "depth", 0.01) == 255).all()
