"""Refinement: the paper's steps exactly, better held-out views, and independence of the world it happens in."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from importlib import import_module

import pytest
import torch

from ilrm.core.cameras import Similarity, normalise
from ilrm.core.errors import ConfigError, GaussiansError, IlrmWarning, SceneError
from ilrm.core.gaussians import Gaussians
from ilrm.core.scene import LazyImages, Scene
from ilrm.evaluate.metrics import ssim
from ilrm.pipeline.refine import LearningRates, RefineConfig, RefineResult, RefineStep, mean_psnr, refine
from ilrm.pipeline.refining.pace import Pace
from ilrm.render import render
from tests.conftest import make_cameras, make_gaussians

ATTRIBUTES = ("means", "scales", "quats", "opacities", "sh")


def setup(views: int = 6, count: int = 150) -> tuple[Gaussians, Scene]:
    """Photos of known Gaussians, and a disturbed copy of these to start from."""
    truth = make_gaussians(count, scale=0.15)
    cameras = make_cameras(views, 40, 32, distance=5.0)
    images = render(truth, cameras).rgb.clamp(0, 1)
    scene = Scene(images, cameras, tuple(f"photo {i}" for i in range(views)))
    g = torch.Generator().manual_seed(1)
    start = replace(
        truth,
        means=truth.means + 0.03 * torch.randn(count, 3, generator=g),
        sh=truth.sh + 0.15 * torch.randn(count, 1, 3, generator=g),
    )
    return start, scene


def test_paper_steps_are_adam_on_the_squared_error() -> None:
    """Written out by hand from the published description, in the unit frame."""
    start, scene = setup(views=3, count=40)
    cameras, to_world = normalise(scene.cameras)
    unit = start.transform(to_world.inverse())
    free = [
        unit.means.clone(),
        unit.sh.clone(),
        unit.scales.log(),
        unit.quats.clone(),
        torch.logit(unit.opacities.double().clamp(1e-6, 1 - 1e-6)).float(),
    ]
    for value in free:
        value.requires_grad_()
    groups = [{"params": [v], "lr": 6e-4 if i == 0 else 1e-3} for i, v in enumerate(free)]
    adam = torch.optim.Adam(groups, eps=1e-15)
    for _ in range(5):
        adam.zero_grad()
        means, sh, log_scales, quats, logits = free
        rgb = render(Gaussians(means, log_scales.exp(), quats, logits.sigmoid(), sh), cameras).rgb
        (rgb - scene.images).square().mean().backward()
        adam.step()
    result = refine(start, scene, 5, config=RefineConfig.paper()).gaussians.transform(to_world.inverse())
    # Adam divides by the gradient's size, so where that is rounding noise a step may point anywhere.
    for name, value, tolerance in (("means", free[0], 5 * 6e-4), ("sh", free[1], 5e-3)):
        difference = (getattr(result, name) - value).abs()
        assert difference.max() < 2 * tolerance
        assert difference.median() < 1e-6
    torch.testing.assert_close(
        render(result, cameras).rgb,
        render(Gaussians(free[0], free[2].exp(), free[3], free[4].sigmoid(), free[1]), cameras).rgb,
        atol=1e-3,
        rtol=0,
    )


def test_long_steps_are_adam_with_a_warm_start() -> None:
    """Written out by hand: second moments that start from a share of the mean, rates by the error and the distance."""
    start, scene = setup(views=3, count=40)
    config = replace(RefineConfig.long(), views_per_step=None)
    rates = config.rates
    cameras, to_world = normalise(scene.cameras)
    unit = start.transform(to_world.inverse())
    distance = torch.cdist(unit.means, cameras.centers.float()).amin(1, keepdim=True)
    error = (render(unit, cameras).rgb - scene.images).square().mean().sqrt().item()
    assert 0 < error < 3 * rates.error
    free = [torch.zeros_like(unit.means), unit.sh, unit.scales.log(), unit.quats, torch.logit(unit.opacities)]
    free = [value.clone().requires_grad_() for value in free]
    each = [rates.means, rates.sh, rates.log_scales, rates.quats, rates.opacity_logits]
    first, second, losses = [0.0] * 5, [0.0] * 5, []
    for step in range(4):
        way, sh, log_scales, quats, logits = free
        gaussians = Gaussians(unit.means + way * distance, log_scales.exp(), quats, logits.sigmoid(), sh)
        rgb = render(gaussians, cameras).rgb
        difference = rgb - scene.images
        loss = (
            0.2 * difference.square().mean()
            + 0.8 * difference.abs().mean()
            + 0.2 * (1 - ssim(rgb, scene.images).mean())
        )
        losses.append(loss.item())
        for i, gradient in enumerate(torch.autograd.grad(loss, free)):
            if step == 0:
                second[i] = 0.1 * gradient.square().mean()
            first[i] = 0.9 * first[i] + 0.1 * gradient
            second[i] = 0.99 * second[i] + 0.01 * gradient.square()
            rate = each[i] * error / rates.error * 0.1 ** (step / 3)
            free[i] = (free[i] - rate * first[i] / (second[i].sqrt() + 1e-15)).detach().requires_grad_()
    result = refine(start, scene, 4, config=config)
    assert [step.loss for step in result.history] == pytest.approx(losses, rel=1e-4)
    assert losses[-1] < losses[0]
    found = result.gaussians.transform(to_world.inverse())
    torch.testing.assert_close(found.means, unit.means + free[0] * distance, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.scales, free[2].exp(), atol=1e-5, rtol=1e-4)


def test_a_photo_without_error_stops_nothing() -> None:
    """Its PSNR is so high that the mean of all says nothing about the others."""
    start, scene = setup()
    scene = replace(scene, images=torch.cat([render(start, scene.cameras[0]).rgb, scene.images[1:]]))
    result = refine(start, scene, 20, config=RefineConfig.long())
    others = scene.select(range(1, len(scene)))
    assert result.psnr_inputs_before > mean_psnr(start, others) + 10
    assert mean_psnr(result.gaussians, others) > mean_psnr(start, others) + 0.5


def test_a_good_start_is_not_lost() -> None:
    """Steps are as small as the error: the first ones of Adam alone would be as large as for a bad start."""
    truth, scene = setup()
    truth = refine(truth, scene, 200, config=RefineConfig.long()).gaussians
    inputs, held_out = scene.select([1, 2, 4, 5]), scene.select([0, 3])
    assert (before := mean_psnr(truth, held_out)) > 30
    for steps in (1, 3, 10):
        assert mean_psnr(refine(truth, inputs, steps, config=RefineConfig.long()).gaussians, held_out) > before - 0.3
    large = replace(RefineConfig.long(), warm_start=None, rates=replace(RefineConfig.long().rates, error=None))
    assert mean_psnr(refine(truth, inputs, 3, config=large).gaussians, held_out) < before - 1.0


@pytest.mark.parametrize(("config", "steps"), [(RefineConfig.paper(), 10), (RefineConfig.long(), 60)])
def test_held_out_views_get_better(config: RefineConfig, steps: int) -> None:
    start, scene = setup()
    inputs, held_out = scene.select([1, 2, 4, 5]), scene.select([0, 3])
    result = refine(start, inputs, steps, config=config)
    assert mean_psnr(result.gaussians, held_out) > mean_psnr(start, held_out) + (0.05 if steps == 10 else 1.0)
    assert len(result.history) == result.best_step == steps
    assert result.history[-1].loss < result.history[0].loss


@pytest.mark.parametrize("config", [RefineConfig.paper(), RefineConfig.long()], ids=["paper", "long"])
def test_the_world_frame_does_not_matter(config: RefineConfig) -> None:
    start, scene = setup(views=3, count=60)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))[0]
    world = Similarity(250.0, turn * torch.linalg.det(turn), torch.tensor([900.0, -40.0, 7.0], dtype=torch.float64))
    here = refine(start, scene, 12, config=config)
    there = refine(start.transform(world), scene.transform(world), 12, config=config)
    assert there.history[-1].loss == pytest.approx(here.history[-1].loss, rel=2e-2)
    back = there.gaussians.transform(world.inverse())
    assert (back.means - here.gaussians.means).abs().median() < 1e-4


@pytest.mark.parametrize("known", [True, False], ids=["with an origin", "without"])
def test_a_world_far_away_does_not_matter(known: bool) -> None:
    start, scene = setup(views=3, count=60)
    offset = torch.tensor([512345.0, 5432109.0, 250.0], dtype=torch.float64)
    there = Similarity(1.0, torch.eye(3, dtype=torch.float64), offset)
    far_scene = replace(scene, cameras=scene.cameras.to(dtype=torch.float64)).transform(there)
    here = refine(start, scene, 12)
    far = refine(start.at(offset) if known else start.transform(there), far_scene, 12)
    assert far.gaussians.means.abs().max() < 20
    if known:
        assert far.history[-1].loss == pytest.approx(here.history[-1].loss, rel=1e-4)
        assert (far.gaussians.world_means - offset - here.gaussians.means).abs().max() < 1e-4


def test_same_seed_same_result() -> None:
    start, scene = setup(views=4, count=60)

    def run(seed: int) -> RefineResult:
        return refine(start, scene, 12, config=replace(RefineConfig.long(seed), views_per_step=1))

    losses = [[step.loss for step in run(seed).history] for seed in (0, 0, 1)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] != pytest.approx(losses[2], rel=1e-4)


class Clock:
    """A clock that each look moves on by one second."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_steps_or_seconds_end_it() -> None:
    assert [Pace(3).share(done) for done in range(4)] == [0.0, 0.5, 1.0, None]
    assert Pace(1).share(0) == 0.0
    assert Pace(0).share(0) is None
    # Each step takes a second: the eleventh would end too late.
    by_time = Pace(None, 10.0, Clock())
    shares = [by_time.share(done) for done in range(11)]
    assert shares == pytest.approx([step / 10 for step in range(10)] + [None])
    both = Pace(4, 10.0, Clock())
    assert [both.share(done) for done in range(5)] == pytest.approx([0, 1 / 3, 2 / 3, 1, None])
    slow = Pace(None, 0.5, Clock())
    assert [slow.share(done) for done in range(2)] == [0.0, None], "one step is always done"
    assert Pace(None, 0.0).share(0) is None


@pytest.mark.parametrize(("steps", "seconds"), [(None, None), (-1, None), (None, -1.0), (None, math.nan)])
def test_other_limits_are_refused(steps: int | None, seconds: float | None) -> None:
    with pytest.raises(ConfigError):
        Pace(steps, seconds)


def test_time_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With rates that fall to the end, as with the same number of steps."""
    monkeypatch.setattr("ilrm.pipeline.refine.Pace", lambda steps, seconds: Pace(steps, seconds, Clock()))
    start, scene = setup(views=3, count=40)
    config = replace(RefineConfig.long(), views_per_step=None)
    timed = refine(start, scene, seconds=5.0, config=config)
    counted = refine(start, scene, 5, config=config)
    assert len(timed.history) == 5
    assert timed.best_step == 5
    assert timed.history[1].loss == pytest.approx(counted.history[1].loss, rel=1e-4)
    assert [step.loss for step in timed.history] == sorted((step.loss for step in timed.history), reverse=True)


def test_few_photos_are_not_fitted_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that stands still never ends it; steps that were asked for are done."""
    monkeypatch.setattr("ilrm.pipeline.refine.Pace", lambda steps, seconds: Pace(steps, seconds, lambda: 0.0))
    start, scene = setup(views=3, count=40)
    config = replace(RefineConfig.long(), passes=4.0)
    assert [config.most_steps(photos) for photos in (1, 2, 3, 22)] == [4, 4, 6, 44]
    assert len(refine(start, scene, seconds=5.0, config=config).history) == 6
    assert len(refine(start, scene, 9, config=config).history) == 9
    assert replace(config, views_per_step=None).most_steps(22) == 4
    assert RefineConfig.paper().most_steps(22) is None


def test_the_background_is_refined_before() -> None:
    start, scene = setup(views=3, count=40)
    dark = replace(start, background=(0.1, 0.2, 0.3))
    result = refine(dark, scene, 2)
    assert result.gaussians.background == (0.1, 0.2, 0.3)
    assert result.psnr_inputs_before != refine(start, scene, 1).psnr_inputs_before


def test_compiling_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first run had one step in its five seconds: the others passed while gradients were compiled."""
    clock = Clock()

    def compile_for_long(device: torch.device) -> None:
        clock.now += 1000.0

    monkeypatch.setattr("ilrm.pipeline.refine.load_kernels", compile_for_long)
    monkeypatch.setattr("ilrm.pipeline.refine.Pace", lambda steps, seconds: Pace(steps, seconds, clock))
    start, scene = setup(views=3, count=40)
    assert len(refine(start, scene, seconds=5.0).history) == 5
    assert clock.now > 1000


def test_watched_views_stop_it_and_the_best_state_returns() -> None:
    start, scene = setup(views=4)
    lies = scene.select([3])
    # These photos fit the start best, so that every step away from it makes them worse.
    lies = replace(lies, images=render(start, lies.cameras).rgb.clamp(0, 1))
    config = RefineConfig(LearningRates(3e-2, 3e-2, 3e-2, 3e-2, 3e-2), check_every=2, patience=2)
    result = refine(start, scene.select([0, 1, 2]), 50, config=config, watch=lies)
    assert result.stopped_early
    assert [step.step for step in result.history] == [1, 2, 3, 4]
    assert result.best_step == 0
    for name in ATTRIBUTES:
        torch.testing.assert_close(getattr(result.gaussians, name), getattr(start, name), atol=1e-5, rtol=1e-5)


def test_watched_views_do_not_steer() -> None:
    start, scene = setup(views=4)
    alone = refine(start, scene.select([0, 1]), 6)
    watched = refine(start, scene.select([0, 1]), 6, watch=scene.select([2, 3]))
    assert [s.loss for s in alone.history] == pytest.approx([s.loss for s in watched.history], rel=1e-4)


def test_transparent_and_oversized_gaussians_go() -> None:
    start, scene = setup(views=3, count=50)
    opacities, scales = start.opacities.clamp_min(0.1), start.scales.clone()
    opacities[:7] = 1e-4
    scales[7:10] = 50.0
    config = RefineConfig(prune_every=2)
    result = refine(replace(start, opacities=opacities, scales=scales), scene, 3, config=config)
    assert [step.num_gaussians for step in result.history] == [50, 40, 40]
    assert len(result.gaussians) == 40
    assert (result.gaussians.means - start.means[10:]).abs().max() < 0.05


def test_steps_without_finite_gradients_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    start, scene = setup(views=2, count=30)
    original = render

    def poisoned(*args, **kwargs):
        rendering = original(*args, **kwargs)
        return replace(rendering, rgb=rendering.rgb * float("nan"))

    monkeypatch.setattr(import_module("ilrm.pipeline.refining.state"), "render", poisoned)
    result = refine(start, scene, 3)
    assert result.skipped_steps == 3
    assert result.gaussians.finite().all()
    assert (result.gaussians.means - start.means).abs().max() < 1e-5


def test_progress_is_told() -> None:
    start, scene = setup(views=2, count=30)
    told: list[RefineStep] = []
    result = refine(start, scene, 3, progress=told.append)
    assert tuple(told) == result.history
    assert [step.step for step in told] == [1, 2, 3]
    assert all(math.isfinite(step.psnr) for step in told)


def test_interruption_comes_through() -> None:
    start, scene = setup(views=2, count=30)

    def interrupt(_: RefineStep) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refine(start, scene, 3, progress=interrupt)


def test_no_steps_change_nothing() -> None:
    start, scene = setup(views=2, count=30)
    result = refine(start, scene, 0)
    for name in ATTRIBUTES:
        torch.testing.assert_close(getattr(result.gaussians, name), getattr(start, name), atol=1e-5, rtol=1e-5)


def test_what_cannot_be_refined() -> None:
    start, scene = setup(views=2, count=30)
    with pytest.raises(GaussiansError, match="cannot be refined"):
        refine(start[:0], scene, 1)
    with pytest.raises(SceneError, match="no photos"):
        refine(start, scene.select([]), 1)
    with pytest.raises(ConfigError, match="-1 refinement steps"):
        refine(start, scene, -1)
    with pytest.raises(ConfigError, match="views_per_step = 0"):
        RefineConfig(views_per_step=0)
    with pytest.raises(ConfigError, match="l1 = 2"):
        RefineConfig(l1=2.0)
    start.means[3] = float("nan")
    with pytest.raises(GaussiansError, match="NaN"):
        refine(start, scene, 1)


@pytest.mark.parametrize("config", [RefineConfig(l1=0.3, ssim=0.2), RefineConfig.long()], ids=["all terms", "long"])
def test_masked_pixels_pull_at_nothing(config: RefineConfig) -> None:
    """Masked pixels change neither the steps nor the scores."""
    start, scene = setup(views=4, count=80)
    mask = torch.ones(4, 32, 40, dtype=torch.bool)
    mask[:2, 8:20, 10:26] = False
    mask[3] = False
    masked = replace(scene, mask=mask)
    magenta = replace(masked, images=torch.where(mask[..., None], scene.images[:], torch.tensor([1.0, 0.0, 1.0])))
    one, other = (refine(start, photos, 10, config=config) for photos in (masked, magenta))
    assert [s.loss for s in one.history] == pytest.approx([s.loss for s in other.history], rel=1e-4)
    torch.testing.assert_close(one.gaussians.sh, other.gaussians.sh, atol=1e-3, rtol=0)
    unmasked = refine(start, replace(magenta, mask=None), 10, config=config)
    assert (unmasked.gaussians.sh - one.gaussians.sh).abs().max() > 5e-3
    assert mean_psnr(start, magenta) == pytest.approx(mean_psnr(start, masked), abs=1e-6)
    assert all(math.isfinite(step.loss) for step in one.history)


def test_a_wholly_masked_scene_moves_nothing() -> None:
    start, scene = setup(views=2, count=30)
    result = refine(start, replace(scene, mask=torch.zeros(2, 32, 40, dtype=torch.bool)), 3)
    assert (result.gaussians.means - start.means).abs().max() < 1e-5
    assert math.isnan(result.history[0].psnr)


def _cloud_and_photos() -> tuple[Gaussians, Scene]:
    """Coloured Gaussians, and photos of them on white."""
    gaussians = make_gaussians(400, seed=3, scale=0.08)
    cameras = make_cameras(3, 48, 40)
    images = render(gaussians, cameras).rgb.clamp(0, 1)
    return gaussians, Scene(images, cameras, ("a", "b", "c"))


def test_splats_in_another_world_frame_are_told(recwarn: pytest.WarningsRecorder) -> None:
    gaussians, scene = _cloud_and_photos()
    result = refine(gaussians, scene, 1)
    assert not [w for w in recwarn if issubclass(w.category, IlrmWarning)]
    assert result.psnr_inputs_before > 40
    away = replace(gaussians, means=gaussians.means - torch.tensor([0.0, 0.0, 100.0]))
    with pytest.warns(IlrmWarning, match="0 % of the splats in view"):
        refine(away, scene, 0)
    black, white = replace(gaussians, sh=gaussians.sh - 9), replace(scene, images=torch.ones(3, 40, 48, 3))
    with pytest.warns(IlrmWarning, match="do not match"):
        refine(black, white, 0)


def test_splats_of_a_part_of_the_scene_are_no_reason_to_warn(recwarn: pytest.WarningsRecorder) -> None:
    """The photos are black around them and the rendering is white: few decibels, but the splats are in place."""
    gaussians, scene = _cloud_and_photos()
    solid = replace(gaussians, opacities=torch.full((400,), 0.99), scales=1.5 * gaussians.scales)
    black = render(solid, scene.cameras, (0, 0, 0)).rgb.clamp(0, 1)
    result = refine(solid, replace(scene, images=black), 0)
    assert result.psnr_inputs_before < 10
    assert not [w for w in recwarn if issubclass(w.category, IlrmWarning)]


def test_photos_are_decoded_once() -> None:
    start, scene = setup(views=3, count=30)
    reads: list[int] = []

    def reader(view: int) -> torch.Tensor:
        reads.append(view)
        return (scene.images[view] * 255).byte()

    height, width = scene.cameras.height, scene.cameras.width
    lazy = replace(scene, images=LazyImages([partial(reader, view) for view in range(3)], height, width))
    refine(start, lazy, 5, watch=lazy.select([0]))
    assert sorted(reads) == [0, 0, 1, 2]
