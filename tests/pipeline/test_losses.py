"""The photometric loss: by kernels as by torch, in values and gradients."""

from __future__ import annotations

import pytest
import torch

from ilrm.evaluate.metrics import ssim
from ilrm.pipeline.refining.losses import photometric, photometric_reference

WEIGHTS = [(0.8, 0.2), (0.0, 0.0), (1.0, 1.0), (0.3, 0.0)]


def images(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(sum(shape))
    return torch.rand(*shape, 3, generator=draw), torch.rand(*shape, 3, generator=draw)


@pytest.mark.parametrize(("l1", "ssim_weight"), WEIGHTS)
@pytest.mark.parametrize("shape", [(1, 11, 11), (2, 40, 53), (3, 16, 27), (2, 8, 30)])
@pytest.mark.parametrize("masked", [False, True])
def test_kernels_do_what_torch_does(l1: float, ssim_weight: float, shape: tuple[int, ...], masked: bool) -> None:
    rgb, truth = images(*shape)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.02 if masked else None
    fast, slow = rgb.clone().requires_grad_(), rgb.double().requires_grad_()
    found = photometric(fast, truth, mask, l1, ssim_weight)
    expected = photometric_reference(slow, truth.double(), mask, l1, ssim_weight)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    (3 * found).backward()
    (3 * expected).backward()
    assert fast.grad is not None
    assert slow.grad is not None
    assert (fast.grad - slow.grad).abs().max() < 3e-6 * slow.grad.abs().max()


def test_the_reference_has_the_gradient_of_its_values() -> None:
    rgb, truth = (x.double() for x in images(1, 12, 13))
    mask = torch.ones(1, 12, 13, dtype=torch.bool)
    mask[0, 0, :2] = False
    torch.autograd.gradcheck(
        lambda x: photometric_reference(x, truth, mask, 0.5, 0.7), rgb.requires_grad_(), raise_exception=True
    )


def test_it_is_one_minus_the_metric() -> None:
    rgb, truth = images(2, 30, 40)
    error = (rgb - truth).abs().mean()
    found = photometric(rgb, truth, None, 1.0, 0.5)
    assert found.item() == pytest.approx((error + 0.5 * (1 - ssim(rgb, truth).mean())).item(), rel=1e-5)


def test_equal_images_have_no_gradient() -> None:
    rgb, _ = images(1, 20, 20)
    free = rgb.clone().requires_grad_()
    loss = photometric(free, rgb, None, 0.8, 0.2)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert free.grad is not None
    assert free.grad.abs().max() < 1e-7


def test_a_view_without_pixels_that_count_pulls_at_nothing() -> None:
    rgb, truth = images(2, 20, 20)
    mask = torch.ones(2, 20, 20, dtype=torch.bool)
    mask[1] = False
    free = rgb.clone().requires_grad_()
    photometric(free, truth, mask, 0.8, 0.2).backward()
    assert free.grad is not None
    assert free.grad[0].abs().max() > 0
    assert (free.grad[1] == 0).all()


def test_threads_do_not_change_it() -> None:
    rgb, truth = images(1, 64, 48)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            free = rgb.clone().requires_grad_()
            photometric(free, truth, None, 0.8, 0.2).backward()
            found.append(free.grad)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
