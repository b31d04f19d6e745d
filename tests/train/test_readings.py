"""Numbers that stay on the device until some steps are done, forced on the CPU: the run is the same run."""

from __future__ import annotations

import math
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import pytest
import torch
from torch import Tensor

from ilrm.core.errors import ConfigError, TrainingError
from ilrm.model import ComputeConfig, MatchingConfig
from ilrm.render.gsplat_cuda import draw
from ilrm.train import run as run_module
from ilrm.train.checkpoint import Progress, read_checkpoint
from ilrm.train.config import NORMS_KEPT, LossConfig
from ilrm.train.engine import train
from ilrm.train.log import StepRecord
from ilrm.train.optim import make_optimiser
from ilrm.train.readings import NormWindow
from ilrm.train.run import Run
from tests.devices.launches import NothingFromTheHost
from tests.devices.test_devices import rasterization
from tests.train.runs import MODEL, rows, tiny
from tests.train.test_engine import poisoned, same_state, unusable, with_batches


@pytest.fixture(autouse=True)
def _made_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    with_batches(monkeypatch, lambda step, batch: batch)


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimiser of the device's way where every step is read, too: only when numbers are read differs."""
    monkeypatch.setattr(run_module, "make_optimiser", lambda *a, **_: make_optimiser(*a, fused=True))


@pytest.mark.usefixtures("fused")
def test_reading_later_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, moments, averages, counters and log, with a step that is left out and items that are broken."""

    def change(step: int, batch: Any) -> Any:
        return unusable(3)(step, poisoned({2})(step, batch))

    with_batches(monkeypatch, change)
    config = tiny(steps=7, save_every=3)
    records: dict[int, list[StepRecord]] = {1: [], 4: []}
    for read_every, seen in records.items():
        train(replace(config, read_every=read_every), tmp_path / str(read_every), on_step=seen.append)
    first, second = tmp_path / "1", tmp_path / "4"
    assert [row["skipped"] for row in rows(first)] == ["0", "0", "1", "1", "1", "1", "1"]
    assert rows(first) == rows(second)
    assert rows(first, "problems.csv") == rows(second, "problems.csv")
    assert same_state(first / "last", second / "last")
    assert [r.step for r in records[4]] == [r.step for r in records[1]]
    assert read_checkpoint(second / "last").progress.seen == 7 * 2 + 3


def test_it_is_nearly_the_same_as_without_the_fused_optimiser(tmp_path: Path) -> None:
    for read_every in (1, 4):
        train(tiny(read_every=read_every), tmp_path / str(read_every))
    for row, expected in zip(rows(tmp_path / "4"), rows(tmp_path / "1"), strict=True):
        assert {k: float(v) for k, v in row.items()} == pytest.approx(
            {k: float(v) for k, v in expected.items()}, rel=1e-4
        )


def test_continued_run_is_the_same_run(tmp_path: Path) -> None:
    config = tiny(steps=8, read_every=3)
    train(config, tmp_path / "whole")
    for steps in (4, 8):
        train(replace(config, steps=steps), tmp_path / "parts")
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    assert same_state(tmp_path / "parts" / "last", tmp_path / "whole" / "last")


@pytest.mark.usefixtures("fused")
def test_run_that_stays_not_finite_stops_at_the_same_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_batches(monkeypatch, poisoned({2, 3, 4, 5, 6}))
    for read_every in (1, 5):
        with pytest.raises(TrainingError, match=r"3 steps in a row, up to step 5"):
            train(tiny(steps=12, save_every=2, non_finite=3, read_every=read_every), tmp_path / str(read_every))
    assert rows(tmp_path / "1") == rows(tmp_path / "5")
    assert len(rows(tmp_path / "5")) == 5


def test_signal_stops_between_readings(tmp_path: Path) -> None:
    def ask(record: StepRecord) -> None:
        if record.step == 1:  # the first step of a call is read at once
            os.kill(os.getpid(), signal.SIGTERM)

    result = train(tiny(steps=90, read_every=50), tmp_path, on_step=ask)
    assert (result.step, result.stopped_by) == (2, "signal")
    assert read_checkpoint(tmp_path / "last").progress.step == 2


# --- host reads -----------------------------------------------------------------------------------------------------


READS = ("item", "tolist", "__float__", "__int__", "__bool__", "__index__")


@contextmanager
def counted_reads() -> Iterator[Counter[str]]:
    """Where this thread asks tensors for values, and how often."""
    counts: Counter[str] = Counter()

    def counting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Tensor, *arguments: Any) -> Any:
            frame = sys._getframe(1)
            if current_thread() is main_thread():
                counts[f"{name} at {frame.f_code.co_filename}:{frame.f_lineno}"] += 1
            return original(self, *arguments)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in READS:
            patch.setattr(Tensor, name, counting(name, getattr(Tensor, name)))
        yield counts


def test_nothing_is_read_between_readings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's rasteriser reads cameras, so it is replaced by something that has a gradient."""
    found: list[Counter[str]] = []
    take = Run.step

    def rendered(gaussians: Any, batch: Any) -> Tensor:
        return torch.zeros_like(batch.target_images) + gaussians.map(lambda x: x).opacities.mean()

    def step(self: Run) -> None:
        with counted_reads() as counts:
            take(self)
        found.append(counts)

    monkeypatch.setattr("ilrm.train.losses.render_targets", rendered)
    monkeypatch.setattr(Run, "step", step)
    first = next(run_module.batches(tiny()))
    with_batches(monkeypatch, lambda number, batch: first)
    # Which tokens a mini-batch takes is worked out on the CPU, on any device.
    config = tiny(steps=6, read_every=6, compute=ComputeConfig())
    train(replace(config, optimiser=replace(config.optimiser, outlier=5.0)), tmp_path / "later")
    assert found == [{}] * 6
    found.clear()
    train(tiny(steps=2, read_every=1), tmp_path / "each")
    assert all(found)  # the count can count


def test_a_step_takes_nothing_from_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All parts of a network and losses, with gsplat's arguments; on a GPU a copy to it waits as a reading does."""
    channels = ("origin", "direction", "moment", "rgb", "match", "consistency")
    matching = MatchingConfig(planes=16, channels=4, fine=4)
    config = tiny(
        model=replace(MODEL, image_channels=channels, matching=matching, camera_encoding="prope", pixel_head=4),
        loss=LossConfig(depth=0.1, points=0.1, opacity=0.1, scale=0.1, matching=0.1),
        compute=ComputeConfig(),
        steps=4,
        read_every=4,
        validation=None,
    )
    config = replace(config, optimiser=replace(config.optimiser, outlier=5.0))
    take, checked = Run.step, []

    def rendered(gaussians: Any, batch: Any) -> Tensor:
        here = partial(rasterization, device=torch.device("cpu"))
        return draw(here, gaussians, batch.target_cameras, torch.ones(3), 0.01, 10.0)[0]

    def step(self: Run) -> None:
        with NothingFromTheHost(torch.device("cpu")) if self.steps_taken else nullcontext():  # moments are made first
            take(self)
        checked.append(self.steps_taken)

    monkeypatch.setattr("ilrm.train.losses.render_targets", rendered)
    monkeypatch.setattr(Run, "step", step)
    batch = next(run_module.batches(config))
    monkeypatch.setattr(run_module, "batches", lambda *_, **__: repeat(batch))
    train(config, tmp_path)
    assert checked == [1, 2, 3, 4]


# --- gradient norms -------------------------------------------------------------------------------------------------


def test_norms_that_stand_out() -> None:
    window = NormWindow(3.0, [], torch.device("cpu"))

    def ask(norm: float) -> bool:
        value = torch.tensor(norm, dtype=torch.float64)
        return bool(window.stands_out(value, value.isfinite()))

    assert not any(ask(1.0 if k else 100.0) for k in range(16))  # too few to know
    assert ask(3.1)
    assert not ask(2.9)
    assert not ask(math.nan)
    assert not ask(math.inf)
    for _ in range(NORMS_KEPT):
        ask(1.0)
    # Where norms become larger for good, the median follows.
    assert [ask(10.0) for _ in range(40)] == [True] * 33 + [False] * 7


def test_window_goes_on_where_it_was() -> None:
    generator = torch.Generator().manual_seed(0)
    norms = (torch.rand(90, generator=generator, dtype=torch.float64) ** 4).tolist()
    whole, found = NormWindow(4.0, [], torch.device("cpu")), []
    for norm in norms:
        found.append(bool(whole.stands_out(torch.tensor(norm, dtype=torch.float64), torch.tensor(True))))
    for start in (5, 40, 80):
        resumed = NormWindow(4.0, norms[:start][-NORMS_KEPT:], torch.device("cpu"))
        again = [
            bool(resumed.stands_out(torch.tensor(n, dtype=torch.float64), torch.tensor(True))) for n in norms[start:]
        ]
        assert again == found[start:]
    assert any(found)


def louder(steps: set[int], factor: float) -> Any:
    """Photos far from what a network draws have larger gradients."""

    def change(step: int, batch: Any) -> Any:
        return replace(batch, images=batch.images * factor) if step in steps else batch

    return change


@pytest.mark.parametrize("read_every", [1, 6])
def test_step_that_stands_out_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_every: int) -> None:
    states: dict[int, dict[str, Tensor]] = {}

    def remember(record: StepRecord) -> None:
        if record.step >= 17:
            states[record.step] = read_checkpoint(tmp_path / "last").tensors

    with_batches(monkeypatch, louder({17}, 1000.0))
    config = tiny(steps=20, read_every=read_every, validation=None)
    config = replace(config, optimiser=replace(config.optimiser, outlier=50.0))
    if read_every == 1:
        train(replace(config, save_every=1), tmp_path, on_step=remember)
        assert all(torch.equal(x, states[18][name]) for name, x in states[17].items())
        assert any(not torch.equal(x, states[19][name]) for name, x in states[18].items())
    else:
        train(replace(config, steps=17), tmp_path)
        train(config, tmp_path)
    log = rows(tmp_path)
    assert [row["outliers"] for row in log] == ["0"] * 17 + ["1"] * 3
    assert {row["skipped"] for row in log} == {"0"}
    progress = read_checkpoint(tmp_path / "last").progress
    assert (progress.outliers, progress.skipped) == (1, 0)
    assert [f"{norm:.9g}" for norm in progress.norms] == [row["grad_norm"] for row in log]


def test_gradient_norms_of_terms(tmp_path: Path) -> None:
    config = tiny(term_norms=2, accumulate=1)
    train(config, tmp_path)
    for row in rows(tmp_path):
        if int(row["step"]) % 2:
            assert row["norm_mse"] == row["norm_depth"] == ""
            continue
        total, mse, depth = (float(row[name]) for name in ("grad_norm", "norm_mse", "norm_depth"))
        assert abs(mse - depth) * 0.999 <= total <= 1.001 * (mse + depth)
    alone = replace(config, loss=replace(config.loss, depth=0.0))
    train(alone, tmp_path / "alone")
    row = rows(tmp_path / "alone")[1]
    assert float(row["norm_mse"]) == pytest.approx(float(row["grad_norm"]), rel=1e-5)


def test_measuring_norms_changes_nothing(tmp_path: Path) -> None:
    for term_norms in (0, 1):
        train(tiny(steps=3, term_norms=term_norms), tmp_path / str(term_norms))
    plain, measured = (read_checkpoint(tmp_path / name / "last").tensors for name in "01")
    assert all(torch.equal(x, measured[name]) for name, x in plain.items())


# --- early stop -----------------------------------------------------------------------------------------------------


def test_run_stops_where_validation_stands_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([20.0, 21.0, 20.5, 20.9, 20.8])
    scored = run_module.validate

    def validate(*arguments: Any) -> Any:
        return replace(scored(*arguments), psnr=next(scores))

    monkeypatch.setattr(run_module, "validate", validate)
    config = tiny(steps=20, validate_every=2, patience=2)
    # Stopped between two validations, the count goes on.
    assert train(replace(config, steps=20), tmp_path, minutes=1e-9).step == 1
    result = train(config, tmp_path)
    assert (result.step, result.stopped_by, result.best_psnr) == (8, "validation", 21.0)
    progress = read_checkpoint(tmp_path / "last").progress
    assert (progress.step, progress.stale) == (8, 2)
    assert read_checkpoint(tmp_path / "best").progress.step == 4
    again = train(config, tmp_path)
    assert (again.step, again.steps_now, again.stopped_by) == (8, 0, "validation")
    more = train(replace(config, patience=3), tmp_path)
    assert (more.step, more.steps_now, more.stopped_by) == (10, 2, "validation")


def test_patience_needs_validations() -> None:
    with pytest.raises(ConfigError, match="patience = 2 counts validations, and this run has none"):
        tiny(patience=2)
    with pytest.raises(ConfigError, match=r"outlier = 0\.5"):
        replace(tiny().optimiser, outlier=0.5)
    with pytest.raises(ConfigError, match="100 norms"):
        Progress(norms=(1.0,) * 100)
