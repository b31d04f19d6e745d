"""A training run in this process: its state, one optimiser step, validation and saving."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ilrm.core.errors import ConfigError, SceneError, TrainingError
from ilrm.core.gaussians import PER_GAUSSIAN, Gaussians
from ilrm.core.precision import autocast
from ilrm.files import write_json
from ilrm.files.image_files import save_png
from ilrm.files.paths import exists
from ilrm.model import ILRM
from ilrm.model.weights import from_pretrained, save_weights
from ilrm.train import perceptual
from ilrm.train.checkpoint import Checkpoint, Progress, collect, copy_checkpoint, restore, write_checkpoint
from ilrm.train.config import TrainConfig
from ilrm.train.data.batch import Batch, Problem
from ilrm.train.data.loader import batches, validation_batches
from ilrm.train.distributed import gather, together
from ilrm.train.log import PROBLEMS, RunLog, StepRecord
from ilrm.train.losses import losses
from ilrm.train.optim import FEEDBACK, Average, learning_rate, make_optimiser, set_learning_rate
from ilrm.train.serialise import to_dict
from ilrm.train.validate import validate

if TYPE_CHECKING:
    from lightning_fabric import Fabric


T = TypeVar("T")
StoppedBy = Literal["steps", "minutes", "signal"]

LAST, BEST, WEIGHTS, CONFIG = "last", "best", "weights", "config.json"
# A share of broken items means little among fewer.
_LEAST_SEEN = 50


@dataclass(frozen=True)
class _StepOutcome:
    """What the batch of a step gave, as in ``StepRecord``; means and counts are those of all processes.

    Attributes:
        waited: seconds this process waited for data.
        problems: items that this process could not use.  unusable: how many there were in all processes;
            broken: those of them with damaged data.
    """

    loss: float
    psnr: float
    terms: dict[str, float]
    grad_norm: float
    inputs: int
    waited: float
    problems: list[Problem]
    unusable: int
    broken: int


class _Trained(nn.Module):
    """The network and whatever is computed with it, in one call: calls are where DDP and FSDP hook in."""

    def __init__(self, network: ILRM) -> None:
        super().__init__()
        self.network = network

    def forward(self, compute: Callable[[ILRM], T]) -> T:
        """``compute(network)``: tensors, or tuples of them."""
        return compute(self.network)


class Run:
    """Network, optimiser and counters of a run.

    Args:
        fabric: launched.
        stored: the checkpoint to go on from; None for a new run.

    Attributes:
        progress: where the run stands.
        reserve: seconds that another step and a save will about take.
    """

    def __init__(self, fabric: Fabric, config: TrainConfig, output: Path, stored: Checkpoint | None) -> None:
        self.fabric, self.config, self.output = fabric, config, output
        self.progress = Progress() if stored is None else stored.progress
        torch.manual_seed(config.seed)
        network = ILRM(config.model, config.compute)
        if stored is None and config.initial_weights is not None:
            together(fabric, partial(_initialise, network, config.initial_weights))
        if config.compile:
            network.compile(device=fabric.device)
        base_rate = 1.0 if config.feedback is None else config.feedback.base_rate
        if base_rate == 0:
            for name, parameter in network.named_parameters():
                parameter.requires_grad_(name.startswith(FEEDBACK))
        self._trained = fabric.setup_module(_Trained(network))
        self._network: ILRM = self._trained.network
        self._optimiser = make_optimiser(self._network, config.optimiser, base_rate)
        self._average = Average(self._network, config.optimiser.ema) if config.optimiser.ema > 0 else None
        if stored is not None:
            together(fabric, partial(restore, stored, self._network, self._optimiser, self._average))
        self._batches: Iterator[Batch] = iter(())
        self._log: RunLog | None = None
        self._not_finite = 0  # steps in a row
        self._step_seconds = self._save_seconds = 0.0

    def open(self) -> None:
        """Open the data and the logs. The clock of the run goes on from here."""
        together(self.fabric, self._open_data)
        together(self.fabric, self._open_log, first_only=True)
        self._mark = time.perf_counter()

    def _open_data(self) -> None:
        config, device = self.config, self.fabric.device
        self._validation = validation_batches(config) if config.validation is not None else []
        self._batches = batches(
            config,
            rank=self.fabric.global_rank,
            world_size=self.fabric.world_size,
            start_step=self.progress.step,
            steps=config.steps - self.progress.step,
            device="cpu" if config.workers else device,
        )
        # After the data: a wrong path is reported before half a gigabyte is downloaded.
        loss = config.loss
        wanted = loss.perceptual is not None and loss.perceptual_weight > 0
        self._perceptual = perceptual.load(loss.perceptual, device) if wanted and loss.perceptual else None

    def _open_log(self) -> None:
        described = to_dict(self.config)
        write_json(self.output / CONFIG, described)
        self._log = RunLog(self.output, self.config, described, self.progress.step)

    def close(self) -> None:
        """Stop what runs beside the training."""
        if isinstance(self._batches, Generator):
            self._batches.close()
        if self._log is not None:
            self._log.close()

    @property
    def reserve(self) -> float:
        return self._step_seconds + self._save_seconds

    # --- one optimiser step ---

    def step(self) -> StepRecord:
        """Take the next batch and move the weights, or leave them where loss or gradient are not finite.

        Raises:
            SceneError: too many items that cannot be used.
            TrainingError: too many steps in a row were not finite.
        """
        config, step = self.config, self.progress.step
        stage, begun = config.stage_at(step), time.perf_counter()
        rate = learning_rate(step, config.steps, config.optimiser)
        found = self._gradient(step)
        finite = math.isfinite(found.loss) and math.isfinite(found.grad_norm)
        if finite:
            set_learning_rate(self._optimiser, rate)
            self._optimiser.step()
            if self._average is not None:
                self._average.update(self._network)
        self._optimiser.zero_grad(set_to_none=True)
        self._count(begun, stage.batch, found, finite)
        record = StepRecord(
            step=self.progress.step,
            loss=found.loss,
            psnr=found.psnr,
            lr=rate,
            scenes_per_s=stage.batch / self._step_seconds,
            seconds=self.progress.seconds,
            data_wait=found.waited / self._step_seconds,
            grad_norm=found.grad_norm,
            inputs=found.inputs,
            height=stage.size[0],
            width=stage.size[1],
            skipped=self.progress.skipped,
            unusable=self.progress.unusable,
            terms=found.terms,
        )
        self._report(record, found)
        return record

    def _gradient(self, step: int) -> _StepOutcome:
        """The clipped gradient of one step's batch, over all parts and processes."""
        config, fabric = self.config, self.fabric
        values: list[dict[str, Tensor]] = []
        problems: list[Problem] = []
        waited, inputs = 0.0, 0
        for part in range(config.accumulate):
            asked = time.perf_counter()
            batch = next(self._batches)
            waited += time.perf_counter() - asked
            inputs = batch.inputs
            problems += batch.problems
            # The same draws in every part and process: how a batch is split does not change the step.
            torch.manual_seed(_seed(config.seed, step))
            with fabric.no_backward_sync(self._trained, enabled=part < config.accumulate - 1):
                loss, logged = self._trained(partial(self._losses, batch=batch.to(fabric.device), step=step))
                fabric.backward(loss / config.accumulate)
            values.append(logged)
        norm = fabric.clip_gradients(
            self._trained, self._optimiser, max_norm=config.optimiser.clip, error_if_nonfinite=False
        )
        mine = [torch.stack([part[name] for part in values]).double().mean() for name in values[0]]
        counts = mine[0].new_tensor([len(problems), sum(p.broken for p in problems)])
        *means, unusable, broken = self._mean_of_all(torch.cat([torch.stack(mine), counts]))
        loss, psnr, *terms = means
        return _StepOutcome(
            loss=loss,
            psnr=psnr,
            terms=dict(zip(list(values[0])[2:], terms, strict=True)),
            grad_norm=float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm),  # pyright: ignore
            inputs=inputs,
            waited=waited,
            problems=problems,
            unusable=round(unusable * fabric.world_size),
            broken=round(broken * fabric.world_size),
        )

    def _losses(self, network: ILRM, *, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, with a gradient; and what is logged: loss, PSNR and the active terms."""
        found = losses(
            network,
            batch,
            self.config.loss,
            step,
            model_config=self.config.model,
            precision=self.config.precision,
            perceptual=self._perceptual,
            feedback=self.config.feedback,
        )
        return found.total, {"loss": found.total.detach(), "psnr": found.psnr, **found.terms}

    def _mean_of_all(self, values: Tensor) -> list[float]:
        total = self.fabric.all_reduce(values, reduce_op="sum")
        assert isinstance(total, Tensor)
        return (total / self.fabric.world_size).tolist()

    def _count(self, begun: float, batch: int, found: _StepOutcome, finite: bool) -> None:
        now = time.perf_counter()
        before, passed = self.progress, now - self._mark
        self._mark, self._step_seconds = now, now - begun
        self._not_finite = 0 if finite else self._not_finite + 1
        self.progress = replace(
            before,
            step=before.step + 1,
            seconds=before.seconds + passed,
            seen=before.seen + batch + found.unusable,
            unusable=before.unusable + found.unusable,
            broken=before.broken + found.broken,
            skipped=before.skipped + (not finite),
        )

    def _report(self, record: StepRecord, found: _StepOutcome) -> None:
        """Log a step and the problems of all processes; stop if it makes no sense to go on."""
        problems = [p for theirs in gather(self.fabric, found.problems) for p in theirs] if found.unusable else []
        if self._log is not None:
            self._log.problems(record.step, problems)
            self._log.step(record)
        if problems or self._not_finite:
            together(self.fabric, partial(self._check, problems))

    def _check(self, problems: list[Problem]) -> None:
        # Sequences too short for the sampler are a property of sound data; only damage is a reason to stop.
        problems = [p for p in problems if p.broken]
        share = self.progress.broken / self.progress.seen
        if problems and self.progress.seen >= _LEAST_SEEN and share > self.config.broken_share:
            some = "\n    ".join(f"{p.scene} in {p.source}: {p.reason}" for p in problems[:4])
            raise SceneError(
                f"{self.progress.broken} of {self.progress.seen} items are broken, the last ones:\n    {some}",
                expected=f"at most a share of {self.config.broken_share:g}",
                fix=f"see {self.output / PROBLEMS} for all of them; mend the data, or raise broken_share",
            )
        if self._not_finite >= self.config.non_finite:
            last = self.output / LAST
            kept = f"the last good checkpoint is {last}" if exists(last) else "no checkpoint was written yet"
            raise TrainingError(
                f"Loss or gradient were not finite for {self._not_finite} steps in a row, "
                f"up to step {self.progress.step}; {kept}.",
                fix="start from its weights in another folder, with a lower optimiser.peak or precision fp32",
            )

    def agree_to_stop(self, asked: bool, late: bool) -> StoppedBy:
        """What all processes do next, from what each was asked and the first one's clock: "steps" is to go on."""
        flags = torch.tensor([asked, late and self.fabric.is_global_zero], device=self.fabric.device).double()
        any_asked, any_late = self._mean_of_all(flags)
        return "signal" if any_asked else "minutes" if any_late else "steps"

    # --- validation and saving ---

    def validate(self) -> bool:
        """Score the weights that would be shipped; whether they are the best so far."""
        if not self._validation:
            return False
        weights = nullcontext() if self._average is None else self._average.applied(self._network)
        self._network.eval()
        with torch.no_grad(), weights:
            found = validate(self._reconstruct, self._validation)
        self._network.train()
        if self._log is not None:
            step = self.progress.step
            self._log.validation(step, found.scores, found.picture)
            picture = found.picture.mul(255).round().byte().numpy()
            save_png(picture, self.output / "validation" / f"step_{step}.png")
        best = self.progress.best_psnr
        if not math.isfinite(found.psnr) or (best is not None and found.psnr <= best):
            return False
        self.progress = replace(self.progress, best_psnr=found.psnr)
        return True

    def _reconstruct(self, batch: Batch) -> Gaussians:
        batch = batch.to(self.fabric.device)
        inputs = (batch.images[:, : batch.inputs], batch.c2w[:, : batch.inputs], batch.K[:, : batch.inputs])

        def compute(network: ILRM) -> tuple[Tensor, ...]:
            with autocast(self.config.precision, self.fabric.device):
                found = network(*inputs)
            return tuple(getattr(found, name) for name in PER_GAUSSIAN)

        return Gaussians(*self._trained(compute))

    def save(self, *, best: bool, keep: bool) -> None:
        """Write ``last`` and the weights; ``best`` and ``step_N`` where asked for. Raises OutputError."""
        begun = time.perf_counter()
        tensors = collect(self._network, self._optimiser, self._average)
        together(self.fabric, partial(self._write, tensors, best, keep), first_only=True)
        self._save_seconds = time.perf_counter() - begun

    def _write(self, tensors: dict[str, Tensor], best: bool, keep: bool) -> None:
        updates = self._average.updates if self._average is not None else 0
        write_checkpoint(self.output / LAST, Checkpoint(self.progress, tensors, updates, to_dict(self.config)))
        for name, wanted in ((BEST, best), (f"step_{self.progress.step}", keep)):
            if wanted:
                copy_checkpoint(self.output / LAST, self.output / name)
        prefix = "network." if self._average is None else "average."
        with torch.device("meta"):
            whole = ILRM(self.config.model, self.config.compute)
        weights = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
        whole.load_state_dict(weights, assign=True)
        save_weights(whole, self.output / WEIGHTS, overwrite=True)


def _seed(*numbers: int) -> int:
    """One number from several, unrelated for different ones."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _initialise(network: ILRM, source: str) -> None:
    """Start from trained weights of the same network. Raises WeightsError, ConfigError."""
    trained = from_pretrained(source)
    ours, theirs = network.config, trained.config
    differing = [f.name for f in fields(ours) if getattr(ours, f.name) != getattr(theirs, f.name)]
    if theirs.feedback is None and "feedback" in differing:
        differing.remove("feedback")  # it starts as what the network does without it
    if differing:
        raise ConfigError(
            f"The initial weights {source} are of another network; these fields differ: {', '.join(differing)}.",
            expected="weights with the config's model",
            fix="change the config's model to that of the weights, or choose other weights",
        )
    own = {name: x for name, x in network.state_dict().items() if name.startswith(FEEDBACK)}
    network.load_state_dict({**own, **trained.state_dict()})
