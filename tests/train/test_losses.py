"""Every loss term: its value by a slow independent computation, its gradient, and what a split of the batch changes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ilrm.core.cameras import Cameras, normalise
from ilrm.core.errors import ConfigError
from ilrm.core.gaussians import Gaussians
from ilrm.model import ILRM, FootprintDecoder, ILRMConfig, MatchingConfig
from ilrm.render import render
from ilrm.train import losses as module
from ilrm.train.config import LossConfig
from ilrm.train.data.batch import Batch
from ilrm.train.losses import losses
from ilrm.train.presets import preset
from tests.conftest import make_cameras
from tests.devices.launches import Launches

NETWORK = ILRMConfig(width=32, head_width=16, layers=3, patch_size=4, decoder=FootprintDecoder())
INPUTS, TARGETS, SIDE = 2, 2, 16
ALL = LossConfig(mse=1, depth=0.3, points=0.2, opacity=0.1, scale=0.4, iterations=0.5)


def make_batch(samples: int = 2, seed: int = 0, known: float = 0.7) -> Batch:
    """Random photos of random cameras; of the true depth only a share is known, another one in each sample."""
    g = torch.Generator().manual_seed(seed)
    cameras = [normalise(make_cameras(INPUTS + TARGETS, SIDE, SIDE, seed=seed + b))[0] for b in range(samples)]
    shape = (samples, INPUTS + TARGETS, SIDE, SIDE)
    depth = 2 + 3 * torch.rand(shape, generator=g)
    share = known * (1 + torch.arange(samples)[:, None, None, None]) / samples
    return Batch(
        images=torch.rand(*shape, 3, generator=g),
        c2w=torch.stack([c.c2w for c in cameras]),
        K=torch.stack([c.K for c in cameras]),
        inputs=INPUTS,
        names=tuple(f"scene {b}" for b in range(samples)),
        depth=torch.where(torch.rand(shape, generator=g) < share, depth, 0.0),
    )


def part(batch: Batch, chosen: slice) -> Batch:
    depth = None if batch.depth is None else batch.depth[chosen]
    return replace(
        batch,
        images=batch.images[chosen],
        c2w=batch.c2w[chosen],
        K=batch.K[chosen],
        names=batch.names[chosen],
        depth=depth,
    )


def make_model(config: ILRMConfig = NETWORK) -> ILRM:
    torch.manual_seed(0)
    model = ILRM(config)
    torch.nn.init.normal_(model.decoder.weight, std=0.1)
    return model


def compute(model: Callable[..., Gaussians], batch: Batch, config: LossConfig, **more: Any) -> module.Losses:
    return losses(model, batch, config, more.pop("step", 0), model_config=NETWORK, precision="fp32", **more)


class Given:
    """A network that returns the Gaussians it was given."""

    def __init__(self, gaussians: Gaussians) -> None:
        self.gaussians = gaussians

    def __call__(self, images: Tensor, c2w: Tensor, K: Tensor) -> Gaussians:
        return self.gaussians


def on_surfaces(batch: Batch, factor: int = 1) -> Gaussians:
    """One Gaussian for each viewpoint pixel of the inputs, at the true depth of its nearest sample."""
    assert batch.depth is not None
    lists = []
    for b in range(len(batch)):
        for v in range(INPUTS):
            for i in range(SIDE // factor):
                for j in range(SIDE // factor):
                    z = batch.depth[b, v, i * factor + factor // 2, j * factor + factor // 2]
                    pixel = torch.tensor([(j + 0.5) * factor, (i + 0.5) * factor, 1.0])
                    local = torch.linalg.solve(batch.K[b, v], pixel) * z
                    lists.append(batch.c2w[b, v, :3, :3] @ local + batch.c2w[b, v, :3, 3])
    means = torch.stack(lists).reshape(len(batch), -1, 3)
    ones = torch.ones(means.shape[:2])
    quats = torch.tensor([1.0, 0, 0, 0]).expand(*means.shape[:2], 4)
    return Gaussians(means, 0.02 * torch.ones_like(means), quats, 0.5 * ones, torch.zeros(*means.shape[:2], 1, 3))


def test_colour_terms_are_what_a_plain_loop_gives() -> None:
    batch, model = make_batch(), make_model()
    result = compute(model, batch, replace(ALL, depth=0, points=0))
    images, c2w, K = batch.images, batch.c2w, batch.K
    layers = model(images[:, :INPUTS], c2w[:, :INPUTS], K[:, :INPUTS], iterations=True)
    errors, decibels = torch.zeros(3), []
    for layer in range(3):
        for b in range(2):
            for t in range(INPUTS, INPUTS + TARGETS):
                seen = render(layers[layer][b], Cameras(c2w[b, t : t + 1], K[b, t : t + 1], SIDE, SIDE)).rgb[0]
                errors[layer] += (seen - images[b, t]).square().sum().item() / (2 * TARGETS * SIDE * SIDE * 3)
                if layer == 2:
                    clamped = (seen.clamp(0, 1) - images[b, t]).square().mean().item()
                    decibels.append(-10 * math.log10(clamped))
    torch.testing.assert_close(result.terms["mse"], errors[2])
    torch.testing.assert_close(result.terms["iterations"], 0.9 * errors[1] + 0.81 * errors[0])
    assert result.psnr.item() == pytest.approx(sum(decibels) / len(decibels), abs=1e-4)
    torch.testing.assert_close(result.terms["opacity"], layers[2].opacities.mean().detach())


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_gaussians_on_the_true_surfaces_have_no_depth_and_point_error(factor: int) -> None:
    batch = make_batch(known=9.0)
    gaussians = on_surfaces(batch, factor)
    assert module.depth_term(gaussians, batch, factor) < 1e-5
    assert module.points_term(gaussians, batch, factor) < 1e-5


def test_depth_error_is_the_logarithm_of_the_ratio() -> None:
    """Points moved along their rays to e^0.25 times their distance, in half of the samples."""
    batch = make_batch(known=9.0)
    gaussians = on_surfaces(batch)
    centres = batch.c2w[:, :INPUTS, :3, 3].repeat_interleave(SIDE * SIDE, 1)
    factor = torch.tensor([math.exp(0.25), 1.0])[:, None, None]
    moved = replace(gaussians, means=centres + factor * (gaussians.means - centres))
    assert module.depth_term(moved, batch, 1).item() == pytest.approx(0.125, abs=1e-5)


def test_point_error_is_relative_to_the_depth() -> None:
    batch = make_batch(samples=1, known=9.0)
    assert batch.depth is not None
    shift = torch.tensor([0.03, -0.04, 0.0])
    gaussians = on_surfaces(batch)
    moved = replace(gaussians, means=gaussians.means + shift)
    expected = (0.05 / batch.depth[:, :INPUTS]).mean()
    torch.testing.assert_close(module.points_term(moved, batch, 1), expected, atol=1e-5, rtol=1e-4)


def test_scale_is_relative_to_the_depth_and_does_not_push_it() -> None:
    batch = make_batch(samples=1, known=9.0)
    assert batch.depth is not None
    gaussians = on_surfaces(batch)
    means, scales = gaussians.means.clone().requires_grad_(), gaussians.scales.clone().requires_grad_()
    value = module.scale_term(replace(gaussians, means=means, scales=scales), batch)
    torch.testing.assert_close(value.detach(), (0.02 / batch.depth[:, :INPUTS]).mean(), atol=1e-5, rtol=1e-4)
    value.backward()
    assert means.grad is None
    assert scales.grad is not None
    assert (scales.grad > 0).all()


@pytest.mark.parametrize("term", [module.depth_term, module.points_term])
def test_gradients_of_the_geometric_terms(term: Callable[[Gaussians, Batch, int], Tensor]) -> None:
    batch = make_batch(samples=2)
    assert batch.depth is not None
    batch = replace(batch, c2w=batch.c2w.double(), K=batch.K.double(), depth=batch.depth.double())
    start = on_surfaces(replace(make_batch(known=9.0), c2w=make_batch().c2w), 4)
    gaussians = start.to(dtype=torch.float64)
    means = (gaussians.means * 1.1).requires_grad_()  # away from the kink at zero error
    assert torch.autograd.gradcheck(lambda m: term(replace(gaussians, means=m), batch, 4), (means,))


def test_two_half_batches_average_to_the_whole() -> None:
    batch, model = make_batch(4), make_model()
    whole = compute(model, batch, ALL)
    whole.total.backward()
    gradient = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    halves = [compute(model, part(batch, slice(k, k + 2)), ALL) for k in (0, 2)]
    (0.5 * (halves[0].total + halves[1].total)).backward()
    for name, value in whole.terms.items():
        torch.testing.assert_close(0.5 * (halves[0].terms[name] + halves[1].terms[name]), value, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(0.5 * (halves[0].psnr + halves[1].psnr), whole.psnr)
    for expected, parameter in zip(gradient, [p for p in model.parameters() if p.grad is not None], strict=True):
        torch.testing.assert_close(parameter.grad, expected, atol=1e-6, rtol=1e-4)


def test_total_is_the_weighted_sum() -> None:
    result = compute(make_model(), make_batch(), ALL)
    weights = {name: getattr(ALL, name) for name in result.terms}
    assert set(weights) == {"mse", "depth", "points", "opacity", "scale", "iterations"}
    expected = sum(weights[name] * value for name, value in result.terms.items())
    torch.testing.assert_close(result.total.detach(), expected)
    assert not any(value.requires_grad for value in result.terms.values())


def test_terms_of_weight_zero_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> Tensor:
        raise AssertionError("computed a term of weight 0")

    for name in ("depth_term", "points_term", "scale_term", "iterations_term"):
        monkeypatch.setattr(module, name, forbidden)
    config = LossConfig(perceptual="lpips", perceptual_weight=0.5, perceptual_start=10)
    batch = make_batch()
    result = compute(Given(on_surfaces(batch)), batch, config, step=9, perceptual=forbidden)
    assert set(result.terms) == {"mse"}
    with pytest.raises(AssertionError, match="weight 0"):
        compute(Given(on_surfaces(batch)), batch, config, step=10, perceptual=forbidden)


def test_perceptual_distances_are_averaged_and_weighted() -> None:
    batch, seen = make_batch(), []

    def distance(prediction: Tensor, truth: Tensor) -> Tensor:
        seen.append((prediction.shape, torch.equal(truth, batch.images[:, INPUTS:].flatten(0, 1))))
        return (prediction - truth).abs().mean((1, 2, 3))

    config = LossConfig(mse=0, perceptual="vgg", perceptual_weight=0.5)
    result = compute(Given(on_surfaces(batch)), batch, config, perceptual=distance)
    assert seen == [((2 * TARGETS, SIDE, SIDE, 3), True)]
    torch.testing.assert_close(result.total.detach(), 0.5 * result.terms["perceptual"])


@pytest.mark.parametrize("known", [0.0, None])
def test_without_known_depth_the_geometric_terms_are_zero(known: float | None) -> None:
    batch = make_batch(known=0.0)
    batch = batch if known is not None else replace(batch, depth=None)
    model = make_model()
    result = compute(model, batch, replace(ALL, iterations=0))
    assert result.terms["depth"] == 0
    assert result.terms["points"] == 0
    result.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_bf16_changes_the_network_alone() -> None:
    batch, model = make_batch(), make_model()
    both = [losses(model, batch, ALL, 0, model_config=NETWORK, precision=p) for p in ("fp32", "bf16")]
    assert both[1].total.dtype == torch.float32
    assert both[0].total != both[1].total
    torch.testing.assert_close(both[0].total, both[1].total, atol=0, rtol=0.05)


def test_equal_images_have_a_finite_psnr() -> None:
    batch = make_batch(samples=1)
    gaussians = on_surfaces(batch)
    cameras = Cameras(batch.c2w[0, INPUTS:], batch.K[0, INPUTS:], SIDE, SIDE)
    images = batch.images.clone()
    images[0, INPUTS:] = render(gaussians[0], cameras).rgb
    assert compute(Given(gaussians), replace(batch, images=images), LossConfig()).psnr.item() == pytest.approx(100)


@pytest.mark.parametrize(
    "values",
    [
        {"mse": -1},
        {"mse": 0},
        {"depth": math.nan},
        {"iterations_decay": 0},
        {"mse": 0, "perceptual": "vgg", "perceptual_start": 5},
    ],
)
def test_contradictory_weights_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        LossConfig(**values)


class TestMatching:
    CONFIG = replace(
        NETWORK,
        viewpoint_factor=2,
        uplift=2,
        image_channels=("rgb", "moment", "direction", "match"),
        matching=MatchingConfig(planes=8, sources=1, window=3, channels=4),
    )

    def compute(self, batch: Batch) -> tuple[module.Losses, ILRM]:
        model = make_model(self.CONFIG)
        config = LossConfig(mse=0, matching=0.5)
        return losses(model, batch, config, 0, model_config=self.CONFIG, precision="fp32"), model

    def test_is_the_cross_entropy_at_the_true_distance(self) -> None:
        batch = make_batch()
        assert batch.depth is not None
        result, model = self.compute(batch)
        inputs = (batch.images[:, :INPUTS], batch.c2w[:, :INPUTS], batch.K[:, :INPUTS])
        _, match = model(*inputs, with_match=True)
        assert match is not None
        assert match.logits is not None
        samples = []
        for b in range(2):
            errors = []
            for v in range(INPUTS):
                for i in range(SIDE // 2):
                    for j in range(SIDE // 2):
                        z = batch.depth[b, v, 2 * i + 1, 2 * j + 1]
                        if z == 0:
                            continue
                        pixel = torch.tensor([2 * j + 1.0, 2 * i + 1.0, 1.0])
                        distance = (torch.linalg.solve(batch.K[b, v], pixel) * z).norm().item()
                        place = math.log(distance / 0.2) / math.log(400 / 0.2) * 7
                        log_p = match.logits[b, v, :, i, j].log_softmax(0)
                        below = math.floor(place)
                        mixed = (below + 1 - place) * log_p[below] + (place - below) * log_p[below + 1]
                        errors.append(-mixed.item())
            samples.append(sum(errors) / len(errors))
        assert result.terms["matching"].item() == pytest.approx(sum(samples) / 2, rel=1e-4)
        assert result.total.item() == pytest.approx(0.5 * sum(samples) / 2, rel=1e-4)

    def test_gradient_reaches_the_matching_network(self) -> None:
        result, model = self.compute(make_batch())
        result.total.backward()
        assert model.matching is not None
        for name in ("out", "sharpen_out"):
            grad = getattr(model.matching, name).weight.grad
            assert grad is not None
            assert grad.abs().max() > 0

    def test_two_halves_average_to_the_whole(self) -> None:
        batch = make_batch()
        whole = self.compute(batch)[0].terms["matching"]
        halves = [self.compute(part(batch, slice(b, b + 1)))[0].terms["matching"] for b in range(2)]
        torch.testing.assert_close(torch.stack(halves).mean(), whole, atol=1e-5, rtol=1e-5)

    def test_needs_a_network_that_learns_to_match(self) -> None:
        with pytest.raises(ConfigError, match="learned matching"):
            compute(make_model(), make_batch(), LossConfig(matching=1))


def test_launches_of_a_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the shipped network's kind: 30,939 at first, 3,296 when batches became a dimension (4 samples of 8 views)."""
    monkeypatch.setattr("ilrm.model.matching.view_geometry._MOST_VALUES", {"cpu": 1 << 28, "cuda": 1 << 28})
    config = preset("synthetic-small")
    torch.manual_seed(0)
    model = ILRM(config.model)
    cameras = make_cameras(6, 64, 64)
    c2w, K = (x.expand(2, *x.shape) for x in (cameras.c2w, cameras.K))
    generator = torch.Generator().manual_seed(0)
    images, depth = torch.rand(2, 6, 64, 64, 3, generator=generator), torch.full((2, 6, 64, 64), 2.0)
    batch = Batch(images, c2w, K, inputs=4, names=("a", "b"), depth=depth)
    with Launches() as launches:
        found = losses(model, batch, config.loss, 0, model_config=config.model, precision="fp32")
        found.total.backward()
    assert launches.count <= 3000
