"""Metrics, compared with scikit-image and with values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ilrm.core.errors import SceneError
from ilrm.evaluate import depth_abs_rel, metrics, psnr, ssim
from ilrm.evaluate.metrics import mean_of_known, ssim_map


def images(views: int = 2, height: int = 37, width: int = 52, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A smooth truth and a noisy prediction that leaves [0, 1] here and there."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(views, 3, 6, 8, generator=g)
    truth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").permute(0, 2, 3, 1)
    return truth + 0.15 * torch.randn(truth.shape, generator=g), truth.contiguous()


@pytest.mark.parametrize("size", [(37, 52), (11, 11), (11, 40)])
def test_ssim_equals_scikit_image(size: tuple[int, int]) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    prediction, truth = images(3, *size)
    options = {"win_size": 11, "gaussian_weights": True, "data_range": 1.0, "channel_axis": -1}
    pairs = zip(prediction.double().numpy(), truth.double().numpy(), strict=True)
    expected = [metrics.structural_similarity(t, p, **options) for p, t in pairs]
    torch.testing.assert_close(ssim(prediction, truth), torch.tensor(expected).double(), atol=1e-6, rtol=0)


def test_psnr_equals_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    prediction, truth = images()
    pairs = zip(prediction.clamp(0, 1).double().numpy(), truth.double().numpy(), strict=True)
    expected = [metrics.peak_signal_noise_ratio(t, p, data_range=1.0) for p, t in pairs]
    torch.testing.assert_close(psnr(prediction, truth), torch.tensor(expected).double(), atol=1e-6, rtol=0)


def test_psnr_by_hand() -> None:
    grey = torch.full((1, 4, 4, 3), 0.5)
    assert psnr(grey + 0.1, grey).item() == pytest.approx(20.0, abs=1e-5)
    assert psnr(grey, grey).item() == math.inf
    assert psnr(grey * 4, torch.ones_like(grey)).item() == math.inf  # clamped first


def test_ssim_of_equal_images_is_one_and_clamping_would_change_it() -> None:
    prediction, truth = images()
    torch.testing.assert_close(ssim(truth, truth), torch.ones(2).double())
    assert (ssim(prediction, truth) - ssim(prediction.clamp(0, 1), truth)).abs().min() > 1e-3


def test_ssim_map_has_gradients() -> None:
    prediction, truth = (x[:1, :12, :13].double() for x in images(1))
    assert torch.autograd.gradcheck(lambda p: ssim_map(p, truth), (prediction.requires_grad_(),))


def test_depth_error_by_hand() -> None:
    truth = torch.tensor([[[1.0, 2.0], [4.0, 0.0]]])
    depth = torch.tensor([[[1.5, 2.0], [3.0, 9.0]]])
    assert depth_abs_rel(depth, truth).item() == pytest.approx((0.5 + 0 + 0.25) / 3)
    assert depth_abs_rel(3 * truth, truth).item() == pytest.approx(2.0)
    assert depth_abs_rel(3 * truth, truth, median_scaled=True).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ssim(torch.zeros(1, 10, 30, 3), torch.zeros(1, 10, 30, 3)), "30x10 pixels are too small"),
        (lambda: ssim(torch.zeros(1, 12, 12, 3), torch.zeros(1, 12, 13, 3)), "cannot be compared"),
        (lambda: psnr(torch.zeros(3, 12, 12), torch.zeros(3, 12, 12)), r"\(V, H, W, 3\)"),
        (lambda: depth_abs_rel(torch.ones(1, 2, 2), torch.zeros(1, 2, 2)), "view 0 has no known pixel"),
    ],
    ids=["small", "shapes", "axes", "no depth"],
)
def test_what_cannot_be_measured(call, words: str) -> None:
    with pytest.raises(SceneError, match=words):
        call()


def test_masked_pixels_are_in_no_score() -> None:
    """Nonsense under the mask changes nothing; without a mask the definitions are the same as before."""
    g = torch.Generator().manual_seed(0)
    truth, prediction = torch.rand(2, 40, 48, 3, generator=g), torch.rand(2, 40, 48, 3, generator=g)
    mask = torch.ones(2, 40, 48, dtype=torch.bool)
    assert torch.equal(psnr(prediction, truth, mask), psnr(prediction, truth))
    torch.testing.assert_close(ssim(prediction, truth, mask), ssim(prediction, truth))
    mask[:, 5:15, 20:30] = False
    spoiled = torch.where(mask[..., None], prediction, 9.0)
    assert torch.equal(psnr(spoiled, truth, mask), psnr(prediction, truth, mask))
    assert torch.equal(ssim(spoiled, truth, mask), ssim(prediction, truth, mask))
    expected = -10 * (prediction - truth).double().square()[0][mask[0]].mean().log10()
    assert psnr(prediction, truth, mask)[0].item() == pytest.approx(expected.item(), rel=1e-9)
    # The windows that touch the square go: 10 more on each side, as far as there are windows.
    windows = ssim_map(prediction.double(), truth.double())[0].mean(0)
    whole = torch.ones(30, 38, dtype=torch.bool)
    whole[0:15, 10:30] = False
    assert ssim(prediction, truth, mask)[0].item() == pytest.approx(windows[whole].mean().item(), rel=1e-9)


def test_a_view_without_counting_pixels_has_no_score() -> None:
    images = torch.rand(1, 16, 16, 3)
    nothing = torch.zeros(1, 16, 16, dtype=torch.bool)
    assert psnr(images, images, nothing).isnan().all()
    assert ssim(images, images, nothing).isnan().all()
    assert mean_of_known([1.0, float("nan"), 3.0]) == 2.0
    assert mean_of_known([float("nan")]) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_blurs_are_one(dtype: torch.dtype) -> None:
    """Values and gradients; windows of sizes that no block divides."""
    image = torch.rand(2, 5, 37, 51, dtype=dtype, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weights = torch.randn(2, 5, 27, 41, dtype=dtype, generator=torch.Generator().manual_seed(1))
    found, gradients = [], []
    for blur in (metrics._blur_by_convolution, metrics._blur_by_bands):
        blurred = blur(image)
        found.append(blurred.detach())
        gradients.append(torch.autograd.grad((blurred * weights).sum(), image)[0])
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(found[0], found[1], atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(gradients[0], gradients[1], atol=3 * tolerance, rtol=3 * tolerance)


def test_large_images_have_the_similarity_of_scikit_image() -> None:
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    rng = np.random.default_rng(0)
    truth = rng.random((430, 450, 3))
    seen = np.clip(truth + 0.1 * rng.standard_normal(truth.shape), 0, 1)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": True, "data_range": 1}
    expected = structural_similarity(seen, truth, channel_axis=-1, **settings)
    assert ssim(torch.from_numpy(seen)[None], torch.from_numpy(truth)[None]).item() == pytest.approx(expected, abs=1e-9)
