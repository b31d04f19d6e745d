"""Groups and learning rates against the released optimiser's, and averaged weights."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from ilrm.core.errors import ConfigError, WeightsError
from ilrm.model import ILRM, ILRMConfig
from ilrm.model.weights.official import name_map
from ilrm.train.config import OptimiserConfig
from ilrm.train.optim import Average, learning_rate, make_optimiser, parameter_groups, set_learning_rate
from tests.conftest import shared_path


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(shared_path("golden/optim_main.npz"), allow_pickle=False))


def tiny() -> ILRM:
    torch.manual_seed(0)
    return ILRM(ILRMConfig(width=32, head_width=16, layers=2, patch_size=4))


def test_groups_are_those_of_the_release(golden: dict[str, np.ndarray]) -> None:
    model = tiny()
    ours = {id(parameter): name for name, parameter in model.named_parameters()}
    decay, rest = parameter_groups(model, float(golden["weight_decay_decay_group"]))
    # The record lists the encoder's tensors; names of the release on the left, ours on the right.
    names = name_map("main", 2)
    assert {ours[id(p)] for p in decay["params"]} == {names[n] for n in golden["decay_param_names"]}
    assert {ours[id(p)] for p in rest["params"]} == {names[n] for n in golden["nodecay_param_names"]}
    assert decay["weight_decay"] == 0.05
    assert rest["weight_decay"] == golden["weight_decay_nodecay_group"] == 0


def test_one_cycle_is_the_released_schedule(golden: dict[str, np.ndarray]) -> None:
    config = OptimiserConfig(peak=4e-4, schedule="one_cycle")
    steps = int(golden["onecycle_total_steps"]) - 10
    rates = [learning_rate(int(step), steps, config) for step in golden["onecycle_steps"]]
    np.testing.assert_allclose(rates, golden["onecycle_lr"], rtol=1e-9)


def test_constant_is_the_released_linear_warm_up(golden: dict[str, np.ndarray]) -> None:
    warm_up = int(golden["linear_warmup_config_warm_up_steps"])
    config = OptimiserConfig(peak=4e-4, schedule="constant", warm_up=warm_up)
    rates = [learning_rate(int(step), 10_000, config) for step in golden["linear_warmup_steps"]]
    np.testing.assert_allclose(rates, golden["linear_warmup_lr"], rtol=1e-9)


def test_cosine_rises_to_the_peak_and_falls_to_zero() -> None:
    config = OptimiserConfig(peak=2e-4, schedule="cosine", warm_up=100)
    rates = [learning_rate(step, 1100, config) for step in range(1101)]
    assert rates[0] == pytest.approx(2e-6)
    assert rates[100] == max(rates) == 2e-4
    assert rates[600] == pytest.approx(1e-4)
    assert rates[1100] == pytest.approx(0, abs=1e-18)
    assert all(a < b for a, b in pairwise(rates[:101]))
    assert all(a > b for a, b in pairwise(rates[100:]))


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "constant"])
@pytest.mark.parametrize("steps", [1, 5, 90, 91, 200])
def test_short_runs_have_a_rate_at_every_step(schedule: str, steps: int) -> None:
    for warm_up in (0, 1, 1000):
        config = OptimiserConfig(peak=1e-3, schedule=schedule, warm_up=warm_up)  # type: ignore[arg-type]
        assert all(0 < learning_rate(step, steps, config) <= 1e-3 for step in range(steps))


def test_the_optimiser_takes_what_the_config_says() -> None:
    config = OptimiserConfig(peak=3e-4, betas=(0.8, 0.9), eps=1e-7, weight_decay=0.1)
    optimiser = make_optimiser(tiny(), config)
    assert [(g["weight_decay"], g["betas"], g["eps"]) for g in optimiser.param_groups] == [
        (0.1, (0.8, 0.9), 1e-7),
        (0.0, (0.8, 0.9), 1e-7),
    ]
    set_learning_rate(optimiser, 7e-5)
    assert [g["lr"] for g in optimiser.param_groups] == [7e-5, 7e-5]


def test_frozen_parameters_are_left_out() -> None:
    model = tiny()
    model.decoder.weight.requires_grad_(False)
    assert all(p is not model.decoder.weight for g in parameter_groups(model, 0.05) for p in g["params"])


def one_weight(value: float) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def test_average_follows_the_warm_start() -> None:
    """Kept shares 0.1, 2/11, 0.25, 0.25, ... with a decay of 0.25."""
    average, expected = Average(one_weight(1.0), decay=0.25), 1.0
    for n, value in enumerate([2.0, 5.0, -3.0, 4.0]):
        average.update(one_weight(value))
        keep = min(0.25, (1 + n) / (10 + n))
        expected = keep * expected + (1 - keep) * value
    assert average.weights["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_averaged_weights_are_lent_to_the_network() -> None:
    model = one_weight(1.0)
    average = Average(model, decay=0.9)
    nn.init.constant_(model.weight, 11.0)
    average.update(model)
    with pytest.raises(ValueError, match="inside"), average.applied(model):
        assert model.weight.item() == pytest.approx(10.0)
        raise ValueError("inside")
    assert model.weight.item() == 11.0
    assert model.weight.requires_grad


def test_average_survives_a_file() -> None:
    model = tiny()
    average = Average(model, decay=0.99)
    nn.init.ones_(model.decoder.weight)
    average.update(model)
    file = io.BytesIO()
    torch.save(average.state_dict(), file)
    file.seek(0)
    restored = Average(tiny(), decay=0.99)
    restored.load_state_dict(torch.load(file, weights_only=True))
    for one in (average, restored):
        one.update(model)
    assert restored.updates == 2
    for name, x in average.weights.items():
        assert torch.equal(x, restored.weights[name])


def test_average_of_another_network_is_refused() -> None:
    other = Average(ILRM(ILRMConfig(width=16, head_width=16, layers=2, patch_size=4)), decay=0.9)
    with pytest.raises(WeightsError, match=r"another network.*differ"):
        Average(tiny(), decay=0.9).load_state_dict(other.state_dict())


@pytest.mark.parametrize("values", [{"peak": 0}, {"betas": (0.9, 1.0)}, {"ema": 1.0}, {"clip": -1}, {"warm_up": -1}])
def test_impossible_optimisers_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        OptimiserConfig(**values)  # type: ignore[arg-type]
