"""The paper's ablations at small scale: the same scenes, steps and seed for every variant.

    python benchmarks/ablations.py -o out/ablations --steps 300

Every batch is made once and used for all variants. The score is PSNR on scenes that no variant was trained on. After
each variant it writes OUT/curves.csv, OUT/curves.json and, if matplotlib is installed, OUT/curves.png, and prints the
table.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import torch
import tyro

from ilrm.datasets.procedural import ProceduralConfig
from ilrm.model import ILRM, FootprintDecoder, ILRMConfig
from ilrm.train.config import LossConfig, OptimiserConfig, Procedural, Spread, Stage, TrainConfig
from ilrm.train.data.batch import Batch
from ilrm.train.data.batch_maker import BatchMaker
from ilrm.train.losses import losses
from ilrm.train.optim import learning_rate, make_optimiser, set_learning_rate

BASE = ILRMConfig(width=128, head_width=32, layers=4, decoder=FootprintDecoder())
# Name, change, and the paper's loss from it at full size (tables 7 and 9, of 29.24 dB).
VARIANTS = {
    "iLRM": (BASE, 0.0),
    "no uplifting": (replace(BASE, uplift=1), -0.34),
    "one cross-attention only": (replace(BASE, cross_attention="first"), -0.66),
    "images at viewpoint resolution": (replace(BASE, image_factor=2, uplift=1), -0.77),
    "no self-attention": (replace(BASE, self_attention=False), -5.91),
}


@dataclass(frozen=True)
class Options:
    """Small-scale ablation.

    Attributes:
        output: folder of the curves.
        steps: of each variant, 4 scenes each.
        held_out: batches of 4 scenes that score.
        every: steps between scores.
        seed: of parameters and scenes.
    """

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    steps: int = 300
    held_out: int = 8
    every: int = 50
    seed: int = 1


def make_batches(options: Options, first_seed: int, count: int) -> list[Batch]:
    source = Procedural(ProceduralConfig(baseline=(0.1, 0.6)), first_seed=first_seed)
    stage = Stage((64, 64), 4, Spread(inputs=(4,)), (source,), flip=False)
    maker = BatchMaker(TrainConfig("ablations", BASE, (stage,), max(1, count), seed=options.seed))
    return [maker[i] for i in range(count)]


def score(model: ILRM, held_out: list[Batch]) -> float:
    with torch.no_grad():
        found = [
            losses(model, batch, LossConfig(), 0, model_config=model.config, precision="fp32") for batch in held_out
        ]
    return sum(x.psnr.item() for x in found) / len(found)


def train(config: ILRMConfig, batches: list[Batch], held_out: list[Batch], options: Options) -> list[float]:
    """Scores before the first step and after every ``options.every``."""
    torch.manual_seed(options.seed)
    model = ILRM(config)
    rule = OptimiserConfig(peak=1e-3, warm_up=20)
    optimiser = make_optimiser(model, rule)
    curve = [score(model, held_out)]
    for step, batch in enumerate(batches):
        set_learning_rate(optimiser, learning_rate(step, len(batches), rule))
        found = losses(model, batch, LossConfig(depth=0.1), step, model_config=config, precision="fp32")
        optimiser.zero_grad()
        found.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), rule.clip)
        optimiser.step()
        if (step + 1) % options.every == 0:
            curve.append(score(model, held_out))
    return curve


def main(options: Options) -> None:
    options.output.mkdir(parents=True, exist_ok=True)
    batches = make_batches(options, 10**7, options.steps)
    held_out = make_batches(options, 5 * 10**6, options.held_out)
    curves = {}
    print("| variant | parameters | PSNR | against iLRM | paper |\n|---|---|---|---|---|")
    for name, (config, published) in VARIANTS.items():
        curves[name] = train(config, batches, held_out, options)
        size, behind = ILRM(config).parameter_count(), curves[name][-1] - curves["iLRM"][-1]
        print(f"| {name} | {size:,} | {curves[name][-1]:.2f} | {behind:+.2f} | {published:+.2f} |", flush=True)
        write(curves, options)


def write(curves: dict[str, list[float]], options: Options) -> None:
    (options.output / "curves.json").write_text(json.dumps(curves, indent=1))
    with (options.output / "curves.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["step", *curves])
        for i in range(len(curves["iLRM"])):
            rows.writerow([i * options.every, *(f"{curve[i]:.3f}" for curve in curves.values())])
    if find_spec("matplotlib") is not None:
        draw(curves, options)


def draw(curves: dict[str, list[float]], options: Options) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120)
    axes = figure.add_subplot(xlabel="step (4 scenes each)", ylabel="PSNR on other scenes, dB")
    for name, curve in curves.items():
        axes.plot([i * options.every for i in range(len(curve))], curve, label=name, marker=".")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(options.output / "curves.png")


if __name__ == "__main__":
    main(tyro.cli(Options))
