"""The training loop: one process or many, to be stopped and continued anywhere."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType

from ilrm.core.errors import OutputError
from ilrm.core.precision import exact_fp32
from ilrm.files import check_apart, check_writable, paths
from ilrm.train.checkpoint import LAST, Checkpoint, check_same_run, read_checkpoint
from ilrm.train.config import Procedural, TrainConfig
from ilrm.train.data.loader import worker_deaths_explained
from ilrm.train.distributed import StrategyName, launch, together
from ilrm.train.log import StepRecord
from ilrm.train.run import CONFIG, Run, StoppedBy


@dataclass(frozen=True)
class TrainResult:
    """How a call of ``train`` ended.

    Attributes:
        step: optimiser steps done, over all calls.
        steps_now: in this call.
        seconds: spent on the run over all calls, without start-up.
        stopped_by: "steps" (the run is complete), "minutes", "signal" (Ctrl-C or SIGTERM), or "validation" (as many
            validations as ``config.patience`` in a row were no better).
        signal: its number.
        last: the record of the last step; None if there was nothing left to do.
        best_psnr: of all validations, in dB.
        is_first: whether this is the process that speaks for all.
    """

    step: int
    steps_now: int
    seconds: float
    stopped_by: StoppedBy
    signal: int | None
    last: StepRecord | None
    best_psnr: float | None
    is_first: bool


def train(
    config: TrainConfig,
    output: Path | str,
    *,
    minutes: float | None = None,
    devices: int = 1,
    nodes: int = 1,
    strategy: StrategyName = "auto",
    on_step: Callable[[StepRecord], None] | None = None,
) -> TrainResult:
    """Train, or continue the run that ``output`` holds.

    The folder gets ``last`` (the checkpoint to continue from), ``best`` (by validation PSNR), ``step_N``, ``weights/``
    (for ``ILRM.from_pretrained``; averaged, if the config averages), ``config.json``, ``log.csv``, ``validation.csv``,
    ``validation/``, ``problems.csv`` and ``tensorboard/``. All random draws of a step come from (seed, step): a
    continued run is the same as one that was never stopped. torch's global generator is seeded for that.

    Args:
        minutes: stop, with a checkpoint, before this call has lasted so long.
        devices, nodes: there is one process for each device of each node; see ``ilrm.train.distributed``.
        strategy: "auto" is one process, or DDP.
        on_step: called in the first process for every step, once its numbers are read (see ``config.read_every``).

    Raises:
        ConfigError: ``output`` holds another run; a batch that does not divide into the processes.
        WeightsError: its checkpoint is damaged; initial weights that cannot be used.
        OutputError: a file cannot be written. What was there before is still usable.
        SceneError: data that cannot be used, or too many broken items.
        TrainingError: loss or gradient were not finite for too many steps in a row.
        MissingExtraError: without Lightning Fabric.
    """
    deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
    output = Path(output)
    with _nothing_empty_left(output), launch(devices, nodes, strategy) as fabric:
        together(fabric, lambda: _open_output(output, config), first_only=True)
        stored = together(fabric, lambda: _stored(output, config))
        run = Run(fabric, config, output, stored)
        first_step, record = run.progress.step, None
        stopped_by: StoppedBy = "validation" if run.has_no_patience and first_step < config.steps else "steps"
        # Gradients are computed outside of the network's own context.
        exact = exact_fp32() if config.precision == "fp32" else nullcontext()
        with worker_deaths_explained(), closing(run), exact, _Signals() as signals:
            if first_step < config.steps and stopped_by == "steps":
                run.open()
            while run.steps_taken < config.steps and stopped_by == "steps":
                run.step()
                step, complete = run.steps_taken, run.steps_taken == config.steps
                keep, validates = _due(step, config.keep_every), complete or _due(step, config.validate_every)
                saves = validates or keep or _due(step, config.save_every)
                asked, late = signals.asked is not None, time.monotonic() + run.reserve > deadline
                # Several processes agree where they read, which is after the same steps in all of them.
                if not (saves or run.must_read or (fabric.world_size == 1 and (asked or late))):
                    continue
                records = run.read()
                record = records[-1]
                late = time.monotonic() + run.reserve > deadline
                stopped_by = run.agree_to_stop(signals.asked is not None, late)
                if saves or stopped_by != "steps":
                    run.save(best=False, keep=keep)
                if validates:  # after saving: what fails here costs no step
                    better = run.validate()
                    if better or config.patience:
                        run.save(best=better, keep=keep)
                    if run.has_no_patience and stopped_by == "steps" and not complete:
                        stopped_by = "validation"
                for read in records if on_step is not None and fabric.is_global_zero else ():
                    on_step(read)  # pyright: ignore[reportOptionalCall]
        return TrainResult(
            step=run.progress.step,
            steps_now=run.progress.step - first_step,
            seconds=run.progress.seconds,
            stopped_by=stopped_by,
            signal=signals.asked,
            last=record,
            best_psnr=run.progress.best_psnr,
            is_first=fabric.is_global_zero,
        )


@contextmanager
def _nothing_empty_left(output: Path) -> Iterator[None]:
    """Remove the folder again if a failure left nothing in it."""
    try:
        yield
    except BaseException:
        with suppress(OSError):  # not empty, or never made
            output.rmdir()
        raise


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _open_output(output: Path, config: TrainConfig) -> None:
    """Find out now whether results can be written, and refuse a folder of something else or among the data."""
    check_apart(output, _read_paths(config))
    check_writable(output)
    others = [entry.name for entry in paths.entries(output) if not entry.name.startswith(".")]
    if others and CONFIG not in others:
        raise OutputError(
            f"{output} holds other things ({', '.join(sorted(others)[:3])}) and no training run.",
            expected="a folder that is new, empty, or of the run to be continued",
            fix="choose another folder",
        )


def _read_paths(config: TrainConfig) -> Iterator[Path]:
    """Folders and files that the run reads."""
    stages = (*config.stages, *((config.validation,) if config.validation is not None else ()))
    for source in (source for stage in stages for source in stage.sources):
        if not isinstance(source, Procedural):
            yield source.path
    if config.initial_weights is not None and paths.exists(Path(config.initial_weights)):
        yield Path(config.initial_weights)


def _stored(output: Path, config: TrainConfig) -> Checkpoint | None:
    """The checkpoint to continue from, if there is one and it is of this run."""
    if not paths.exists(output / LAST):
        return None
    checkpoint = read_checkpoint(output / LAST)
    check_same_run(checkpoint.config, config, output / LAST)
    return checkpoint


class _Signals:
    """While inside, the first Ctrl-C or SIGTERM is only noted; the second one acts as it did before."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> _Signals:
        if current_thread() is main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # a background job may ignore Ctrl-C
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        self._before = {}

    def _note(self, number: int, _: FrameType | None) -> None:
        self.asked = number
        self.__exit__()
