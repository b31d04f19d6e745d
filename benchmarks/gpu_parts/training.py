"""Training: a step with its data in memory, and a run with its data made on the way."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gpu_parts.bench import Bench
from ilrm.datasets.procedural import ProceduralConfig
from ilrm.datasets.procedural.batch import make_batch
from ilrm.model import ILRM
from ilrm.train.config import FeedbackTraining, OptimiserConfig, Procedural, Spread, Stage, TrainConfig
from ilrm.train.data.batch import Batch
from ilrm.train.distributed import launch
from ilrm.train.log import StepRecord
from ilrm.train.losses import losses
from ilrm.train.optim import freeze_base, make_optimiser
from ilrm.train.presets import preset
from ilrm.train.run import Run


def batch_of(scenes: int, inputs: int, targets: int, side: int, bench: Bench) -> Batch:
    config = ProceduralConfig(views=inputs + targets, width=side, height=side)
    made = [make_batch([seed], config, bench.device) for seed in range(min(scenes, 4))]
    every = [made[i % len(made)] for i in range(scenes)]
    tensors = (torch.cat([getattr(one, name) for one in every]) for name in ("images", "c2w", "K", "depth"))
    images, c2w, K, depth = tensors
    return Batch(images, c2w, K, inputs=inputs, names=("",) * scenes, depth=depth)


def training_step(bench: Bench) -> dict[str, Any]:
    """Forward, losses, backward and optimiser of ``synthetic-small``, with the data in memory."""
    return _steps_in_memory(preset("synthetic-small"), (6, 24, 48), bench)


def feedback_step(bench: Bench) -> dict[str, Any]:
    """The same of ``synthetic-feedback``, three iterations."""
    config = preset("synthetic-feedback")
    return _steps_in_memory(replace(config, feedback=FeedbackTraining(iterations=(3, 3))), (8, 24), bench)


def _steps_in_memory(config: TrainConfig, sizes: tuple[int, ...], bench: Bench) -> dict[str, Any]:
    sizes = (1,) if bench.small else sizes
    inputs, targets, side = (2, 1, 32) if bench.small else (8, 4, 128)
    torch.manual_seed(0)
    model = ILRM(config.model).to(bench.device)
    freeze_base(model, config.base_rate)
    optimiser = make_optimiser(model, OptimiserConfig(), config.base_rate, fused=bench.device.type == "cuda")
    found = {}
    for size in sizes:
        batch = batch_of(size, inputs, targets, side, bench)
        bench.forget_peak()

        def work(batch: Batch = batch) -> None:
            options = {"model_config": config.model, "precision": bench.precision, "feedback": config.feedback}
            losses(model, batch, config.loss, 0, **options).total.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

        seconds = bench.seconds(work, repeats=3)
        found[f"batch {size}"] = {
            "ms": 1e3 * seconds,
            "scenes_per_s": size / seconds,
            "peak_gib": bench.peak_gib(),
            **bench.profile(work),
        }
    return found


def training_run(bench: Bench) -> dict[str, Any]:
    """Training as ``ilrm train`` does it, procedural worlds made on the way; without validation and saving."""
    workers, batch, steps = (1, 1, 2) if bench.small else (max(2, (os.cpu_count() or 2) - 2), 24, 40)
    inputs, targets, side = (2, 1, 32) if bench.small else (8, 4, 128)
    source = Procedural(ProceduralConfig(baseline=(0.1, 1.5)))
    stage = Stage((side, side), batch, Spread(inputs=(inputs,), targets=targets), (source,), flip=False)
    config = preset("synthetic-small")
    config = replace(config, stages=(stage,), validation=None, precision=bench.precision, steps=10**6)
    found: dict[str, Any] = {"batch": batch, "side": side, "views": inputs + targets}
    for count in (workers,) if bench.small else (workers, 0):
        with launch(1, 1, "auto") as fabric, tempfile.TemporaryDirectory() as folder:
            run = Run(fabric, replace(config, workers=count), Path(folder), None)
            with closing(run):
                found[f"{count} workers"] = _steps_of(run, 1 if bench.small else 10, steps, bench)
    return found


def _steps_of(run: Run, warm: int, steps: int, bench: Bench) -> dict[str, Any]:
    def take(count: int) -> list[StepRecord]:
        for _ in range(count):
            run.step()
        return run.read()

    run.open()
    take(warm)
    bench.forget_peak()
    begun = time.perf_counter()
    records = take(steps)
    seconds = time.perf_counter() - begun
    return {
        "scenes_per_s": steps * run.config.stages[0].batch / seconds,
        "data_wait": statistics.mean(record.data_wait for record in records),
        "peak_gib": bench.peak_gib(),
        **bench.profile(partial(take, 3)),
    }
