"""``ilrm train``: training a network, or continuing an interrupted run."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ilrm.cli.arguments import Output
from ilrm.cli.console import Console
from ilrm.cli.fields import assign_fields, show_fields, split_fields
from ilrm.core.checks import check_at_least
from ilrm.core.errors import ConfigError
from ilrm.files.paths import exists
from ilrm.files.reading import read_json

if TYPE_CHECKING:
    from ilrm.train.config import TrainConfig
    from ilrm.train.engine import TrainResult
    from ilrm.train.log import StepRecord
    from ilrm.train.trial import Trial

# Seconds between two lines of progress, if there is no terminal for a bar.
_LINES_APART_S = 60.0


@dataclass(frozen=True)
class Train:
    """Train a network, or continue a training run.

    Presets: smoke (two minutes, to try it), synthetic-small (the small network), synthetic-feedback (its feedback),
    mixed-small and mixed-feedback (the same on real captures, too); re10k-2view, re10k-4view, re10k-8view, each also
    with -mc (mini-batch cross-attention); dl3dv-256, dl3dv-512; undistorted-16view, undistorted-32view.

    The same command continues a run that was stopped, from OUT/last. OUT/weights is the network so far, for every
    other command's --weights. Ctrl-C finishes the step, saves and stops; a second one stops at once.

    Several devices: --devices 8. Several nodes: run this on each, or start the same with srun, one task per device:
    torchrun --nnodes 2 --nproc-per-node 8 -m ilrm.cli train ... --nodes 2 --devices 8

    Every field of the training config is an option too, after the preset: --optimiser.peak 1e-4 --save-every 100.
    `ilrm train PRESET --help` lists them with the preset's values.
    """

    preset: tyro.conf.Positional[str]
    """Name of the preset, see above."""
    output: Output
    """Folder of the run."""
    data: Path | None = None
    """Folder of the data set, for presets that need one."""
    steps: int | None = None
    """Length of the whole run; the preset's by default."""
    minutes: float | None = None
    """Stop after this time, with a checkpoint."""
    seed: int | None = None
    """Seed of the initial weights and of all random choices."""
    devices: int = 1
    """Processes per node, one for each GPU, or CPU processes if there is none."""
    nodes: int = 1
    """Number of nodes."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """How the network is distributed: a copy in each process (ddp), or shards (fsdp)."""
    precision: Literal["fp32", "bf16"] | None = None
    """Format of matrix products; the preset's by default."""
    accumulate: int | None = None
    """Gradient accumulation: split each process's batch into this many parts, to save memory."""
    batch: int | None = None
    """Samples per step over all processes, in all stages."""
    workers: int | None = None
    """Processes per device that prepare batches; 0 uses a thread."""
    compile: bool = False
    """Compile the network's layers (torch.compile)."""
    checkpoint_layers: bool = False
    """Recompute each layer's activations in the backward pass, to save memory."""
    init: str | None = None
    """Weights to start from: name, file or folder."""
    config: tuple[str, ...] = ()
    """Further changes to the preset, such as optimiser.peak=1e-4, or JSON files with the fields to change."""
    dry_run: bool = False
    """Measure three steps of each stage, print the cost of the run, and write nothing."""
    json: bool = False
    """Print one JSON object on stdout and nothing else."""
    fields: Annotated[tuple[str, ...], tyro.conf.Fixed, tyro.conf.Suppress] = ()

    def run(self, console: Console) -> dict[str, Any]:
        for flag, least in (
            ("steps", 1),
            ("devices", 1),
            ("nodes", 1),
            ("accumulate", 1),
            ("batch", 1),
            ("workers", 0),
        ):
            if (value := getattr(self, flag)) is not None:
                check_at_least(f"--{flag}", value, least)
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise ConfigError(f"--minutes {self.minutes} was given.", expected="a number above 0")
        config = self.make_config()
        if self.dry_run:
            return self._try_out(config, console)
        from ilrm.train.engine import train

        last = self.output / "last"
        try:
            with ExitStack() as stack:
                result = train(
                    config,
                    self.output,
                    minutes=self.minutes,
                    devices=self.devices,
                    nodes=self.nodes,
                    strategy=self.strategy,
                    on_step=_Bar(console, config.steps, stack),
                )
        except KeyboardInterrupt as error:
            kept = f"the same command continues from {last}" if exists(last) else "nothing was saved yet"
            raise KeyboardInterrupt(f"interrupted; {kept}") from error
        if not result.is_first:
            raise SystemExit(0)  # only the first process reports
        return self._report(config, result, console)

    def make_config(self) -> TrainConfig:
        """The preset with all changes: --config first, then the command's own options, then single fields."""
        from ilrm.train.presets import preset
        from ilrm.train.serialise import from_dict, override, to_dict

        config = preset(self.preset, self.data)
        for change in self.config:
            if "=" in change:
                config = override(config, [change])
            else:
                config = from_dict(_merged(to_dict(config), _read_json(Path(change))))
        changes = {name: getattr(self, name) for name in ("steps", "seed", "precision", "accumulate", "workers")}
        changes["initial_weights"] = self.init
        changes["compile"] = self.compile or None
        if self.batch is not None:
            changes["stages"] = tuple(replace(stage, batch=self.batch) for stage in config.stages)
        if self.checkpoint_layers:
            changes["compute"] = replace(config.compute, checkpoint=True)
        config = replace(config, **{name: value for name, value in changes.items() if value is not None})
        return assign_fields(config, self.fields)

    def _try_out(self, config: TrainConfig, console: Console) -> dict[str, Any]:
        from ilrm.core.checks import find_device
        from ilrm.train.trial import try_out

        device = find_device("auto")
        console.say(f"measuring three steps of {len(config.stages)} stages on {device}; nothing is written")
        found = try_out(config, device=device, world_size=self.devices * self.nodes, reporter=console)
        for title, rows in _trial_rows(found):
            console.show(title, rows)
        return {
            "preset": self.preset,
            "parameters": found.parameters,
            "memory_bytes": found.memory_bytes,
            "seconds": found.seconds,
            "stages": [asdict(stage) for stage in found.stages],
        }

    def _report(self, config: TrainConfig, result: TrainResult, console: Console) -> dict[str, Any]:
        record = result.last
        report = {
            "output": str(self.output),
            "weights": str(self.output / "weights"),
            "step": result.step,
            "steps": config.steps,
            "steps_now": result.steps_now,
            "stopped_by": result.stopped_by,
            "seconds": result.seconds,
            "loss": _finite(record and record.loss),
            "psnr": _finite(record and record.psnr),
            "best_validation_psnr": _finite(result.best_psnr),
        }
        if result.stopped_by == "signal":
            outcome = f"stopped after step {result.step} of {config.steps}; the same command continues from there"
            if result.signal == signal.SIGTERM:
                console.say(f"ilrm: {outcome}")
                raise SystemExit(128 + signal.SIGTERM)
            raise KeyboardInterrupt(outcome)
        console.show("", report)
        if result.stopped_by == "validation":
            best = "" if result.best_psnr is None else f" than {result.best_psnr:.2f} dB"
            console.say(
                f"Stopped after step {result.step} of {config.steps}: the last {config.patience} validations were no "
                f"better{best}. {self.output / 'best'} is the best checkpoint; a larger patience continues the run."
            )
        elif result.steps_now == 0:
            console.say(f"The run already had all of its {config.steps} steps; --steps N makes it longer.")
        elif result.stopped_by == "minutes":
            console.say(f"Out of time after step {result.step} of {config.steps}; the same command continues.")
        return report


def split(arguments: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Arguments of any command, and the assignments of config fields among them if it is this one."""
    if arguments[:1] != ["train"]:
        return list(arguments), ()
    rest, found = split_fields(arguments, [field.name for field in fields(Train)])
    return rest, tuple(found)


def show_more_help(arguments: Sequence[str]) -> None:
    """After the command's help: the fields of the preset's config, if one was named. Raises ConfigError."""
    rest, found = split(arguments)
    if rest[:1] == ["train"] and len(rest) > 2 and not rest[1].startswith("-"):
        show_fields(rest[1], found)


class _Bar:
    """Shows progress after each step: a bar in a terminal, else a line once in a while."""

    def __init__(self, console: Console, steps: int, stack: ExitStack) -> None:
        self._console, self._steps, self._stack = console, steps, stack
        self._advance = None
        self._shown = 0
        self._line_due = 0.0

    def __call__(self, record: StepRecord) -> None:
        note = f"loss {record.loss:.4f}  {record.psnr:.2f} dB  {record.scenes_per_s:.1f} scenes/s"
        if not self._console.is_terminal:
            if time.monotonic() >= self._line_due or record.step == self._steps:
                self._console.say(f"step {record.step} of {self._steps}  {note}")
                self._line_due = time.monotonic() + _LINES_APART_S
            return
        if self._advance is None:
            self._advance = self._stack.enter_context(self._console.progress("training", self._steps))
        self._advance(note, record.step - self._shown)
        self._shown = record.step


def _finite(value: float | None) -> float | None:
    """None for NaN and infinity, which JSON cannot represent."""
    return value if value is not None and math.isfinite(value) else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = read_json(path, ConfigError)
    except ConfigError as error:
        raise ConfigError(f"--config {error.problem}", expected="field=value, or a JSON file", fix=error.fix) from error
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path} is not a JSON object.", expected="an object with the fields to change")
    return values


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested values with some of them replaced; an object of another ``kind`` is replaced as a whole."""
    merged = dict(values)
    for name, change in changes.items():
        old = values.get(name)
        same_kind = (
            isinstance(old, dict)
            and isinstance(change, dict)
            and change.get("kind", old.get("kind")) == old.get("kind")
        )
        merged[name] = _merged(old, change) if same_kind else change  # pyright: ignore[reportArgumentType]
    return merged


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _trial_rows(found: Trial) -> list[tuple[str, dict[str, object]]]:
    """The tables to print."""
    memory = found.memory_bytes
    tables: list[tuple[str, dict[str, object]]] = [
        (
            "the whole run",
            {
                "parameters": f"{found.parameters / 1e6:.2f} M",
                "peak memory": None if memory is None else f"{memory / 2**30:.2f} GiB",
                "time, without waiting for data": _duration(found.seconds),
            },
        )
    ]
    for number, s in enumerate(found.stages):
        rows: dict[str, object] = {
            "steps": s.steps,
            "samples per part": s.samples,
            "views per sample": f"{s.inputs} inputs, {s.targets} targets",
            "Gaussians per sample": s.gaussians,
            "seconds per step": s.seconds,
        }
        tables.append((f"stage {number}", rows))
    return tables
