from __future__ import annotations

import numpy as np
import pytest
import torch

from ilrm.core.errors import ConfigError
from ilrm.scenes.views import farthest_points
from ilrm.train.config import Bounded, BoundedV2, Spread
from ilrm.train.data.samplers import (
    TooFewFrames,
    Unusable,
    choose_views,
    draw_inputs,
    for_made_scenes,
    frames_of_made_scene,
    scheduled,
)
from tests.conftest import shared_path

RE10K, DL3DV = Bounded(), BoundedV2()


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(shared_path("golden/main_view_samplers.npz")))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def path_of(frames: int) -> torch.Tensor:
    """(N, 4, 4) cameras that walk along x."""
    c2w = torch.eye(4, dtype=torch.float64).repeat(frames, 1, 1)
    c2w[:, 0, 3] = torch.arange(frames)
    return c2w


@pytest.mark.parametrize(
    ("sampler", "name"), [(RE10K, "bounded_re10k_min_max_gap"), (DL3DV, "boundedv2_dl3dv_min_max_gap")]
)
def test_windows_grow_as_released(golden, sampler, name):
    steps = golden["schedule_steps"].tolist()
    gaps = [[scheduled(bounds, s, sampler.warm_up) for bounds in (sampler.min_gap, sampler.max_gap)] for s in steps]
    assert gaps == golden[name].tolist()


def test_shrinking_bounds_jump(golden):
    assert scheduled((50, 20), 0, 100) == golden["schedule_decreasing_initial50_final20_step0"]


def test_farthest_points_as_released(golden):
    positions = torch.from_numpy(golden["fps_in_positions_B40x3"])
    for count in (8, 2):
        assert [farthest_points(p, count) for p in positions] == golden[f"fps_out_indices_{count}"].tolist()
    assert farthest_points(torch.from_numpy(golden["fps_line_in"][0]), 5) == golden["fps_line_out_5"][0].tolist()
    few = torch.from_numpy(golden["fps_fewer_distinct_than_requested_in"][0])
    assert farthest_points(few, 5) == golden["fps_fewer_distinct_than_requested_out_5"][0].tolist()


def test_test_stage_as_released(golden):
    views = choose_views(RE10K, path_of(200), 0, rng(), 2, stage="test")
    assert list(views.inputs) == golden["bounded_teststage_200frames_context"].tolist()
    assert list(views.targets) == golden["bounded_teststage_200frames_target"].tolist()
    poses = torch.from_numpy(golden["boundedv2_teststage_in_extrinsics"])
    views = choose_views(DL3DV, poses, 0, rng(), 6, stage="test")
    assert list(views.inputs) == golden["boundedv2_teststage_context"].tolist()
    assert list(views.targets) == golden["boundedv2_teststage_target"].tolist()
    with pytest.raises(TooFewFrames, match="135 frames is too short for a window of 136"):
        choose_views(RE10K, path_of(135), 0, rng(), 2, stage="test")


def test_bounded_draws_range_as_the_released_ones(golden):
    drawn = [choose_views(RE10K, path_of(200), 15_000, rng(seed), 2) for seed in range(400)]
    least, most = (scheduled(bounds, 15_000, RE10K.warm_up) for bounds in (RE10K.min_gap, RE10K.max_gap))
    released = np.diff(golden["bounded_example_draws_step15000_context"], axis=1)
    gaps = [views.inputs[1] - views.inputs[0] for views in drawn]
    assert (min(gaps), max(gaps)) == (least, most)
    assert released.min() >= least
    assert released.max() <= most
    for views in drawn:
        assert views.inputs[0] >= 0
        assert views.inputs[1] < 200
        assert len(set(views.targets)) == 4
        assert all(views.inputs[0] <= target <= views.inputs[1] for target in views.targets)
    assert any(set(views.inputs) & set(views.targets) for views in drawn), "the window's ends may be targets"
    assert min(views.inputs[0] for views in drawn) < 10, "windows lie anywhere in the sequence"
    assert max(views.inputs[1] for views in drawn) > 190


def test_bounded_v2_draws_range_as_the_released_ones(golden):
    divisors = golden["boundedv2_gap_divisor_for_n_views_2to6_max6"].tolist()
    released = zip(
        golden["boundedv2_example_draws_nviews"].tolist(),
        golden["boundedv2_example_draws_window_span"].tolist(),
        strict=True,
    )
    assert all(span <= DL3DV.max_gap[1] // divisors[n - 2] for n, span in released)
    for inputs, divisor in zip(range(2, 7), divisors, strict=True):
        drawn = [choose_views(DL3DV, path_of(200), 10_000, rng(seed), inputs) for seed in range(150)]
        spans = [views.inputs[-1] - views.inputs[0] for views in drawn]
        assert max(spans) <= 50 // divisor
        assert max(spans) > 40 // divisor
        # On a straight walk the farthest points include both ends.
        assert min(spans) >= 20 // divisor
        for views in drawn:
            assert list(views.inputs) == sorted(set(views.inputs))
            assert len(views.inputs) == inputs
            assert list(views.targets) == sorted(set(views.targets))
            assert all(views.inputs[0] <= target <= views.inputs[-1] for target in views.targets)


def test_extension_reaches_beyond_the_window_but_not_the_sequence():
    sampler = BoundedV2(extension=30)
    drawn = [choose_views(sampler, path_of(60), 10_000, rng(seed), 2) for seed in range(200)]
    assert any(views.targets[0] < views.inputs[0] for views in drawn)
    assert any(views.targets[-1] > views.inputs[-1] for views in drawn)
    assert all(views.targets[0] >= 0 and views.targets[-1] < 60 for views in drawn)


def test_random_strategy_keeps_the_ends():
    sampler = BoundedV2(strategy="random")
    drawn = [choose_views(sampler, path_of(100), 0, rng(seed), 4).inputs for seed in range(50)]
    assert all(len(set(views)) == 4 and list(views) == sorted(views) for views in drawn)
    assert len({views[1] - views[0] for views in drawn}) > 3


def test_coincident_cameras_are_refused_for_the_farthest_points():
    still = torch.eye(4).repeat(100, 1, 1)
    with pytest.raises(Unusable, match="1 distinct camera centre"):
        choose_views(DL3DV, still, 0, rng(), 4)


def test_more_bounded_inputs_lie_between_and_are_no_targets():
    sampler = Bounded(inputs=4, min_distance=2)
    for seed in range(50):
        views = choose_views(sampler, path_of(100), 0, rng(seed), 4)
        steps = np.diff(views.inputs)
        assert steps.max() - steps.min() <= 1
        assert min(abs(target - view) for target in views.targets for view in views.inputs) >= 2


@pytest.mark.parametrize("selection", ["uniform", "random", "kmeans"])
@pytest.mark.parametrize("every", [0, 4])
def test_spread(selection, every):
    sampler = Spread(inputs=(3,), targets=2, selection=selection, hold_out_every=every)
    drawn = [choose_views(sampler, path_of(20), 0, rng(seed), 3) for seed in range(30)]
    for views in drawn:
        assert len({*views.inputs, *views.targets}) == 5
        if every:
            assert all(target % every == 0 for target in views.targets)
            assert all(view % every for view in views.inputs)
    if selection == "uniform" and not every:
        assert {views.inputs for views in drawn} == {(0, 10, 19)}
    assert len({views.targets for views in drawn}) > 6


@pytest.mark.parametrize(
    ("sampler", "frames", "message"),
    [
        (RE10K, 25, "25 frames is too short for a window of 26"),
        (DL3DV, 10, "10 frames is too short for a window of 16"),
        (Spread(targets=2), 5, "5 frames is too short for 4 inputs and 2 targets"),
        (Spread(targets=2, hold_out_every=4), 5, "with every 4-th held out"),
    ],
)
def test_short_sequences_are_refused_with_counts(sampler, frames, message):
    with pytest.raises(TooFewFrames, match=message):
        choose_views(sampler, path_of(frames), 0, rng(), 4)


@pytest.mark.parametrize("every", [0, 2, 8])
@pytest.mark.parametrize("inputs", [2, 5])
def test_made_scenes_have_just_enough_frames(every, inputs):
    sampler = Spread(targets=2, hold_out_every=every)
    frames = frames_of_made_scene(sampler, inputs)
    choose_views(sampler, path_of(frames), 0, rng(), inputs)
    with pytest.raises(TooFewFrames):
        choose_views(sampler, path_of(frames - 1), 0, rng(), inputs)
    assert frames_of_made_scene(RE10K, 2) == 6
    assert choose_views(for_made_scenes(RE10K), path_of(6), 0, rng(), 2).inputs == (0, 5)


def test_numbers_of_inputs():
    spread = [draw_inputs(Spread(inputs=(2, 4, 4)), rng(seed)) for seed in range(300)]
    assert set(spread) == {2, 4}
    assert 0.55 < np.mean(np.array(spread) == 4) < 0.78
    assert {draw_inputs(DL3DV, rng(seed)) for seed in range(100)} == {2, 3, 4, 5, 6}
    assert draw_inputs(Bounded(inputs=3), rng()) == 3


def test_a_seed_decides_all():
    for sampler in (RE10K, DL3DV, Spread(selection="random"), Spread(selection="kmeans")):
        first, again, other = (choose_views(sampler, path_of(100), 0, rng(seed), 2) for seed in (1, 1, 2))
        assert first == again
        assert first != other


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Bounded(min_gap=(50, 50), max_gap=(40, 60)), "min_gap"),
        (lambda: Bounded(min_gap=(2, 20)), "room for 3 targets"),
        (lambda: Bounded(min_gap=(10, 20), min_distance=5), "room for 1 targets"),
        (lambda: Bounded(inputs=1), "at least 2 inputs"),
        (lambda: BoundedV2(inputs=(2, 12)), "With 2 inputs, windows get as short as 3 frames"),
        (lambda: BoundedV2(inputs=(4, 2)), "at least 2 inputs"),
        (lambda: Spread(inputs=()), "number of inputs"),
        (lambda: Spread(hold_out_every=1), "hold_out_every"),
    ],
)
def test_contradictions_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
