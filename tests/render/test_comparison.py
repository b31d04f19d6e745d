"""Renderings beside photos: the CPU's one pass against autograd over any renderer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ilrm.core.cameras import Cameras
from ilrm.core.errors import GaussiansError
from ilrm.core.gaussians import PER_GAUSSIAN, Gaussians
from ilrm.render import render
from ilrm.render.comparison import compare

SIDE = 20


def scene(degree: int, seed: int = 0) -> tuple[Gaussians, Cameras, torch.Tensor]:
    """(2, 30) Gaussians, (2, 5) cameras and (2, 5, 20, 20, 3) photos."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator)

    gaussians = Gaussians(
        means=normal(2, 30, 3) * 0.5 + torch.tensor([0.0, 0.0, 3.0]),
        scales=0.2 * normal(2, 30, 3).exp(),
        quats=torch.nn.functional.normalize(normal(2, 30, 4), dim=-1),
        opacities=normal(2, 30).sigmoid(),
        sh=0.3 * normal(2, 30, (degree + 1) ** 2, 3),
    )
    c2w = torch.eye(4).repeat(2, 5, 1, 1)
    c2w[..., :2, 3] = 0.2 * normal(2, 5, 2)
    K = torch.tensor([[24.0, 0, 10], [0, 22.0, 9], [0, 0, 1]]).expand(2, 5, 3, 3)
    photos = torch.rand(2, 5, SIDE, SIDE, 3, generator=generator)
    return gaussians, Cameras(c2w, K, SIDE, SIDE), photos


@pytest.mark.parametrize("degree", [0, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_the_kernels_pass_equals_autograd_over_the_reference(degree: int, masked: bool) -> None:
    gaussians, cameras, photos = scene(degree)
    mask = torch.rand(photos.shape[:-1], generator=torch.Generator().manual_seed(1)) < 0.7 if masked else None
    fast = compare(gaussians, cameras, photos, mask=mask)
    slow = compare(gaussians.to(dtype=torch.float64), cameras, photos, mask=mask, backend="reference")
    torch.testing.assert_close(fast.rendering.rgb, slow.rendering.rgb.float(), atol=2e-5, rtol=0)
    torch.testing.assert_close(fast.rendering.depth, slow.rendering.depth.float(), atol=1e-3, rtol=0)
    torch.testing.assert_close(fast.residual, slow.residual.float(), atol=2e-5, rtol=0)
    torch.testing.assert_close(fast.weights, slow.weights.float(), atol=2e-3, rtol=1e-4)
    for name in PER_GAUSSIAN:
        expected = slow.gradients[name].float()
        torch.testing.assert_close(fast.gradients[name], expected, atol=2e-4 * expected.abs().max().item(), rtol=1e-3)


def test_the_weights_of_a_view_sum_to_its_alpha() -> None:
    gaussians, cameras, photos = scene(0)
    found = compare(gaussians, cameras, photos)
    torch.testing.assert_close(found.weights.sum(1), found.rendering.alpha.sum((1, 2, 3)), rtol=1e-4, atol=1e-3)


def test_a_step_against_the_gradient_lowers_the_error() -> None:
    gaussians, cameras, _ = scene(0)
    photos = render(replace(gaussians, sh=gaussians.sh + 0.5), cameras).rgb
    found = compare(gaussians, cameras, photos)
    # Newton's step for colours that do not overlap: the mean residual that each Gaussian is seen with.
    step = found.gradients["sh"] / found.weights.clamp_min(1)[..., None, None]
    moved = replace(gaussians, sh=gaussians.sh - step / 0.282**2)
    after = compare(moved, cameras, photos)
    assert after.residual.square().sum() < 0.5 * found.residual.square().sum()


def test_nothing_differs_where_the_photos_are_the_renderings() -> None:
    gaussians, cameras, _ = scene(0)
    found = compare(gaussians, cameras, render(gaussians, cameras).rgb)
    assert found.residual.abs().max() == 0
    assert all(one.abs().max() == 0 for one in found.gradients.values())


def test_photos_of_another_size_are_refused() -> None:
    gaussians, cameras, photos = scene(0)
    with pytest.raises(GaussiansError, match=r"photos \(2, 5, 19, 20, 3\)"):
        compare(gaussians, cameras, photos[:, :, 1:])


def test_without_gradients_it_only_renders() -> None:
    gaussians, cameras, photos = scene(0)
    mask = torch.zeros(photos.shape[:-1], dtype=torch.bool)
    mask[..., 3:] = True
    whole, plain = (compare(gaussians, cameras, photos, mask=mask, gradients=wanted) for wanted in (True, False))
    assert torch.equal(whole.residual, plain.residual)
    assert torch.equal(whole.rendering.depth, plain.rendering.depth)
    assert plain.gradients == {}
    assert plain.weights.sum() == 0
