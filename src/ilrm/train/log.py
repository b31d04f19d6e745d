"""What a run leaves to look at: tables of every step and validation, and TensorBoard or wandb where they are wanted."""

from __future__ import annotations

import csv
import io
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ilrm.core.errors import ConfigError, OutputError
from ilrm.files import output_error, paths, write_text
from ilrm.files.reading import read_text
from ilrm.train.config import LossConfig, TrainConfig
from ilrm.train.data.batch import Problem

Value = float | int | str | None

STEPS, VALIDATIONS, PROBLEMS = "log.csv", "validation.csv", "problems.csv"
WANDB_ID = "wandb_id"
STEP_COLUMNS = (
    *("step", "loss", "psnr", "lr", "scenes_per_s", "seconds", "data_wait", "grad_norm", "inputs", "height", "width"),
    *("skipped", "unusable"),
)
VALIDATION_COLUMNS = ("step", "psnr", "ssim", "depth_abs_rel")
PROBLEM_COLUMNS = ("step", "scene", "source", "broken", "reason")
_TERMS = ("mse", "perceptual", "iterations", "depth", "points", "opacity", "scale", "matching", "closer")


@dataclass(frozen=True)
class StepRecord:
    """One optimiser step.

    Attributes:
        step: how many are done now.
        loss, psnr: means over the step's batch; PSNR in dB, of the clamped rendered targets.
        lr: learning rate.
        scenes_per_s: samples of the batch over the wall time of the step.
        seconds: spent on the run so far.
        data_wait: share of the step's wall time in which this process waited for its batch.
        grad_norm: before clipping.
        inputs, height, width: of the batch: input views, and image size in pixels.
        skipped: updates left out so far, because loss or gradient were not finite.
        unusable: items left out so far.
        terms: each loss term, unweighted.
        outliers: updates left out so far, because the gradient norm stood out.
        norms: gradient norm of each weighted loss term, in the steps that measure it.
    """

    step: int
    loss: float
    psnr: float
    lr: float
    scenes_per_s: float
    seconds: float
    data_wait: float
    grad_norm: float
    inputs: int
    height: int
    width: int
    skipped: int
    unusable: int
    terms: Mapping[str, float] = field(default_factory=dict)
    outliers: int = 0
    norms: Mapping[str, float] = field(default_factory=dict)


def active_terms(config: LossConfig) -> tuple[str, ...]:
    """The loss terms that a run logs, in a fixed order."""
    weights = {name: getattr(config, name) for name in _TERMS if name != "perceptual"}
    weights["perceptual"] = config.perceptual_weight if config.perceptual else 0.0
    return tuple(name for name in _TERMS if weights[name] > 0)


def validation_columns(config: TrainConfig) -> tuple[str, ...]:
    """Columns of validation.csv: with several kinds of sources also the PSNR of each."""
    kinds = dict.fromkeys(source.kind for source in config.validation.sources) if config.validation else {}
    return (*VALIDATION_COLUMNS, *(f"psnr_{kind}" for kind in kinds if len(kinds) > 1))


def step_columns(config: TrainConfig) -> tuple[str, ...]:
    """Header of log.csv. What a run does not measure has no column."""
    terms = active_terms(config.loss)
    outliers = ("outliers",) if config.optimiser.outlier > 0 else ()
    norms = tuple(f"norm_{name}" for name in terms) if config.term_norms > 0 else ()
    return (*STEP_COLUMNS, *terms, *outliers, *norms)


class Table:
    """A CSV file that grows by whole rows and can be taken up again.

    Args:
        path: the file. Rows whose first column, a step, is beyond ``step`` are cut off, as is half a last row.
        columns: its header; a file with another one is replaced.

    Raises:
        OutputError: it cannot be written; also from ``append``.
    """

    def __init__(self, path: Path, columns: Sequence[str], step: int) -> None:
        self.path, self.columns = path, tuple(columns)
        kept = io.StringIO()
        csv.writer(kept, lineterminator="\n").writerows([self.columns, *self._rows_until(step)])
        write_text(path, kept.getvalue())
        try:
            self._file = path.open("a", newline="", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise output_error(error, path) from error
        self._writer = csv.writer(self._file, lineterminator="\n")

    def _rows_until(self, step: int) -> list[list[str]]:
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                header, *rows = csv.reader(file)
        except (OSError, ValueError, csv.Error):  # none yet, or empty
            return []
        whole = [row for row in rows if len(row) == len(self.columns) and row[0].isdecimal()]
        return [row for row in whole if int(row[0]) <= step] if tuple(header) == self.columns else []

    def append(self, row: Mapping[str, Value]) -> None:
        """Add one row, at once on disk as far as Python is concerned; missing columns stay empty."""
        try:
            self._writer.writerow([_text(row.get(name)) for name in self.columns])
            self._file.flush()
        except OSError as error:
            raise output_error(error, self.path) from error

    def close(self) -> None:
        self._file.close()


def _text(value: Value) -> str:
    """Numbers with as many digits as tell any two float32 apart."""
    if value is None:
        return ""
    return f"{value:.9g}" if isinstance(value, float) else str(value)


class _Board(Protocol):
    """Where curves and pictures are shown."""

    def scalars(self, values: Mapping[str, float], step: int) -> None: ...
    def picture(self, image: Tensor, step: int) -> None: ...
    def close(self) -> None: ...


class _TensorBoard:
    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, image: Tensor, step: int) -> None:
        self._writer.add_image("validation", image, step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, output: Path, config: Mapping[str, Any], step: int) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self._wandb = wandb
        # Kept with the run: one curve however often it is taken up again, and no other run's of the same name.
        identity = output / WANDB_ID
        if not paths.exists(identity):
            write_text(identity, f"{secrets.token_hex(8)}\n")
        try:
            self._run = wandb.init(
                dir=str(output),
                id=read_text(identity, OutputError).strip(),
                name=paths.absolute(output).name,
                resume="allow",
                config=dict(config),
            )
        except wandb.Error as error:
            raise ConfigError(
                f"WANDB_PROJECT is set, but wandb cannot start: {error}",
                expected="a machine that is logged in to wandb",
                fix="run 'wandb login', set WANDB_MODE=offline, or leave WANDB_PROJECT out",
            ) from error

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, image: Tensor, step: int) -> None:
        self._run.log({"validation": self._wandb.Image(image.numpy())}, step=step)

    def close(self) -> None:
        self._run.finish()


class RunLog:
    """Everything that the first process of a run writes while it goes, besides checkpoints.

    TensorBoard's files are written if it is installed. wandb is used if it is installed and WANDB_PROJECT is set.

    Args:
        output: folder of log.csv, validation.csv, problems.csv and tensorboard/.
        config: the run's.
        described: the same as plain values, for wandb.
        step: the one that the run goes on from; later entries of an earlier attempt are removed.
    """

    def __init__(self, output: Path, config: TrainConfig, described: Mapping[str, Any], step: int) -> None:
        self._steps = Table(output / STEPS, step_columns(config), step)
        self._validations = Table(output / VALIDATIONS, validation_columns(config), step)
        self._problems = Table(output / PROBLEMS, PROBLEM_COLUMNS, step)
        self._boards: list[_Board] = []
        if find_spec("tensorboard") is not None:
            self._boards.append(_TensorBoard(output / "tensorboard", step))
        if os.environ.get("WANDB_PROJECT") and find_spec("wandb") is not None:
            self._boards.append(_Wandb(output, described, step))

    def step(self, record: StepRecord) -> None:
        """A row of log.csv, and a point on each curve."""
        values = {name: getattr(record, name) for name in STEP_COLUMNS}
        norms = {f"norm_{name}": value for name, value in record.norms.items()}
        self._steps.append({**values, **record.terms, "outliers": record.outliers, **norms})
        for board in self._boards:
            board.scalars({f"train/{name}": values[name] for name in STEP_COLUMNS[1:]}, record.step)
            board.scalars({f"loss/{name}": value for name, value in record.terms.items()}, record.step)
            if norms:
                board.scalars({f"gradient/{name}": value for name, value in record.norms.items()}, record.step)

    def validation(self, step: int, scores: Mapping[str, float | None], picture: Tensor) -> None:
        """A row of validation.csv, and the picture (H, W, 3) in [0, 1] on the CPU."""
        self._validations.append({"step": step, **scores})
        for board in self._boards:
            board.scalars({f"validation/{name}": x for name, x in scores.items() if x is not None}, step)
            board.picture(picture, step)

    def problems(self, step: int, problems: Sequence[Problem]) -> None:
        """Rows of problems.csv."""
        for p in problems:
            broken = "yes" if p.broken else "no"
            self._problems.append(
                {"step": step, "scene": p.scene, "source": p.source, "broken": broken, "reason": p.reason}
            )

    def close(self) -> None:
        for closable in (self._steps, self._validations, self._problems, *self._boards):
            closable.close()
