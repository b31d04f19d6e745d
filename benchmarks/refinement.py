"""Held-out PSNR and SSIM against the time of refinement, from the forward pass of 8 photos.

    python benchmarks/refinement.py SCENE ... -o OUT
    python benchmarks/refinement.py SCENE ... -o OUT --seconds 5 30 --fitted inputs

Every 8th photo is held out. "all" fits all other photos, as ``ilrm reconstruct`` does, "inputs" only those that the
network was given. Seconds are processor time of one thread, so that other work on the machine counts little; two cores
need a little more than half. Every budget is a run of its own. OUT/results.jsonl keeps what is done, so a stopped run
goes on; OUT/table.md has it all.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numba
import torch
import tyro

from ilrm import ILRM, Gaussians, Scene, load_scene
from ilrm.model.reconstruct import reconstruct
from ilrm.pipeline import refine as refinement
from ilrm.pipeline.refine import RefineConfig, refine
from ilrm.pipeline.refining.pace import Pace
from ilrm.pipeline.scoring import score
from ilrm.scenes import split_holdout
from ilrm.scenes.photos.background import background_colour
from ilrm.scenes.views import choose_inputs

Fitted = Literal["all", "inputs"]


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        scenes: folders.
        output: folder of the results.
        seconds: budgets of refinement; 0 is the forward pass.
        fitted: photos that refinement fits.
        views: inputs of the forward pass.
        size: longer side of the photos in pixels.
    """

    scenes: tyro.conf.Positional[tuple[Path, ...]]
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("out/refinement")
    seconds: tuple[float, ...] = (0.0, 5.0, 15.0, 30.0, 60.0)
    fitted: tuple[Fitted, ...] = ("all", "inputs")
    views: int = 8
    size: int = 256


@cache
def network() -> ILRM:
    return ILRM.from_pretrained("ilrm-small")


def _start(inputs: Scene) -> Gaussians:
    """The forward pass, as ``ilrm reconstruct`` makes it."""
    return replace(reconstruct(inputs, network()), background=background_colour(inputs))


def measured(start: Gaussians, fitted: Scene, held_out: Scene, seconds: float) -> dict[str, Any]:
    """Scores after so much time."""
    begin, steps = time.process_time(), 0
    if seconds:
        config = RefineConfig.for_steps(None).for_views(len(fitted), 0)
        result = refine(start, fitted, seconds=seconds, config=config)
        start, steps = result.gaussians, len(result.history)
    used = time.process_time() - begin
    found = score(start, held_out, fitted.cameras.near_plane())
    assert found is not None
    return {"seconds": seconds, "used": used, "steps": steps, "psnr": found[0], "ssim": found[1]}


def table(results: list[dict[str, Any]]) -> str:
    budgets = sorted({row["seconds"] for row in results})
    lines = ["| scene | fitted | " + " | ".join(f"{x:g} s" for x in budgets) + " |", "|" + "---|" * (2 + len(budgets))]
    for scene, fitted in dict.fromkeys((row["scene"], row["fitted"]) for row in results):
        mine = {row["seconds"]: row for row in results if (row["scene"], row["fitted"]) == (scene, fitted)}
        cells = [f"{mine[x]['psnr']:.2f} / {mine[x]['ssim']:.3f}" if x in mine else "" for x in budgets]
        lines.append(f"| {scene} | {fitted} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(options: Options) -> int:
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    refinement.Pace = lambda steps, seconds: Pace(steps, seconds, time.process_time)  # type: ignore[misc,assignment]
    options.output.mkdir(parents=True, exist_ok=True)
    done = options.output / "results.jsonl"
    results = [json.loads(line) for line in done.read_text().splitlines()] if done.exists() else []
    for path in options.scenes:
        scene = load_scene(path, max_side=options.size)
        candidates, held_out = split_holdout(len(scene), 8)
        inputs = choose_inputs(scene, min(options.views, len(candidates)), candidates)
        scored, start = scene.select(held_out).loaded(), None
        for fitted in options.fitted:
            photos = scene.select(inputs if fitted == "inputs" else candidates).loaded()
            for seconds in options.seconds:
                key = {"scene": path.name, "fitted": fitted, "seconds": seconds}
                if any(key.items() <= row.items() for row in results):
                    continue
                start = start or _start(scene.select(inputs).loaded())
                results.append({**key, "photos": len(photos), **measured(start, photos, scored, seconds)})
                with done.open("a") as file:
                    file.write(json.dumps(results[-1]) + "\n")
                (options.output / "table.md").write_text(table(results))
                print(json.dumps(results[-1]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
