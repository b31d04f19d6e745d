"""Depth and normals as pictures: known surfaces, known colours."""

from __future__ import annotations

import pytest
import torch

from ilrm.core.cameras import Cameras
from ilrm.render.depth_colours import colour_depth, depth_range
from ilrm.render.normals import colour_normals, normals
from tests.conftest import make_cameras


def test_colours_of_depth() -> None:
    depth = torch.full((4, 50), 0.0)
    depth[1:] = torch.linspace(0.5, 8, 50)
    colours = colour_depth(depth)
    assert colours.shape == (4, 50, 3)
    assert (colours[0] == 0).all()
    brightness = colours[1].sum(-1)
    assert (brightness.diff() <= 1e-6).all()
    assert brightness[0] > 2
    assert brightness[-1] < 1
    assert (colour_depth(torch.zeros(2, 2)) == 0).all()


def test_frames_that_share_limits_share_colours() -> None:
    first = torch.linspace(1, 2, 60).reshape(6, 10)
    second = torch.cat([first[:3], 7 * first[3:]])  # something far comes into view
    assert not torch.allclose(colour_depth(first)[0], colour_depth(second)[0], atol=0.05)
    limits = depth_range(torch.stack([first, second]))
    assert limits is not None
    torch.testing.assert_close(colour_depth(first, limits)[:3], colour_depth(second, limits)[:3])
    assert 1 <= limits[0] < 1.1
    assert 13 < limits[1] <= 14
    assert depth_range(torch.zeros(3)) is None


def depth_of_plane(cameras: Cameras, point: torch.Tensor, normal: torch.Tensor) -> torch.Tensor:
    """(V, H, W) z-depth of a plane in the world."""
    origins, directions = cameras.rays()
    distance = ((point - origins) @ normal) / (directions @ normal)
    return distance * (directions * cameras.forward[:, None, None]).sum(-1)


@pytest.mark.parametrize("axes", ["camera", "world"])
def test_plane_has_one_normal(axes: str) -> None:
    cameras = make_cameras(3, 40, 30).to(dtype=torch.float64)
    towards = torch.nn.functional.normalize(torch.tensor([0.2, -0.5, -1.0], dtype=torch.float64), dim=0)
    depth = depth_of_plane(cameras, torch.zeros(3, dtype=torch.float64), towards)
    found = normals(depth, cameras, axes)  # pyright: ignore[reportArgumentType]
    expected = towards.expand(3, 3) if axes == "world" else towards @ cameras.c2w[:, :3, :3]
    torch.testing.assert_close(found, expected[:, None, None].expand_as(found), atol=1e-6, rtol=0)


def test_sphere_has_its_own_normals() -> None:
    cameras = make_cameras(2, 120, 90).to(dtype=torch.float64)
    origins, directions = cameras.rays()
    along = -(origins * directions).sum(-1)
    inside = 1 - ((origins * origins).sum(-1) - along**2)  # radius 1 about the origin
    distance = torch.where(inside > 0, along - inside.clamp_min(0).sqrt(), 0.0)
    depth = distance * (directions * cameras.forward[:, None, None]).sum(-1)
    found, expected = normals(depth, cameras, "world"), origins + distance[..., None] * directions
    assert (found[inside <= 0] == 0).all()
    facing = inside > 0.3  # towards the rim depth changes faster than pixels
    cosine = (found * expected).sum(-1)[facing]
    assert facing.sum() > 1000
    assert cosine.min() > 0.999


def test_no_slope_across_a_jump_and_none_from_nothing() -> None:
    cameras = make_cameras(1, 20, 10).to(dtype=torch.float64)
    depth = torch.full((1, 10, 20), 2.0, dtype=torch.float64)
    depth[..., 10:] = 5.0
    depth[0, 4, 4] = 0.0
    depth[0, :3, :3] = 0.0
    depth[0, 1, 1] = 2.0  # a pixel without neighbours
    found = normals(depth, cameras)
    facing = torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64)
    assert (found[0, 4, 4] == 0).all()
    assert (found[0, 1, 1] == 0).all()
    torch.testing.assert_close(found[0, 5:, :], facing.expand(5, 20, 3), atol=1e-9, rtol=0)


def test_colours_of_normals() -> None:
    colours = colour_normals(torch.tensor([[1.0, 0, 0], [0, -1, 0], [0, 0, -1], [0, 0, 0]]))
    expected = torch.tensor([[1.0, 0.5, 0.5], [0.5, 1, 0.5], [0.5, 0.5, 1], [0.5, 0.5, 0.5]])
    torch.testing.assert_close(colours, expected)
