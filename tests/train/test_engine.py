"""The training loop learns, can be stopped at any step, and reports what went wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from ilrm.core.errors import ConfigError, MissingExtraError, OutputError, SceneError, TrainingError, WeightsError
from ilrm.model import ILRM, ComputeConfig
from ilrm.train import run as run_module
from ilrm.train.checkpoint import read_checkpoint
from ilrm.train.config import Chunks, TrainConfig
from ilrm.train.data.batch import Batch, Problem
from ilrm.train.data.loader import batches
from ilrm.train.engine import train
from ilrm.train.log import StepRecord
from ilrm.train.serialise import to_json
from tests.conftest import PATIENCE_S
from tests.train.data.sets import write_chunk_set
from tests.train.runs import MODEL, STAGE, rows, tiny


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight steps without a pause."""
    output = tmp_path_factory.mktemp("whole") / "out"
    train(tiny(steps=8), output)
    return output


def same_state(first: Path, second: Path) -> bool:
    """Whether two checkpoints hold the same bits, besides seconds."""
    a, b = read_checkpoint(first), read_checkpoint(second)
    return replace(a.progress, seconds=0) == replace(b.progress, seconds=0) and all(
        torch.equal(x, b.tensors[name]) for name, x in a.tensors.items()
    )


def test_run_leaves_everything(tmp_path: Path) -> None:
    records: list[StepRecord] = []
    config = tiny(save_every=3, keep_every=2, validate_every=2)
    result = train(config, tmp_path, on_step=records.append)
    assert (result.step, result.steps_now, result.stopped_by, result.is_first) == (4, 4, "steps", True)
    assert result.last == records[-1]
    assert [r.step for r in records] == [1, 2, 3, 4]
    files = {"last", "best", "step_2", "step_4", "config.json", "log.csv", "validation.csv", "problems.csv"}
    assert {p.name for p in tmp_path.iterdir()} == files | {"weights", "validation", "tensorboard"}
    assert sorted(p.name for p in (tmp_path / "validation").iterdir()) == ["step_2.png", "step_4.png"]
    scores = rows(tmp_path, "validation.csv")
    assert [row["step"] for row in scores] == ["2", "4"]
    assert result.best_psnr == pytest.approx(max(float(row["psnr"]) for row in scores), abs=1e-6)
    best = read_checkpoint(tmp_path / "best").progress
    assert best.step == int(max(scores, key=lambda row: float(row["psnr"]))["step"])


def test_log_adds_up(whole: Path) -> None:
    for row in rows(whole):
        terms = float(row["mse"]) + 0.1 * float(row["depth"])
        assert float(row["loss"]) == pytest.approx(terms, rel=1e-5)
    with (whole / "log.csv").open() as file:
        header = file.readline()
    assert header.startswith("step,loss,psnr,lr,scenes_per_s,seconds,data_wait,grad_norm,inputs,")


PINNED = [0.0473008, 0.113041, 0.143703, 0.0888546]


def test_first_losses_are_pinned(whole: Path) -> None:
    """Recorded from this same run; a difference means that data, network, loss or optimiser have changed."""
    losses = [float(row["loss"]) for row in rows(whole)]
    assert losses[:4] == pytest.approx(PINNED, rel=2e-3)


def test_weights_are_the_averaged_ones(whole: Path) -> None:
    exported = ILRM.from_pretrained(whole / "weights")
    stored = read_checkpoint(whole / "last").tensors
    assert exported.config == MODEL
    for name, x in exported.state_dict().items():
        assert torch.equal(x, stored[f"average.{name}"])
        assert not torch.equal(x, stored[f"network.{name}"])


def test_continued_run_is_the_same_run(whole: Path, tmp_path: Path) -> None:
    """Weights, moments, averages, losses: bit for bit, with tokens that are drawn at random in every step."""
    for steps in (3, 8):
        result = train(tiny(steps=steps), tmp_path)
    assert result.steps_now == 5
    assert rows(tmp_path) == rows(whole)
    assert same_state(tmp_path / "last", whole / "last")


def test_complete_run_is_left_alone(whole: Path) -> None:
    before = {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()}
    result = train(tiny(steps=8), whole)
    assert (result.step, result.steps_now, result.last) == (8, 0, None)
    assert {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()} == before


KILLED = """
import os, random, signal, sys, threading
from ilrm.train.engine import train
from ilrm.train.serialise import from_json

draw = random.Random(11)
step, delay = draw.randrange(3, 6), 0.05 * draw.random()

def die(record):
    if record.step == step:
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

train(from_json(sys.argv[1]), sys.argv[2], on_step=die)
"""


@pytest.mark.slow
def test_killed_run_goes_on_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    """Killed somewhere in a step, some steps after the last checkpoint."""
    config = tiny(steps=8, save_every=2)
    output, file = tmp_path / "killed", tmp_path / "config.json"
    to_json(config, file)
    process = [sys.executable, "-c", KILLED, str(file), str(output)]
    # As many threads as here: their number decides the order in which gradients are summed.
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "NUMBA_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(process, env=os.environ | threads, stderr=subprocess.PIPE, timeout=PATIENCE_S)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert read_checkpoint(output / "last").progress.step in (2, 4, 6)
    train(config, output)
    assert rows(output) == rows(whole)
    assert same_state(output / "last", whole / "last")


@pytest.mark.parametrize(
    "change",
    [{"accumulate": 2}, {"compute": ComputeConfig("random", checkpoint=True)}, {"workers": 1}],
    ids=lambda change: next(iter(change)),
)
def test_how_a_step_is_computed_does_not_change_it(whole: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    train(tiny(steps=5, **change), tmp_path)
    for row, expected in zip(rows(tmp_path), rows(whole)[:5], strict=True):
        assert {k: float(v) for k, v in row.items()} == pytest.approx(
            {k: float(v) for k, v in expected.items()}, rel=1e-4
        )


@pytest.mark.slow
def test_compiled_run_is_the_same(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradient; traced, but not translated into C++, which takes minutes."""
    compiled = []
    compile_network = ILRM.compile

    def compile_here(network: ILRM, *, device: torch.device) -> None:
        compiled.append((network, device))
        compile_network(network, backend="eager", device=device)

    monkeypatch.setattr(ILRM, "compile", compile_here)
    train(tiny(steps=1, compile=True, validation=None), tmp_path)
    assert len(compiled) == 1
    (row,), expected = rows(tmp_path), rows(whole)[0]
    for name in ("loss", "grad_norm"):
        assert float(row[name]) == pytest.approx(float(expected[name]), rel=1e-5)


def test_bf16_is_nearly_the_same(whole: Path, tmp_path: Path) -> None:
    train(tiny(steps=2, precision="bf16"), tmp_path)
    for row, expected in zip(rows(tmp_path), rows(whole)[:2], strict=True):
        assert float(row["loss"]) == pytest.approx(float(expected["loss"]), rel=0.05)
    assert rows(tmp_path)[1]["loss"] != rows(whole)[1]["loss"]


# --- what can go wrong ----------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def four_batches() -> tuple[Batch, ...]:
    """Making them takes far longer than a step of so small a network."""
    return tuple(islice(batches(tiny()), 4))


def with_batches(monkeypatch: pytest.MonkeyPatch, change: Callable[[int, Batch], Batch]) -> None:
    """Train on ``change(step from 0, batch)``, with the batches of the first four steps again and again."""

    def changed(config: TrainConfig, *, start_step: int = 0, **_: Any) -> Iterator[Batch]:
        made = four_batches()
        for step in range(start_step, config.steps):
            yield change(step, made[step % len(made)])

    monkeypatch.setattr(run_module, "batches", changed)


def poisoned(steps: set[int]) -> Any:
    def change(step: int, batch: Batch) -> Batch:
        return replace(batch, images=batch.images * float("nan")) if step in steps else batch

    return change


def test_step_that_is_not_finite_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = []

    def remember(record: StepRecord) -> None:
        states.append(read_checkpoint(tmp_path / "last").tensors)

    with_batches(monkeypatch, poisoned({1}))
    train(tiny(save_every=1), tmp_path, on_step=remember)
    log = rows(tmp_path)
    assert [row["skipped"] for row in log] == ["0", "1", "1", "1"]
    assert log[1]["loss"] == "nan"
    assert all(torch.equal(x, states[1][name]) for name, x in states[0].items())
    assert any(not torch.equal(x, states[2][name]) for name, x in states[1].items())


def test_run_that_stays_not_finite_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_batches(monkeypatch, poisoned({3, 4, 5, 6}))
    with pytest.raises(TrainingError, match=r"3 steps in a row, up to step 6") as caught:
        train(tiny(steps=9, save_every=2, non_finite=3), tmp_path)
    assert f"the last good checkpoint is {tmp_path / 'last'}" in caught.value.problem
    assert all(torch.isfinite(x).all() for x in read_checkpoint(tmp_path / "last").tensors.values())


def unusable(share: int, broken: bool = True) -> Any:
    def change(step: int, batch: Batch) -> Batch:
        problem = Problem(f"scene_{step}", "chunks/7.torch", "cut short, sadly", broken=broken)
        return replace(batch, problems=(problem,)) if step % share == 0 else batch

    return change


def test_too_many_broken_items_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_batches(monkeypatch, unusable(1))
    with pytest.raises(SceneError, match=r"17 of 51 items are broken") as caught:
        train(tiny(steps=40), tmp_path)
    assert "scene_16 in chunks/7.torch: cut short, sadly" in caught.value.problem
    assert "problems.csv" in caught.value.fix
    assert len(rows(tmp_path, "problems.csv")) == 17


def test_sequences_too_short_for_the_sampler_never_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_batches(monkeypatch, unusable(1, broken=False))
    assert train(tiny(steps=20), tmp_path).step == 20
    assert rows(tmp_path)[-1]["unusable"] == "20"


def test_few_broken_items_are_counted_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_batches(monkeypatch, unusable(3))
    for steps in (3, 5):
        train(tiny(steps=steps), tmp_path)
    assert [row["unusable"] for row in rows(tmp_path)] == ["1", "1", "1", "2", "2"]
    assert [(row["step"], row["scene"], row["reason"]) for row in rows(tmp_path, "problems.csv")] == [
        ("1", "scene_0", "cut short, sadly"),
        ("4", "scene_3", "cut short, sadly"),
    ]


def test_time_budget_stops_with_a_checkpoint(whole: Path, tmp_path: Path) -> None:
    result = train(tiny(steps=8), tmp_path, minutes=1e-9)
    assert (result.step, result.stopped_by) == (1, "minutes")
    assert read_checkpoint(tmp_path / "last").progress.step == 1
    result = train(tiny(steps=8), tmp_path, minutes=5)
    assert (result.step, result.stopped_by) == (8, "steps")
    assert rows(tmp_path) == rows(whole)


def test_signal_finishes_the_step_and_saves(tmp_path: Path) -> None:
    def ask(record: StepRecord) -> None:
        if record.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    result = train(tiny(steps=8), tmp_path, on_step=ask)
    assert (result.step, result.stopped_by, result.signal) == (3, "signal", signal.SIGTERM)
    assert read_checkpoint(tmp_path / "last").progress.step == 3
    assert signal.getsignal(signal.SIGTERM) is before


def test_second_signal_stops_at_once(tmp_path: Path) -> None:
    def ask(record: StepRecord) -> None:
        if record.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tiny(steps=8, save_every=1), tmp_path, on_step=ask)
    assert read_checkpoint(tmp_path / "last").progress.step == 2


def test_another_run_is_refused_and_left_alone(whole: Path) -> None:
    before = (whole / "last").read_bytes(), (whole / "log.csv").read_bytes()
    with pytest.raises(ConfigError, match="seed: 3 there, 4 now"):
        train(tiny(steps=8, seed=4), whole)
    assert ((whole / "last").read_bytes(), (whole / "log.csv").read_bytes()) == before


def test_damaged_checkpoint_is_refused_and_left_alone(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "last").write_bytes((whole / "last").read_bytes()[:10_000])
    with pytest.raises(WeightsError, match="cannot be read"):
        train(tiny(), tmp_path)
    assert (tmp_path / "last").stat().st_size == 10_000


def test_output_is_checked_first(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(OutputError, match=r"holds other things \(photos\) and no training run"):
        train(tiny(), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="in this path is a file"):
        train(tiny(), tmp_path / "file" / "out")


@pytest.mark.parametrize(("place", "relation"), [(".", "is"), ("run", "lies in"), ("..", "contains")])
def test_output_is_apart_from_the_data(place: str, relation: str, tmp_path: Path) -> None:
    data = write_chunk_set(tmp_path / "data")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match=f"{relation} .*, which this command reads"):
        train(tiny(stages=(replace(STAGE, sources=(Chunks(data),)),), validation=None), data / place)
    assert sorted(tmp_path.rglob("*")) == before


def test_batch_must_divide(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not divide"):
        train(tiny(accumulate=3), tmp_path)


def test_missing_fabric_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lightning_fabric", None)
    with pytest.raises(MissingExtraError, match=r"lightning-fabric") as caught:
        train(tiny(), tmp_path / "out")
    assert "ilrm[train]" in caught.value.fix
    assert not (tmp_path / "out").exists()


def test_initial_weights(whole: Path, tmp_path: Path) -> None:
    """A first step with a rate of nearly nothing leaves them as they were."""
    still = replace(tiny().optimiser, peak=1e-30, weight_decay=0.0, ema=0.0)
    train(tiny(steps=1, initial_weights=str(whole / "weights"), optimiser=still), tmp_path / "out")
    stored = read_checkpoint(tmp_path / "out" / "last").tensors
    given = ILRM.from_pretrained(whole / "weights").state_dict()
    assert all(torch.equal(stored[f"network.{name}"], x) for name, x in given.items())
    with pytest.raises(ConfigError, match="another network; these fields differ: layers"):
        train(tiny(model=replace(MODEL, layers=2), initial_weights=str(whole / "weights")), tmp_path / "other")


def test_training_learns(tmp_path: Path) -> None:
    """On one batch that is repeated the error falls."""
    config = tiny(steps=30, compute=ComputeConfig(), stages=(replace(STAGE, flip=False),))
    first = next(batches(config))

    with pytest.MonkeyPatch.context() as patch:
        with_batches(patch, lambda step, batch: first)
        train(config, tmp_path)
    errors = [float(row["mse"]) for row in rows(tmp_path)]
    assert sum(errors[-3:]) < 0.6 * sum(errors[:3])
