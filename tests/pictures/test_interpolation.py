"""Paths through cameras: the released numbers, and properties of the released formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation, Slerp

from ilrm.core.cameras import Cameras
from ilrm.core.errors import ConfigError
from ilrm.pictures.trajectories import focus_point, interpolate, interpolate_evenly, interpolate_pair, smooth_time
from tests.conftest import look_at, make_cameras, shared_path


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(shared_path("golden/wide_trajectory.npz"), allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.mark.parametrize("steps", [16, 5])
def test_released_interpolation(golden: dict[str, torch.Tensor], steps: int) -> None:
    path = interpolate(Cameras(golden["in_c2w"], golden["in_K_pixels"], 96, 64), steps)
    torch.testing.assert_close(path.c2w[:, :3], golden[f"steps{steps}_c2w_3x4"], atol=2e-6, rtol=0)
    torch.testing.assert_close(path.K, golden[f"steps{steps}_K"], atol=2e-5, rtol=1e-6)


def test_released_interpolation_of_one_pose(golden: dict[str, torch.Tensor]) -> None:
    expected = golden["identical_poses_steps3_c2w_3x4"]
    pose = torch.eye(4)
    pose[:3] = expected[0]
    path = interpolate(Cameras(pose[None], golden["in_K_pixels"][:1], 96, 64), 3)
    torch.testing.assert_close(path.c2w[:, :3], expected, atol=2e-6, rtol=0)


def test_rotations_agree_with_scipy() -> None:
    cameras = make_cameras(2, 40, 30).to(dtype=torch.float64)
    path = interpolate(cameras, 9)
    slerp = Slerp([0, 1], Rotation.from_matrix(torch.nn.functional.normalize(cameras.c2w[:, :3, :3], dim=1).numpy()))
    expected = slerp(np.linspace(0, 1, 9)).as_matrix()
    np.testing.assert_allclose(path.c2w[:9, :3, :3].numpy(), expected, atol=1e-6)


def test_even_path_is_closed_and_passes_every_camera() -> None:
    cameras = make_cameras(5, 40, 30)
    path = interpolate_evenly(cameras, 20).check()
    torch.testing.assert_close(path[range(0, 20, 4)].c2w, cameras.c2w, atol=1e-5, rtol=0)
    steps = path.centers.roll(-1, 0) - path.centers
    torch.testing.assert_close(steps[0::4], steps[3::4], atol=1e-5, rtol=0)
    assert len(interpolate_evenly(cameras, 3)) == 3


@pytest.mark.parametrize("frames", [1, 3, 11])
def test_pair_starts_and_ends_at_the_cameras(frames: int) -> None:
    """Three frames are the case in which a cross product has no axis."""
    focus, K = torch.tensor([0.2, -0.1, 0.4], dtype=torch.float64), make_cameras(2, 40, 30).K.double()
    centres = torch.tensor([[1.0, 0.3, -3], [-1.5, 0.1, -2]], dtype=torch.float64)
    pair = Cameras(torch.stack([look_at(c, focus) for c in centres]), K * torch.tensor([1, 2.0])[:, None, None], 40, 30)
    times = torch.linspace(0, 1, frames, dtype=torch.float64)
    path = interpolate_pair(pair, times)
    torch.testing.assert_close(path.c2w[0], pair.c2w[0], atol=1e-9, rtol=0)
    torch.testing.assert_close(path.K, torch.lerp(pair.K[0], pair.K[1], times[:, None, None]))
    if frames > 1:
        torch.testing.assert_close(path.c2w[-1], pair.c2w[1], atol=1e-9, rtol=0)
        # Both look straight at the pivot, so every pose between them does, from a distance between theirs.
        middle = path[frames // 2]
        assert torch.linalg.det(middle.c2w[0, :3, :3]) == pytest.approx(1)
        distance = (focus - middle.centers[0]).norm()
        torch.testing.assert_close(middle.centers[0] + distance * middle.forward[0], focus, atol=1e-9, rtol=0)
        assert distance.item() == pytest.approx((focus - centres).norm(dim=-1).mean().item())


def test_pair_keeps_the_image_upright_between_rolled_cameras() -> None:
    """Roll is interpolated the short way: from 170 to -170 degrees over 180, not over 0."""
    pair = make_cameras(1, 40, 30).to(dtype=torch.float64)
    c2w = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    for i, degrees in enumerate((170, -170)):
        angle = math.radians(degrees)
        c2w[i, :2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    c2w[1, 0, 3] = 1.0
    path = interpolate_pair(Cameras(c2w, pair.K.expand(2, 3, 3), 40, 30), torch.tensor([0, 0.5, 1.0]))
    torch.testing.assert_close(path.c2w[[0, 2]], c2w, atol=1e-6, rtol=0)
    torch.testing.assert_close(path.c2w[1, :2, :2], -torch.eye(2, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(path.centers[1], torch.tensor([0.5, 0, 0], dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_parallel_pairs_slide(axis: int) -> None:
    """Also along z, where the first replacement of the second looking direction is parallel as well."""
    base = make_cameras(1, 40, 30).to(dtype=torch.float64)
    c2w = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    turn = torch.eye(3, dtype=torch.float64).roll(axis, 0)  # looks along z, x, y
    c2w[:, :3, :3] = turn
    c2w[1, :3, 3] = torch.tensor([0.3, -0.4, 1.2])
    path = interpolate_pair(Cameras(c2w, base.K.expand(2, 3, 3), 40, 30), torch.linspace(0, 1, 5)).check()
    torch.testing.assert_close(path.c2w[:, :3, :3], turn.expand(5, 3, 3), atol=1e-9, rtol=0)
    expected = torch.linspace(0, 1, 5).double()[:, None] * c2w[1, :3, 3]
    torch.testing.assert_close(path.centers, expected, atol=1e-7, rtol=0)


def test_pivot_is_the_point_nearest_to_both_axes() -> None:
    """Skew axes: half way, the vector to the pivot is the mean of both ends' in their turned axes."""
    pair = make_cameras(2, 40, 30).to(dtype=torch.float64)
    pivot = focus_point(pair)
    assert pivot is not None
    path = interpolate_pair(pair, torch.tensor([0.0, 0.5, 1.0]))
    reach = (path.centers - pivot).norm(dim=-1)
    assert min(reach[0], reach[2]) - 1e-9 <= reach[1] <= max(reach[0], reach[2]) + 1e-9
    torch.testing.assert_close(path.c2w[[0, 2]], pair.c2w, atol=1e-6, rtol=0)


def test_smooth_time() -> None:
    times = smooth_time(torch.linspace(0, 1, 5, dtype=torch.float64))
    torch.testing.assert_close(times, torch.tensor([0, 0.14644661, 0.5, 0.85355339, 1], dtype=torch.float64))


def test_what_is_refused() -> None:
    cameras = make_cameras(3, 40, 30)
    with pytest.raises(ConfigError, match="0 frames"):
        interpolate(cameras, 0)
    with pytest.raises(ConfigError, match="no camera"):
        interpolate_evenly(cameras[[]], 4)
    with pytest.raises(ConfigError, match="3 cameras"):
        interpolate_pair(cameras, torch.zeros(1))
