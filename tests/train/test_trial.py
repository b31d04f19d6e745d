"""The cost of a run, from real measured steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ilrm.model import ILRM
from ilrm.train import trial
from ilrm.train.config import LossConfig, Spread, Stage
from ilrm.train.trial import try_out
from tests.train.runs import STAGE, tiny


def test_it_is_about_the_run() -> None:
    later = replace(STAGE, start=3, batch=6, sampler=Spread(inputs=(2, 4), targets=2))
    config = tiny(stages=(STAGE, later), steps=10, accumulate=2)
    found = try_out(config)
    assert found.parameters == ILRM(config.model).parameter_count()
    assert [stage.steps for stage in found.stages] == [3, 7]
    assert [(stage.inputs, stage.targets) for stage in found.stages] == [(3, 1), (4, 2)]
    assert [stage.samples for stage in found.stages] == [1, 3]
    assert [stage.gaussians for stage in found.stages] == [3 * 256, 4 * 256]
    assert found.seconds == pytest.approx(sum(stage.steps * stage.seconds for stage in found.stages))
    assert found.memory_bytes is not None
    assert found.memory_bytes > 16 * found.parameters
    assert [stage.samples for stage in try_out(config, world_size=2).stages] == [1, 2]


def test_seconds_are_those_of_all_samples_and_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU one sample is measured; a step has 3 parts of 2 samples."""
    monkeypatch.setattr(trial, "_seconds", lambda step, device: 2.0)
    found = try_out(tiny(stages=(replace(STAGE, batch=6),), steps=10, accumulate=3))
    assert found.stages[0].seconds == 3 * 2 * 2.0
    assert found.seconds == 10 * 12.0


def test_the_first_step_warms_up(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 9.0, 10.0, 11.0, 20.0, 23.0])
    monkeypatch.setattr(trial.time, "perf_counter", lambda: next(times))
    assert trial._seconds(lambda: None, torch.device("cpu")) == 2.0  # of 1 and 3, without the 9


@pytest.mark.parametrize("loss", [LossConfig(perceptual="vgg"), LossConfig(depth=0.1, iterations=0.5)])
def test_all_terms_take_part(loss: LossConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    terms: list[set[str]] = []
    inner = trial.losses

    def losses(*arguments: object, **options: object) -> object:
        found = inner(*arguments, **options)  # type: ignore[arg-type]
        terms.append(set(found.terms))
        return found

    monkeypatch.setattr(trial, "losses", losses)
    stage = Stage((32, 32), 1, Spread(inputs=(2,), targets=1), STAGE.sources)
    try_out(tiny(stages=(stage,), loss=loss))
    wanted = {"mse", *(name for name in ("depth", "iterations") if getattr(loss, name) > 0)}
    assert terms == [wanted | ({"perceptual"} if loss.perceptual else set())] * 3


def test_a_slow_first_step_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_LONGEST_S", 0.0)
    calls: list[int] = []
    assert trial._seconds(lambda: calls.append(1), torch.device("cpu")) >= 0
    assert calls == [1]
