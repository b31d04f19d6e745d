"""Train the starter weights on procedural scenes: one plain loop, one process, a time budget.

    python examples/train_starter.py -o out/starter --minutes 60

Every step makes a few scenes it has never seen, reconstructs each from some of its views, renders the others and
compares. The run can be stopped and continued: the same command resumes from OUT/state.pt.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from ilrm.cameras import Cameras, normalise
from ilrm.gaussians import Gaussians
from ilrm.model import ILRM, FootprintDecoder, ILRMConfig, MatchingConfig
from ilrm.precision import autocast
from ilrm.render import render
from ilrm.scenes.procedural import ProceduralBatch, ProceduralConfig, make_batch
from ilrm.weights import save_weights

SMALL = ILRMConfig(
    width=256,
    head_width=64,
    layers=6,
    viewpoint_factor=2,
    uplift=2,
    viewpoint_channels=("origin", "direction", "moment"),
    image_channels=("rgb", "origin", "direction", "moment", "match"),
    decoder=FootprintDecoder(),
    matching=MatchingConfig(planes=48, sources=3, window=5),
)


@dataclass(frozen=True)
class Stage:
    """A part of the run: from which share of it on, at which size, from how many views, on how wide baselines."""

    start: float
    size: int
    inputs: tuple[int, ...]
    scenes: int
    baseline: tuple[float, float]


STAGES = (
    Stage(0.0, 128, (2, 3, 4), 4, (0.05, 0.8)),
    Stage(0.35, 128, (2, 4, 6), 4, (0.1, 1.5)),
    Stage(0.7, 256, (2, 3, 4), 1, (0.1, 1.5)),
    Stage(0.85, 256, (4, 8), 1, (0.1, 1.5)),
)


@dataclass(frozen=True)
class Options:
    """Training of the starter weights.

    Attributes:
        output: folder of log.csv, state.pt and the weights.
        minutes: length of the whole run, over all its parts.
        learning_rate: peak, reached after 100 steps, then a cosine to zero at the end of the minutes.
        depth_weight: weight of the error in log-distance beside the squared error of rendered colours.
        targets: rendered views a scene.
        seed: of the parameters; scene n of the run is procedural scene seed * 10^7 + n.
    """

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    minutes: float = 60.0
    learning_rate: float = 8e-4
    depth_weight: float = 0.1
    targets: int = 2
    seed: int = 1


def stage_at(progress: float) -> Stage:
    return [stage for stage in STAGES if stage.start <= progress][-1]


def split_views(batch: ProceduralBatch, inputs: int) -> tuple[list[int], list[int]]:
    """Inputs spread over the path including its ends; all other frames are targets."""
    views = batch.images.shape[1]
    chosen = [round(i * (views - 1) / (inputs - 1)) for i in range(inputs)]
    return chosen, [i for i in range(views) if i not in chosen]


def batches(options: Options, first_scene: int, progress: list[float]) -> Iterator[tuple[ProceduralBatch, int, int]]:
    """Endless (batch, number of inputs, next scene), one batch ahead of the training step."""

    def make(scene: int, step: int) -> tuple[ProceduralBatch, int, int]:
        stage = stage_at(progress[0])
        inputs = stage.inputs[step % len(stage.inputs)]
        count = stage.scenes if inputs <= 4 else max(1, stage.scenes // 2)
        config = ProceduralConfig(
            views=inputs + options.targets, width=stage.size, height=stage.size, baseline=stage.baseline
        )
        seeds = [options.seed * 10**7 + scene + i for i in range(count)]
        return make_batch(seeds, config), inputs, scene + count

    with ThreadPoolExecutor(1) as ahead:
        step = first_scene
        waiting = ahead.submit(make, first_scene, step)
        while True:
            batch, inputs, following = waiting.result()
            step += 1
            waiting = ahead.submit(make, following, step)
            yield batch, inputs, following


def loss_terms(model: ILRM, batch: ProceduralBatch, inputs: int) -> tuple[Tensor, Tensor]:
    """Squared colour error of rendered target views, and mean error of log-distance on the inputs' own rays."""
    chosen, targets = split_views(batch, inputs)
    size = batch.images.shape[2]
    unit, extents = [], []
    for b in range(len(batch.images)):
        cameras, to_world = normalise(Cameras(batch.c2w[b], batch.K[b], size, size), chosen)
        unit.append(cameras)
        extents.append(to_world.scale)
    c2w = torch.stack([cameras.c2w for cameras in unit])
    with autocast("bf16", c2w.device):
        gaussians = model(batch.images[:, chosen], c2w[:, chosen], batch.K[:, chosen])
    colour = torch.stack(
        [
            (render(gaussians[b], unit[b][targets]).rgb - batch.images[b, targets]).square().mean()
            for b in range(len(unit))
        ]
    ).mean()
    return colour, distance_error(gaussians, batch, unit, chosen, torch.tensor(extents), model.config.viewpoint_factor)


def distance_error(
    gaussians: Gaussians, batch: ProceduralBatch, unit: list[Cameras], chosen: list[int], extents: Tensor, factor: int
) -> Tensor:
    """Mean |log(distance / true distance)| over the input views' Gaussians."""
    centres = torch.stack([cameras.centers[chosen] for cameras in unit])
    forward = torch.stack([cameras.forward[chosen] for cameras in unit])
    offset = gaussians.means.unflatten(1, (len(chosen), -1)) - centres[:, :, None]
    depth = torch.einsum("bvnc,bvc->bvn", offset, forward)
    # The nearest sample of each block: averaging depth across an edge would make up a surface in between.
    true = batch.depth[:, chosen, factor // 2 :: factor, factor // 2 :: factor].flatten(2) / extents[:, None, None]
    known = (true > 0) & (depth > 0)
    return (depth.clamp_min(1e-6).log() - true.clamp_min(1e-6).log()).abs()[known].mean()


def main(options: Options) -> None:
    torch.manual_seed(options.seed)
    options.output.mkdir(parents=True, exist_ok=True)
    model = ILRM(SMALL)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    gains = [p for p in model.parameters() if p.ndim == 1]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": gains, "weight_decay": 0.0}],
        lr=options.learning_rate,
        betas=(0.9, 0.95),
    )
    average = {name: x.clone() for name, x in model.state_dict().items()}
    step, scene, spent = 0, 0, 0.0
    state_file = options.output / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        average, step, scene, spent = state["average"], state["step"], state["scene"], state["seconds"]

    def save() -> None:
        torch.save(
            {
                "model": model.state_dict(),
                "optimiser": optimiser.state_dict(),
                "average": average,
                "step": step,
                "scene": scene,
                "seconds": spent,
            },
            state_file.with_suffix(".tmp"),
        )
        state_file.with_suffix(".tmp").replace(state_file)
        averaged = ILRM(SMALL)
        averaged.load_state_dict(average)
        save_weights(averaged, options.output / "ilrm-small", dtype=torch.bfloat16)

    log_file = (options.output / "log.csv").open("a", newline="")
    log = csv.writer(log_file)
    if step == 0:
        log.writerow(["step", "scenes", "seconds", "size", "inputs", "mse", "psnr", "distance_error", "lr"])
    budget = options.minutes * 60
    progress = [spent / budget]
    mark = last_save = time.monotonic()
    for batch, inputs, following in batches(options, scene, progress):
        rate = options.learning_rate * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * min(1, progress[0])))
        for group in optimiser.param_groups:
            group["lr"] = rate
        colour, distance = loss_terms(model, batch, inputs)
        optimiser.zero_grad()
        (colour + options.depth_weight * distance).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if torch.isfinite(norm):
            optimiser.step()
        step, scene = step + 1, following
        keep = min(0.998, step / (step + 10))
        for name, x in model.state_dict().items():
            average[name].lerp_(x, 1 - keep)
        now = time.monotonic()
        spent, mark = spent + now - mark, now
        progress[0] = spent / budget
        log.writerow(
            [
                *(step, scene, f"{spent:.1f}", batch.images.shape[2], inputs, f"{colour.item():.5f}"),
                *(f"{-10 * math.log10(colour.item()):.2f}", f"{distance.item():.4f}", f"{rate:.2e}"),
            ]
        )
        if step % 20 == 0:
            log_file.flush()
        if progress[0] >= 1 or now - last_save > 300:
            save()
            last_save = now
        if progress[0] >= 1:
            return


if __name__ == "__main__":
    main(tyro.cli(Options))
