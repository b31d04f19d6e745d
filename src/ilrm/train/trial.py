"""What a run will cost, before it starts: three steps of each stage, measured.

The steps are real ones on made-up photos of the stage's shape: forward pass, losses, backward pass, optimiser. Waiting
for data and communication are left out. On a CPU, where time goes with the number of samples, one sample is measured
and multiplied.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ilrm.core.checks import peak_memory
from ilrm.core.reporting import Reporter, Silent
from ilrm.model import ILRM
from ilrm.train.config import Bounded, BoundedV2, Stage, TrainConfig
from ilrm.train.data.batch import Batch
from ilrm.train.losses import losses
from ilrm.train.optim import freeze_base, make_optimiser
from ilrm.train.perceptual import LPIPS, VGGDistance

_STEPS = 3
# A first step that takes longer than this is all that is measured.
_LONGEST_S = 60.0


@dataclass(frozen=True)
class StageTrial:
    """One stage of a run, with the most input views that its sampler draws.

    Attributes:
        inputs, targets: views of a sample.
        samples: of one part of a step on one rank.
        gaussians: of a sample.
        seconds: of one optimiser step on one rank; the mean of the measured ones without the first.
        steps: optimiser steps of the stage.
    """

    inputs: int
    targets: int
    samples: int
    gaussians: int
    seconds: float
    steps: int


@dataclass(frozen=True)
class Trial:
    """A whole run on one rank.

    Attributes:
        parameters: learned values.
        memory_bytes: most memory that was in use, of the GPU or of this process; None on Windows.
        stages: in their order.
    """

    parameters: int
    memory_bytes: int | None
    stages: tuple[StageTrial, ...]

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return sum(stage.steps * stage.seconds for stage in self.stages)


def try_out(
    config: TrainConfig,
    *,
    device: torch.device | str = "cpu",
    world_size: int = 1,
    reporter: Reporter | None = None,
) -> Trial:
    """Measure what a run of this config needs on ``device``, as one of ``world_size`` ranks."""
    device, reporter = torch.device(device), reporter or Silent()
    torch.manual_seed(config.seed)
    model = ILRM(config.model, config.compute).to(device)
    freeze_base(model, config.base_rate)
    optimiser = make_optimiser(model, config.optimiser, config.base_rate)
    ends = [*(stage.start for stage in config.stages[1:]), config.steps]
    stages = []
    with reporter.progress("measuring", len(config.stages)) as advance:
        for stage, end in zip(config.stages, ends, strict=True):
            inputs, targets = _views(stage)
            samples = -(-stage.batch // (world_size * config.accumulate))
            measured = 1 if device.type == "cpu" else samples
            batch = _made_up(measured, inputs, targets, stage.size, device, config)
            part = _seconds(_step(model, optimiser, batch, config), device)
            stages.append(
                StageTrial(
                    inputs=inputs,
                    targets=targets,
                    samples=samples,
                    gaussians=inputs * stage.size[0] * stage.size[1] // config.model.viewpoint_factor**2,
                    seconds=config.accumulate * part * samples / measured,
                    steps=max(0, min(end, config.steps) - stage.start),
                )
            )
            advance()
    return Trial(model.parameter_count(), peak_memory(device), tuple(stages))


def _views(stage: Stage) -> tuple[int, int]:
    """The most inputs, and the targets, of a sample."""
    sampler = stage.sampler
    if isinstance(sampler, Bounded):
        return sampler.inputs, sampler.targets
    if isinstance(sampler, BoundedV2):
        return sampler.inputs[1], sampler.targets
    return max(sampler.inputs), sampler.targets


def _made_up(
    samples: int, inputs: int, targets: int, size: tuple[int, int], device: torch.device, config: TrainConfig
) -> Batch:
    """Noise, seen by cameras on a line; with depth where a loss asks for it."""
    views, (height, width) = inputs + targets, size
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(samples, views, height, width, 3, generator=generator)
    c2w = torch.eye(4).repeat(samples, views, 1, 1)
    c2w[:, :, 0, 3] = torch.linspace(-1, 1, views)
    K = torch.tensor([[float(width), 0, width / 2], [0, float(width), height / 2], [0, 0, 1]])
    wants_depth = config.loss.depth + config.loss.points + config.loss.matching > 0
    depth = torch.full((samples, views, height, width), 2.0) if wants_depth else None
    K = K.expand(samples, views, 3, 3).contiguous()
    return Batch(images, c2w, K, inputs=inputs, names=("made up",) * samples, depth=depth).to(device)


def _step(model: ILRM, optimiser: torch.optim.Optimizer, batch: Batch, config: TrainConfig) -> Callable[[], None]:
    perceptual = None
    if config.loss.perceptual is not None and config.loss.perceptual_weight > 0:
        # Random weights cost what the published ones do, and need no download.
        perceptual = (LPIPS() if config.loss.perceptual == "lpips" else VGGDistance()).to(batch.images.device)
    late = max(config.steps, config.loss.perceptual_start)  # when all terms have started

    def step() -> None:
        found = losses(
            model,
            batch,
            config.loss,
            late,
            model_config=config.model,
            precision=config.precision,
            perceptual=perceptual,
            feedback=config.feedback,
        )
        found.total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.optimiser.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def _seconds(step: Callable[[], None], device: torch.device) -> float:
    taken = []
    for _ in range(_STEPS):
        begun = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - begun)
        if taken[0] > _LONGEST_S:
            break
    rest = taken[1:] or taken
    return sum(rest) / len(rest)
