"""A training run in this process: its state, one optimiser step, validation and saving."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ilrm.core.errors import ConfigError
from ilrm.core.gaussians import PER_GAUSSIAN, Gaussians
from ilrm.core.precision import autocast
from ilrm.files import write_json
from ilrm.files.image_files import save_png
from ilrm.model import ILRM, FeedbackConfig
from ilrm.model.weights import from_pretrained, save_weights
from ilrm.train import perceptual
from ilrm.train.checkpoint import LAST, Checkpoint, Progress, collect, copy_checkpoint, restore, write_checkpoint
from ilrm.train.config import TrainConfig
from ilrm.train.data.batch import Batch, Problem
from ilrm.train.data.loader import batches, validation_batches
from ilrm.train.distributed import mean_of_all, together
from ilrm.train.log import RunLog, StepRecord
from ilrm.train.losses import losses
from ilrm.train.optim import (
    Average,
    freeze_base,
    is_fused,
    learning_rate,
    make_optimiser,
    set_learning_rate,
    step_unless,
)
from ilrm.train.readings import STEPS_ON_GPU, Ledger, NormWindow, TakenStep, pack
from ilrm.train.serialise import to_dict
from ilrm.train.validate import validate

if TYPE_CHECKING:
    from lightning_fabric import Fabric


T = TypeVar("T")
StoppedBy = Literal["steps", "minutes", "signal", "validation"]

BEST, WEIGHTS, CONFIG = "best", "weights", "config.json"


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
    """

    def __init__(self, fabric: Fabric, config: TrainConfig, output: Path, stored: Checkpoint | None) -> None:
        self.fabric, self.config, self.output = fabric, config, output
        self._ledger = Ledger(fabric, config, output, Progress() if stored is None else stored.progress)
        torch.manual_seed(config.seed)
        network = ILRM(config.model, config.compute)
        if stored is None and config.initial_weights is not None:
            together(fabric, partial(_initialise, network, config.initial_weights))
        if config.compile:
            network.compile(device=fabric.device)
        base_rate = config.base_rate
        freeze_base(network, base_rate)
        self._trained = fabric.setup_module(_Trained(network))
        self._network: ILRM = self._trained.network
        on_gpu = fabric.device.type == "cuda"
        self._read_every = config.read_every or (STEPS_ON_GPU if on_gpu else 1)
        # On the CPU, where every step is read, torch's default: runs are resumed to the bit with it.
        self._optimiser = make_optimiser(self._network, config.optimiser, base_rate, fused=self._read_every > 1)
        self._average = Average(self._network, config.optimiser.ema) if config.optimiser.ema > 0 else None
        if stored is not None:
            together(fabric, partial(restore, stored, self._network, self._optimiser, self._average))
        self._batches: Iterator[Batch] = iter(())
        outlier = config.optimiser.outlier
        self._window = NormWindow(outlier, self.progress.norms, fabric.device) if outlier > 0 else None
        self._taken: list[TakenStep] = []
        self._save_seconds = 0.0

    def open(self) -> None:
        """Open the data and the logs. The clock of the run goes on from here."""
        together(self.fabric, self._check_strategy)
        together(self.fabric, self._open_data)
        together(self.fabric, self._open_log, first_only=True)
        self._ledger.start()

    def _check_strategy(self) -> None:
        if self.config.term_norms and any(hasattr(p, "device_mesh") for p in self._network.parameters()):
            raise ConfigError(
                f"term_norms = {self.config.term_norms} needs whole weights, and these are in shards.",
                fix="set term_norms to 0, or use --strategy ddp",
            )

    def _open_data(self) -> None:
        config, device = self.config, self.fabric.device
        self._validation = validation_batches(config) if config.validation is not None else []
        self._batches = batches(
            config,
            rank=self.fabric.global_rank,
            world_size=self.fabric.world_size,
            start_step=self.progress.step,
            steps=config.steps - self.progress.step,
            device=device,
        )
        # After the data: a wrong path is reported before half a gigabyte is downloaded.
        loss = config.loss
        wanted = loss.perceptual is not None and loss.perceptual_weight > 0
        self._perceptual = perceptual.load(loss.perceptual, device) if wanted and loss.perceptual else None

    def _open_log(self) -> None:
        described = to_dict(self.config)
        write_json(self.output / CONFIG, described)
        self._ledger.log = RunLog(self.output, self.config, described, self.progress.step)

    def close(self) -> None:
        """Stop what runs beside the training."""
        if isinstance(self._batches, Generator):
            self._batches.close()
        if self._ledger.log is not None:
            self._ledger.log.close()

    @property
    def progress(self) -> Progress:
        """Where the run stands, as far as its steps have been read."""
        return self._ledger.progress

    @property
    def steps_taken(self) -> int:
        """Of the run, those that were not read included."""
        return self.progress.step + len(self._taken)

    @property
    def must_read(self) -> bool:
        """Whether it is time to read; the same in all processes. The first step of a call is read at once."""
        return self._ledger.step_seconds == 0 or self.steps_taken % self._read_every == 0

    @property
    def reserve(self) -> float:
        """Seconds that the steps on the way, those until the next look at the clock and a save will about take."""
        ahead = 1 if self.fabric.world_size == 1 else self._read_every
        return (len(self._taken) + ahead) * self._ledger.step_seconds + self._save_seconds

    # --- one optimiser step ---

    def step(self) -> None:
        """Take the next batch and move the weights, or leave them where loss or gradient are not finite.

        Nothing is read from the device; ``read`` gives the numbers.
        """
        config, step = self.config, self.steps_taken
        if not self._taken:
            self._ledger.begin()
        set_learning_rate(self._optimiser, rate := learning_rate(step, config.steps, config.optimiser))
        numbers, inputs, waited, problems = self._gradient(step)
        finite = numbers["loss"].isfinite() & numbers["grad_norm"].isfinite()
        skip = ~finite
        if self._window is not None:
            outlier = self._window.stands_out(numbers["grad_norm"], finite)
            skip, numbers["outlier"] = skip | outlier, outlier
        numbers["finite"] = finite
        self._move_unless(skip)
        names, values = pack(numbers)
        self._taken.append(TakenStep(names, values, config.stage_at(step), rate, inputs, waited, tuple(problems)))

    def _move_unless(self, skip: Tensor) -> None:
        if is_fused(self._optimiser):
            step_unless(skip.float(), self._optimiser)
            if self._average is not None:
                self._average.update_unless(skip.float(), self._network)
        elif not skip:  # on the CPU, where asking costs nothing
            self._optimiser.step()
            if self._average is not None:
                self._average.update(self._network)
        self._optimiser.zero_grad(set_to_none=True)

    def _gradient(self, step: int) -> tuple[dict[str, Tensor], int, float, list[Problem]]:
        """The clipped gradient of one step's batch, over all parts and processes.

        Returns:
            numbers: by name, means over all processes: of the losses, of the counts of unusable and broken items, and
                the norm before clipping.
            inputs, waited, problems: as in ``TakenStep``.
        """
        config, fabric = self.config, self.fabric
        values: list[dict[str, Tensor]] = []
        norms: dict[str, Tensor] = {}
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
                found = self._trained(partial(self._losses, batch=batch.to(fabric.device), step=step))
                loss, logged, weighted = found
                if part == 0 and config.term_norms and (step + 1) % config.term_norms == 0:
                    norms = self._norms_of(weighted)
                fabric.backward(loss / config.accumulate)
            values.append(logged)
        norm = fabric.clip_gradients(
            self._trained, self._optimiser, max_norm=config.optimiser.clip, error_if_nonfinite=False
        )
        assert norm is not None
        of_parts = torch.stack([torch.stack(list(part.values())) for part in values]).double().mean(0)
        means = dict(zip(values[0], of_parts, strict=True))
        counts = {"unusable": len(problems), "broken": sum(p.broken for p in problems)}
        names, mine = pack(
            {
                **means,
                **norms,
                # Filled on the device: a copy of a number from the host waits for the device.
                **{name: torch.full_like(means["loss"], float(count)) for name, count in counts.items()},
                "grad_norm": norm.full_tensor() if hasattr(norm, "full_tensor") else norm,  # pyright: ignore
            }
        )
        return dict(zip(names, mean_of_all(fabric, mine), strict=True)), inputs, waited, problems

    def _norms_of(self, weighted: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gradient norm of each loss term, of this process's first part; one backward pass each."""
        parameters = [p for p in self._network.parameters() if p.requires_grad]
        norms = {}
        for name, value in weighted.items():
            norms[f"norm_{name}"] = value.new_zeros(())
            if not value.requires_grad:  # no sample has what the term needs
                continue
            gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            each = torch._foreach_norm([g for g in gradients if g is not None])  # pyright: ignore[reportPrivateImportUsage]
            norms[f"norm_{name}"] = torch.stack(each).norm()
        return norms

    def _losses(self, network: ILRM, *, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """The loss, with a gradient; what is logged: loss, PSNR and the active terms; and the terms with gradients."""
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
        logged = {"loss": found.total.detach(), "psnr": found.psnr, **found.terms}
        return found.total, logged, found.weighted if self.config.term_norms else {}

    def read(self) -> list[StepRecord]:
        """Read the steps since the last reading, log them, and stop if it makes no sense to go on.

        Waits for the device. All processes must call it after the same steps.

        Raises:
            SceneError: too many items that cannot be used.
            TrainingError: too many steps in a row were not finite.
        """
        taken, self._taken = self._taken, []
        return self._ledger.enter(taken) if taken else []

    def agree_to_stop(self, asked: bool, late: bool) -> StoppedBy:
        """What all processes do next, from what each was asked and the first one's clock: "steps" is to go on."""
        if self.fabric.world_size > 1:
            flags = torch.tensor([asked, late and self.fabric.is_global_zero], device=self.fabric.device).double()
            asked, late = (flag > 0 for flag in mean_of_all(self.fabric, flags).tolist())
        return "signal" if asked else "minutes" if late else "steps"

    @property
    def has_no_patience(self) -> bool:
        """Whether validations have brought nothing for too long."""
        return 0 < self.config.patience <= self.progress.stale

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
        if (log := self._ledger.log) is not None:
            step = self.progress.step
            log.validation(step, found.scores, found.picture)
            picture = found.picture.mul(255).round().byte().numpy()
            save_png(picture, self.output / "validation" / f"step_{step}.png")
        # A GPU may round differently in each process, which must all say the same.
        own = torch.full((), found.psnr, dtype=torch.float64, device=self.fabric.device)
        psnr, best = mean_of_all(self.fabric, own).item(), self.progress.best_psnr
        if not math.isfinite(psnr) or (best is not None and psnr <= best):
            self._ledger.progress = replace(self.progress, stale=self.progress.stale + 1)
            return False
        self._ledger.progress = replace(self.progress, best_psnr=psnr, stale=0)
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
        assert not self._taken, "the counters of a checkpoint are those of its weights"
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
    if "feedback" in differing and _share_feedback(ours.feedback, theirs.feedback):
        differing.remove("feedback")
    if differing:
        raise ConfigError(
            f"The initial weights {source} are of another network; these fields differ: {', '.join(differing)}.",
            expected="weights with the config's model",
            fix="change the config's model to that of the weights, or choose other weights",
        )
    own, given = network.state_dict(), trained.state_dict()
    network.load_state_dict({name: given.get(name, x) for name, x in own.items()})


def _share_feedback(ours: FeedbackConfig | None, theirs: FeedbackConfig | None) -> bool:
    """Whether weights with one feedback may start a network with the other.

    Where only the network has any, it starts as what the network does without it; where only the weights have any, it
    is left out. How many iterations there are by default is not a property of the weights.
    """
    if ours is None or theirs is None:
        return True
    return replace(ours, iterations=theirs.iterations) == theirs
