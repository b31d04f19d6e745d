"""What each part of feedback and of its training is worth, at equal steps.

    python benchmarks/feedback_ablations.py CAPTURES -o OUT                 # the folder of captures of mixed-feedback
    python benchmarks/feedback_ablations.py CAPTURES -o OUT --variants all gradients --steps 20

Every variant trains feedback of the frozen ``--weights`` as the preset ``mixed-feedback`` does, one sample a step, with
the same samples in the same order. Scored on validation scenes, half of them procedural and half captures, none of
which is in any other table. OUT/results.jsonl keeps what is done, so a stopped run goes on; OUT/table.md has it all.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from torch import Tensor, nn

from ilrm.core.gaussians import Gaussians
from ilrm.model import ILRM, FeedbackConfig, ILRMConfig
from ilrm.model import ilrm as network_module
from ilrm.model.feedback import Feedback, Seen
from ilrm.train.config import FeedbackTraining, TrainConfig
from ilrm.train.data.batch import Batch
from ilrm.train.data.loader import validation_batches
from ilrm.train.engine import train
from ilrm.train.presets import preset
from ilrm.train.validate import validate

ITERATIONS = (0, 1, 3, 6)


class Separate(Feedback):
    """Each iteration has a network of its own; what comes after the last of them uses that again."""

    def __init__(self, config: ILRMConfig) -> None:
        super().__init__(config)
        self.later = nn.ModuleList(Feedback(config) for _ in range(3))
        self._turn = 0

    def forward(self, gaussians: Gaussians, seen: Seen, iterations: int) -> list[Gaussians]:
        self._turn = 0
        return super().forward(gaussians, seen, iterations)

    def updates(self, evidence: Tensor, descent: Tensor | None, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        turn, self._turn = self._turn, self._turn + 1
        chosen = self if turn == 0 else self.later[min(turn, len(self.later)) - 1]
        return Feedback.updates(chosen, evidence, descent, memory)  # type: ignore[arg-type]


def of_evidence(*evidence: Any) -> Callable[[TrainConfig], TrainConfig]:
    def change(config: TrainConfig) -> TrainConfig:
        assert config.model.feedback is not None
        return replace(config, model=replace(config.model, feedback=replace(config.model.feedback, evidence=evidence)))

    return change


VARIANTS: dict[str, tuple[str, Callable[[TrainConfig], TrainConfig]]] = {
    "all": ("all evidence, shared weights, 1 to 4 iterations drawn, every one in the loss", lambda config: config),
    "residuals": ("residuals alone: own pixels and other views", of_evidence("pixels", "samples")),
    "gradients": ("gradients alone", of_evidence("gradients")),
    "separate": ("separate weights for each iteration", lambda config: config),
    "last": ("loss on the last iteration only", lambda c: replace(c, loss=replace(c.loss, iterations=0.0))),
    "fixed": ("3 iterations, never another number", lambda c: replace(c, feedback=FeedbackTraining((3, 3)))),
}


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        captures: data of ``mixed-feedback``.
        output: folder of the runs and results.
        variants: names of those to train now.
        steps: of each run.
        scenes: that validate.
        weights: the frozen network.
    """

    captures: tyro.conf.Positional[Path]
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("out/feedback-ablations")
    variants: tuple[str, ...] = tuple(VARIANTS)
    steps: int = 200
    scenes: int = 20
    weights: str = "ilrm-small"


def config_of(name: str, options: Options) -> TrainConfig:
    config = preset("mixed-feedback", options.captures)
    base = ILRM.from_pretrained(options.weights).config
    config = replace(
        config,
        model=replace(base, feedback=FeedbackConfig()),
        initial_weights=str(options.output / "base"),
        steps=options.steps,
        validation_scenes=options.scenes,
        validate_every=0,
        save_every=50,
        optimiser=replace(config.optimiser, warm_up=20),
        seed=11,
    )
    return VARIANTS[name][1](config)


def measured(name: str, options: Options, held_out: list[Batch]) -> dict[str, Any]:
    network_module.Feedback = Separate if name == "separate" else Feedback  # type: ignore[misc]
    try:
        config = config_of(name, options)
        begin = time.process_time()
        train(replace(config, validation=None), options.output / name)
        seconds = time.process_time() - begin
        model = ILRM(config.model)
        state = ILRM.from_pretrained(str(options.output / name / "weights")).state_dict()
        model.load_state_dict(state)
    finally:
        network_module.Feedback = Feedback  # type: ignore[misc]
    model.eval()
    scores = {}
    for iterations in ITERATIONS:

        def reconstruct(batch: Batch, iterations: int = iterations) -> Gaussians:
            given = (batch.images[:, : batch.inputs], batch.c2w[:, : batch.inputs], batch.K[:, : batch.inputs])
            return model(*given, feedback=iterations)

        scores[str(iterations)] = validate(reconstruct, held_out).scores
    assert model.feedback is not None
    parameters = sum(p.numel() for p in model.feedback.parameters())
    return {"variant": name, "steps": options.steps, "seconds": seconds, "parameters": parameters, "scores": scores}


def table(results: list[dict[str, Any]]) -> str:
    head = "| variant | parameters | seconds a step | " + " | ".join(f"T = {t}" for t in ITERATIONS) + " |"
    lines = [head, "|" + "---|" * (3 + len(ITERATIONS))]
    for one in results:
        cells = [
            f"{x['psnr_procedural']:.2f} / {x['psnr_captures']:.2f} / {x['depth_abs_rel']:.3f}"
            for x in (one["scores"][str(t)] for t in ITERATIONS)
        ]
        about, each = VARIANTS[one["variant"]][0], one["seconds"] / one["steps"]
        lines.append(f"| {about} | {one['parameters']:,} | {each:.1f} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(options: Options) -> int:
    options.output.mkdir(parents=True, exist_ok=True)
    done = options.output / "results.jsonl"
    results = [json.loads(line) for line in done.read_text().splitlines()] if done.exists() else []
    base = options.output / "base"
    if not base.exists():  # without feedback, if the weights have any: all start alike
        given = ILRM.from_pretrained(options.weights)
        plain = ILRM(replace(given.config, feedback=None))
        plain.load_state_dict({name: given.state_dict()[name] for name in plain.state_dict()})
        plain.save_pretrained(base)
    held_out = validation_batches(config_of("all", options))
    for name in options.variants:
        if any(one["variant"] == name and one["steps"] == options.steps for one in results):
            continue
        results.append(measured(name, options, held_out))
        with done.open("a") as file:
            file.write(json.dumps(results[-1]) + "\n")
        (options.output / "table.md").write_text(table(results))
        print(table(results[-1:]).splitlines()[-1], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
