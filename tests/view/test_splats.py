"""The input of viser: the same Gaussians, whatever the unit and place of the world."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ilrm.core.errors import GaussiansError
from ilrm.core.spherical_harmonics import colours
from ilrm.view.splats import arrange, check_drawable, degree_zero_colours, splat_arrays
from tests.conftest import make_cameras, make_gaussians


@pytest.mark.parametrize("factor", [1e-4, 1.0, 1e4])
def test_half_precision_keeps_the_covariances(factor: float) -> None:
    g = make_gaussians(300, scale=0.01)
    g = replace(g, means=g.means * factor, scales=g.scales * factor)
    arrays = splat_arrays(g)
    sent = arrays.covariances.astype(np.float16).astype(np.float64) * arrays.unit**2
    expected = g.to(dtype=torch.float64).covariances().numpy()
    size = np.abs(expected).max(axis=(1, 2), keepdims=True)
    assert (np.abs(sent - expected) / size).max() < 1e-3
    world = arrays.origin + arrays.unit * arrays.centers.astype(np.float64)
    assert np.abs(world - g.means.double().numpy()).max() < 1e-6 * factor


def test_one_huge_gaussian_does_not_ruin_the_others() -> None:
    g = make_gaussians(300, scale=0.01)
    scales = g.scales.clone()
    scales[7] = 1e7
    arrays = splat_arrays(replace(g, scales=scales))
    sent = arrays.covariances.astype(np.float16)
    assert np.isfinite(sent).all()
    expected = g.covariances().numpy()
    others = np.arange(300) != 7
    relative = np.abs(sent * np.float64(arrays.unit) ** 2 - expected)[others].max(axis=(1, 2))
    assert np.median(relative / np.abs(expected[others]).max(axis=(1, 2))) < 0.05


def test_colours_are_those_of_degree_zero() -> None:
    g = make_gaussians(50, sh_degree=2)
    expected = colours(g.sh[:, :1], torch.tensor([0, 0, 1.0]).expand(50, 3)).clamp(0, 1)
    assert torch.allclose(degree_zero_colours(g), expected)


def test_layout_follows_the_cameras() -> None:
    cameras = make_cameras(4, 64, 48)
    layout = arrange(make_gaussians(100), cameras)
    assert torch.dot(layout.up, torch.tensor([0, -1.0, 0], dtype=torch.float64)) > 0.95  # they look with y down
    first = layout.poses[0]
    assert np.allclose(first.position, cameras.centers[0])
    assert math.tan(first.fov / 2) == pytest.approx(0.5 * 48 / cameras.K[0, 1, 1].item(), rel=1e-6)
    # viser turns the camera by (look_at, up): the picture must not tilt.
    forward = first.look_at - first.position
    right = np.cross(forward, layout.up_at(first))
    assert np.allclose(right / np.linalg.norm(right), cameras.c2w[0, :3, 0], atol=1e-6)
    window = first.camera(64, 48)
    assert window.K[0, 0, 0] == pytest.approx(cameras.K[0, 1, 1].item(), rel=1e-6)


def test_without_cameras_everything_is_in_view() -> None:
    g = make_gaussians(400)
    layout = arrange(g, None)
    (pose,) = layout.poses
    local = (g.means.double() - pose.c2w[:3, 3]) @ pose.c2w[:3, :3]
    inside = (local[:, :2].abs() <= math.tan(pose.fov / 2) * local[:, 2:]).all(1) & (local[:, 2] > layout.near)
    assert inside.double().mean() > 0.8


def test_what_cannot_be_drawn() -> None:
    g = make_gaussians(3)
    with pytest.raises(GaussiansError, match="N above 0"):
        check_drawable(g[:0])
    with pytest.raises(GaussiansError, match="cannot be shown"):
        check_drawable(g.map(lambda x: x[None]))
    with pytest.raises(GaussiansError, match="1 of 3"):
        check_drawable(replace(g, opacities=torch.tensor([0.5, torch.nan, 0.5])))
