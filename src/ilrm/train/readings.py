"""What steps measure stays on the device, and is read some steps at a time.

A GPU works behind the host. Every number that the host asks for in between makes it wait until the GPU has caught up,
and the GPU then waits for the host's next launch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ilrm.core.errors import SceneError, TrainingError
from ilrm.files.paths import exists
from ilrm.train.checkpoint import LAST, Progress
from ilrm.train.config import NORMS_KEPT, Stage, TrainConfig
from ilrm.train.data.batch import Problem
from ilrm.train.distributed import gather, together
from ilrm.train.log import PROBLEMS, RunLog, StepRecord, active_terms

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Steps between readings where a GPU computes; on the CPU every step is read, which costs nothing there.
STEPS_ON_GPU = 20
# A median means little among fewer norms, and a share of broken items among fewer items.
_LEAST_NORMS, _LEAST_SEEN = 16, 50


@dataclass(frozen=True, eq=False)
class TakenStep:
    """A step whose numbers were not read yet.

    Attributes:
        names: of the values.
        values: (len(names),) float64 on the device; means over all processes, and flags that are 0 or 1.
        stage, rate, inputs: what it was: its stage, learning rate, number of input views.
        waited: seconds that this process waited for its batch.
        problems: items that this process could not use.
    """

    names: tuple[str, ...]
    values: Tensor
    stage: Stage
    rate: float
    inputs: int
    waited: float
    problems: tuple[Problem, ...]


def pack(values: Mapping[str, Tensor]) -> tuple[tuple[str, ...], Tensor]:
    """Names and one float64 vector of values () on one device."""
    return tuple(values), torch.stack([value.double() for value in values.values()])


def read(steps: Sequence[TakenStep]) -> list[dict[str, float]]:
    """The numbers of each step by their names, in one copy that waits for the device."""
    numbers = iter(torch.cat([step.values for step in steps]).tolist())
    return [{name: next(numbers) for name in step.names} for step in steps]


class NormWindow:
    """The last gradient norms, and whether the next one stands out from them.

    Norms that stand out enter the window too: where all norms become larger for good, half a window later none does.

    Args:
        factor: a norm above ``factor`` times the median stands out.
        norms: the last ones of the run so far.
    """

    def __init__(self, factor: float, norms: Sequence[float], device: torch.device) -> None:
        self._factor = factor
        missing = [float("nan")] * (NORMS_KEPT - len(norms))
        self._norms = torch.tensor([*missing, *norms], dtype=torch.float64, device=device)

    def stands_out(self, norm: Tensor, finite: Tensor) -> Tensor:
        """() bool; the norm () float64 is taken into the window where the step is finite. Nothing is read."""
        enough = self._norms.isfinite().sum() >= _LEAST_NORMS
        found = enough & finite & (norm > self._factor * self._norms.nanmedian())
        self._norms = torch.where(finite, torch.cat([self._norms[1:], norm[None]]), self._norms)
        return found


class Ledger:
    """Counts and logs what steps have measured, and says when it makes no sense to go on.

    Args:
        output: folder of the run, for messages.
        progress: where the run stands.

    Attributes:
        progress: the same, with the steps that were entered since.
        log: written by the first process, once it is open.
        step_seconds: of a step, lately; 0 before the first.
    """

    def __init__(self, fabric: Fabric, config: TrainConfig, output: Path, progress: Progress) -> None:
        self._fabric, self._config, self._output = fabric, config, output
        self.progress = progress
        self.log: RunLog | None = None
        self.step_seconds = 0.0
        self._not_finite = 0  # steps in a row

    def start(self) -> None:
        """The clock of the run goes on from here."""
        self._mark = time.perf_counter()

    def begin(self) -> None:
        """The first of the steps that are entered together begins."""
        self._begun = time.perf_counter()

    def enter(self, steps: Sequence[TakenStep]) -> list[StepRecord]:
        """Read steps, log and count them; in all processes the same ones.

        Raises:
            SceneError: too many items that cannot be used.
            TrainingError: too many steps in a row were not finite.
        """
        numbers = read(steps)
        now, count = time.perf_counter(), len(steps)
        passed, self.step_seconds = (now - self._mark) / count, (now - self._begun) / count
        self._mark = now
        return [self._record(step, found, passed) for step, found in zip(steps, numbers, strict=True)]

    def _record(self, taken: TakenStep, found: dict[str, float], passed: float) -> StepRecord:
        self._count(taken, found, passed)
        progress, seconds = self.progress, self.step_seconds
        terms = active_terms(self._config.loss)
        record = StepRecord(
            step=progress.step,
            loss=found["loss"],
            psnr=found["psnr"],
            lr=taken.rate,
            scenes_per_s=taken.stage.batch / seconds,
            seconds=progress.seconds,
            data_wait=min(taken.waited / seconds, 1.0),
            grad_norm=found["grad_norm"],
            inputs=taken.inputs,
            height=taken.stage.size[0],
            width=taken.stage.size[1],
            skipped=progress.skipped,
            unusable=progress.unusable,
            terms={name: found[name] for name in terms if name in found},
            outliers=progress.outliers,
            norms={name: found[f"norm_{name}"] for name in terms if f"norm_{name}" in found},
        )
        self._report(record, taken, bool(found["unusable"]))
        return record

    def _count(self, taken: TakenStep, found: dict[str, float], passed: float) -> None:
        before, finite = self.progress, bool(found["finite"])
        self._not_finite = 0 if finite else self._not_finite + 1
        unusable, broken = (round(found[name] * self._fabric.world_size) for name in ("unusable", "broken"))
        norms = before.norms
        if self._config.optimiser.outlier > 0 and finite:
            norms = (*norms, found["grad_norm"])[-NORMS_KEPT:]
        self.progress = replace(
            before,
            step=before.step + 1,
            seconds=before.seconds + passed,
            seen=before.seen + taken.stage.batch + unusable,
            unusable=before.unusable + unusable,
            broken=before.broken + broken,
            skipped=before.skipped + (not finite),
            outliers=before.outliers + bool(found.get("outlier")),
            norms=norms,
        )

    def _report(self, record: StepRecord, taken: TakenStep, unusable: bool) -> None:
        """Log a step and the problems of all processes; stop if it makes no sense to go on."""
        problems = [p for theirs in gather(self._fabric, taken.problems) for p in theirs] if unusable else []
        if self.log is not None:
            self.log.problems(record.step, problems)
            self.log.step(record)
        if problems or self._not_finite:
            together(self._fabric, partial(self._check, problems))

    def _check(self, problems: list[Problem]) -> None:
        # Sequences too short for the sampler are a property of sound data; only damage is a reason to stop.
        problems = [p for p in problems if p.broken]
        share = self.progress.broken / self.progress.seen
        if problems and self.progress.seen >= _LEAST_SEEN and share > self._config.broken_share:
            some = "\n    ".join(f"{p.scene} in {p.source}: {p.reason}" for p in problems[:4])
            raise SceneError(
                f"{self.progress.broken} of {self.progress.seen} items are broken, the last ones:\n    {some}",
                expected=f"at most a share of {self._config.broken_share:g}",
                fix=f"see {self._output / PROBLEMS} for all of them; mend the data, or raise broken_share",
            )
        if self._not_finite >= self._config.non_finite:
            last = self._output / LAST
            kept = f"the last good checkpoint is {last}" if exists(last) else "no checkpoint was written yet"
            raise TrainingError(
                f"Loss or gradient were not finite for {self._not_finite} steps in a row, "
                f"up to step {self.progress.step}; {kept}.",
                fix="start from its weights in another folder, with a lower optimiser.peak or precision fp32",
            )
