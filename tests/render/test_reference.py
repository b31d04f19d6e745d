"""The reference: right by formula for one Gaussian, and its gradients by finite differences."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ilrm.core.cameras import Cameras
from ilrm.core.gaussians import Gaussians
from ilrm.render import Backend, render
from tests.conftest import make_cameras, make_gaussians
from tests.render.scenes import PARAMETERS, front_camera, image_weights, one_gaussian, render_with_gradients


def test_one_gaussian_by_hand() -> None:
    """Focal 20, distance 2, deviation 0.1: one pixel wide, variance 1 + 0.3, centre between four pixels."""
    rendering = render(one_gaussian(), front_camera(), (0.0, 0.0, 1.0), backend="reference")
    alpha = 0.7 * math.exp(-0.5 * (0.5**2 + 0.5**2) / 1.3)
    colour = 0.28209479177387814 * torch.tensor([0.3, -0.2, 1.0]) + 0.5
    expected = alpha * colour + (1 - alpha) * torch.tensor([0.0, 0.0, 1.0])
    for row, column in ((7, 11), (7, 12), (8, 11), (8, 12)):
        torch.testing.assert_close(rendering.alpha[0, row, column], torch.tensor(alpha))
        torch.testing.assert_close(rendering.rgb[0, row, column], expected)
        assert rendering.depth[0, row, column].item() == pytest.approx(2.0)


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_antialiased_gaussian_by_hand(backend: Backend) -> None:
    """Variances 1 and 0.25 become 1.3 and 0.55: the opacity falls by the root of the areas' ratio."""
    gaussian = replace(one_gaussian(scale=(0.1, 0.05, 0.1)), antialiased=True)
    rendering = render(gaussian, front_camera(), (0.0, 0.0, 1.0), backend=backend)
    factor = math.sqrt(1 * 0.25 / (1.3 * 0.55))
    alpha = factor * 0.7 * math.exp(-0.5 * (0.5**2 / 1.3 + 0.5**2 / 0.55))
    assert rendering.alpha[0, 7, 11].item() == pytest.approx(alpha, rel=1e-5)
    assert rendering.depth[0, 7, 11].item() == pytest.approx(2.0)


def test_a_compensated_opacity_below_the_cutoff_draws_nothing_and_pulls_at_nothing() -> None:
    """A point without extent: only the blur is visible, and the root of 0 has no derivative."""
    for scale in ((0.0, 0.0, 0.0), (1e-4, 1e-4, 1e-4)):
        for backend in ("reference", "numba"):
            point = replace(one_gaussian(scale=scale), antialiased=True)
            rendering, gradients = render_with_gradients(point, front_camera(), backend)  # type: ignore[arg-type]
            assert not rendering.alpha.any()
            assert not any(gradient.any() for gradient in gradients.values())


def test_alpha_is_cut_off_where_it_falls_below_one_in_255() -> None:
    rendering = render(one_gaussian(), front_camera(), backend="reference")
    reach = math.sqrt(2 * 1.3 * math.log(255 * 0.7))  # pixels from the centre
    columns = torch.arange(24) + 0.5 - 12
    inside = (columns**2 + 0.5**2).sqrt() < reach
    assert torch.equal(rendering.alpha[0, 8] > 0, inside)
    assert rendering.alpha[0, 8][inside].min() >= 1 / 255 - 1e-7


def test_stops_before_the_gaussian_that_would_exhaust_the_pixel() -> None:
    """Transmittances 0.1, 0.01, 0.001, then 0.0001 is not allowed, nor anything behind it."""
    depths = torch.tensor([2.0, 3.0, 4.0, 5.0, 6.0])
    count = len(depths)
    wall = Gaussians(
        means=torch.stack([torch.zeros(count), torch.zeros(count), depths], -1),
        scales=torch.full((count, 3), 100.0),
        quats=torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1),
        opacities=torch.tensor([0.9, 0.9, 0.9, 0.91, 0.01]),
        sh=torch.zeros(count, 1, 3),
    )
    for backend in ("reference", "numba"):
        alpha = render(wall, front_camera(1, 1, 1.0), backend=backend).alpha.item()  # type: ignore[arg-type]
        assert alpha == pytest.approx(0.999, abs=1e-6)


def test_nearer_gaussian_is_in_front() -> None:
    near, far = one_gaussian(sh=(1.0, -1.0, -1.0)), one_gaussian(mean=(0.0, 0.0, 3.0), sh=(-1.0, -1.0, 1.0))
    for pair in ([near, far], [far, near]):
        pixel = render(Gaussians.cat(pair), front_camera(), backend="reference").rgb[0, 8, 12]
        assert pixel[0] > pixel[2]


def test_quaternion_turns_the_long_axis_into_the_world() -> None:
    """A quarter turn about z: long in x becomes long in y, and rows of pixels light up instead of columns."""
    half = math.sqrt(0.5)
    along_x = render(one_gaussian(scale=(0.4, 0.05, 0.05)), front_camera(16, 16)).alpha[0]
    along_y = render(one_gaussian(scale=(0.4, 0.05, 0.05), quat=(half, 0, 0, half)), front_camera(16, 16)).alpha[0]
    torch.testing.assert_close(along_y, along_x.T, atol=1e-6, rtol=1e-5)
    assert (along_x[8] > 0).sum() > (along_x[:, 8] > 0).sum() + 4


@pytest.mark.parametrize(("degree", "antialiased"), [(0, False), (3, False), (0, True)])
def test_gradients_by_finite_differences(degree: int, antialiased: bool) -> None:
    gaussians = make_gaussians(4, degree, seed=degree, scale=0.4).to(dtype=torch.float64)
    cameras = make_cameras(1, 5, 4).to(dtype=torch.float64)

    def loss(*parameters: torch.Tensor) -> torch.Tensor:
        rendering = render(
            Gaussians(*parameters, antialiased=antialiased), cameras, (0.2, 0.5, 0.9), backend="reference"
        )
        return image_weights(rendering, ("rgb", "alpha", "depth"))

    inputs = [getattr(gaussians, name).clone().requires_grad_() for name in PARAMETERS]
    # Small steps: a larger one moves pixels across the alpha cutoff, where the image jumps.
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-7, atol=1e-4, rtol=1e-4)


def test_reference_keeps_double() -> None:
    rendering = render(make_gaussians(4).to(dtype=torch.float64), make_cameras(1, 4, 4), backend="reference")
    assert rendering.rgb.dtype == rendering.alpha.dtype == rendering.depth.dtype == torch.float64


def test_view_dependent_colour_uses_the_direction_from_the_camera() -> None:
    """Degree 1, coefficient of x: reddish seen along -x, since that basis function is -C1 x."""
    sh = torch.zeros(1, 4, 3)
    sh[0, 3, 0] = 1.0
    base = one_gaussian(mean=(0.0, 0.0, 0.0), scale=(1.0, 1.0, 1.0), opacity=1.0)
    gaussians = Gaussians(base.means, base.scales, base.quats, base.opacities, sh)
    turn = torch.tensor([[0.0, 0, 1, -5], [0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1]])  # at x = -5, looking along +x
    K = torch.tensor([[[5.0, 0, 0.5], [0, 5, 0.5], [0, 0, 1]]])
    red = render(gaussians, Cameras(turn[None], K, 1, 1), backend="reference").rgb[0, 0, 0, 0]
    assert red.item() == pytest.approx(0.999 * (0.5 - 0.4886025119029199) + 0.001, abs=1e-5)
