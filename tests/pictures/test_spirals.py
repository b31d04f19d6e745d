"""Spirals, wobbles and turntables against the formulas, and calm paths against OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from ilrm.core.cameras import Cameras
from ilrm.core.errors import ConfigError
from ilrm.pictures.trajectories import interpolate_evenly, orbit, spin, spiral, stabilise, wobble, wobble_about
from tests.conftest import make_cameras
from tests.pictures.test_orbits import FOCUS, ring


def test_spiral_is_closed_looks_at_the_focus_and_stays_near() -> None:
    cameras, focus = make_cameras(6, 40, 30), torch.zeros(3)
    path = spiral(cameras, 40, focus).check()
    toward = torch.nn.functional.normalize(focus - path.centers, dim=-1)
    torch.testing.assert_close((toward * path.forward).sum(-1), torch.ones(40), atol=1e-5, rtol=0)
    steps = (path.centers.roll(-1, 0) - path.centers).norm(dim=-1)
    assert steps[-1] < 1.5 * steps.median()
    middle = cameras.centers.mean(0)
    assert 0.04 * 4 < (path.centers - middle).norm(dim=-1).max() < 0.1 * 4.3 * 3**0.5
    assert (path.c2w[:, :3, 1] @ torch.tensor([0, 1.0, 0]) > 0.8).all()  # upright


def test_spiral_of_a_ring_goes_about_the_first_camera() -> None:
    cameras = ring(9)
    path = spiral(cameras, 30, FOCUS).check()
    assert (path.centers - cameras.centers[0]).norm(dim=-1).max() < 0.1 * 2.2 * 3**0.5
    assert (path.centers - FOCUS).norm(dim=-1).min() > 1.5


@pytest.mark.parametrize("growing", [True, False])
def test_wobble_is_the_released_formula(growing: bool) -> None:
    cameras = make_cameras(3, 40, 30).to(dtype=torch.float64)
    times = torch.tensor([0.0, 0.3, 1.2], dtype=torch.float64)
    moved = wobble(cameras, 0.5, times, turns=2, growing=growing)
    for i, t in enumerate(times.tolist()):
        shift = np.eye(4)
        rho = 0.5 * t if growing else 0.5
        shift[:2, 3] = rho * np.sin(4 * np.pi * t), -rho * np.cos(4 * np.pi * t)
        np.testing.assert_allclose(moved.c2w[i].numpy(), cameras.c2w[i].numpy() @ shift, atol=1e-12)


def test_wobble_about_two_cameras_is_a_quarter_of_their_distance() -> None:
    pair = make_cameras(2, 40, 30)
    far = torch.tensor([0.0, 0.0, 100.0])
    path = wobble_about(pair, 8, far)
    expected = 0.25 * (pair.centers[0] - pair.centers[1]).norm()
    torch.testing.assert_close((path.centers - path.centers.mean(0)).norm(dim=-1), expected.expand(8))
    near = wobble_about(pair, 8, pair.centers[0] + pair.forward[0])
    assert (near.centers - near.centers.mean(0)).norm(dim=-1).max() < expected
    assert len(wobble_about(pair[0], 4, far)) == 4


def test_spin_is_the_released_formula() -> None:
    path = spin(6, 3.0, 20.0)
    start = np.diag([-1.0, -1, 1, 1])
    start[2, 3] = -3
    for i in range(6):
        turn = np.eye(4)
        around = Rotation.from_euler("y", i * np.pi / 3).as_matrix()
        turn[:3, :3] = around @ Rotation.from_euler("x", 20, degrees=True).as_matrix()
        np.testing.assert_allclose(path[i].numpy(), turn @ start, atol=1e-12)
    # It is above the plane and looks at the origin, image down towards -y.
    assert (path[:, 1, 3] > 0.9).all()
    torch.testing.assert_close(-path[:, :3, 3] / 3, path[:, :3, 2])
    assert (path[:, 1, 1] < 0).all()


def shaky(frames: int) -> Cameras:
    path = orbit(make_cameras(6, 40, 30), frames).to(dtype=torch.float64)
    noise = torch.randn(frames, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    c2w = path.c2w.clone()
    c2w[:, :3, 3] += 0.05 * noise
    turn = Rotation.from_rotvec(0.05 * noise.flip(0).numpy()).as_matrix()
    c2w[:, :3, :3] = torch.from_numpy(turn) @ c2w[:, :3, :3]
    return Cameras(c2w, path.K.double(), 40, 30)


@pytest.mark.parametrize(
    ("window", "frames", "tolerance"), [(7, 40, 2e-6), (51, 80, 2e-6), (50, 80, 1e-3), (50, 9, 1e-3)]
)
def test_stabilised_axes_are_opencvs(window: int, frames: int, tolerance: float) -> None:
    path = shaky(frames)
    calm = stabilise(path, window)
    kernel = cv2.getGaussianKernel(window, 0.3 * ((window - 1) / 2 - 1) + 0.8)

    def filtered(values: torch.Tensor) -> np.ndarray:
        return cv2.filter2D(values.numpy(), cv2.CV_64F, kernel, borderType=cv2.BORDER_REFLECT_101)

    right, down = filtered(path.c2w[:, :3, 0].contiguous()), filtered(path.c2w[:, :3, 1].contiguous())
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    down /= np.linalg.norm(down, axis=1, keepdims=True)
    forward = np.cross(right, down)
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    np.testing.assert_allclose(calm.c2w[:, :3, 0].numpy(), right, atol=tolerance)
    np.testing.assert_allclose(calm.forward.numpy(), forward, atol=tolerance)
    np.testing.assert_allclose(calm.c2w[:, :3, 1].numpy(), down, atol=0.05)  # made orthogonal to the others
    np.testing.assert_allclose(calm.centers.numpy(), filtered(path.centers.contiguous()), atol=tolerance)
    calm.check()


def test_closed_paths_stay_closed() -> None:
    loop = interpolate_evenly(ring(7), 70)
    calm = stabilise(loop, 15, closed=True).check()
    steps = (calm.centers.roll(-1, 0) - calm.centers).norm(dim=-1)
    assert steps.max() < 1.5 * steps.min()
    shifted = Cameras(loop.c2w.roll(20, 0), loop.K, 40, 30)
    torch.testing.assert_close(stabilise(shifted, 15, closed=True).c2w.roll(-20, 0), calm.c2w)


def test_stabilised_paths_shake_less_and_short_ones_survive() -> None:
    path = shaky(60)

    def jerk(cameras: Cameras) -> float:
        return cameras.centers.diff(n=3, dim=0).norm(dim=-1).mean().item()

    assert jerk(stabilise(path, 15)) < 0.1 * jerk(path)
    torch.testing.assert_close(stabilise(path[0], 50).c2w, path.c2w[:1], atol=1e-6, rtol=0)
    assert len(stabilise(path[:3], 50)) == 3


def test_what_is_refused() -> None:
    cameras = make_cameras(3, 40, 30)
    with pytest.raises(ConfigError, match="0 frames"):
        spiral(cameras, 0, torch.zeros(3))
    with pytest.raises(ConfigError, match="0 frames"):
        wobble_about(cameras, 0, torch.zeros(3))
    with pytest.raises(ConfigError, match="-1 frames"):
        spin(-1, 1.0)
    with pytest.raises(ConfigError, match="filter of 0"):
        stabilise(cameras, 0)
