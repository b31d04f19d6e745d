"""What feedback iterations bring, beside refinement of the same seconds.

    python benchmarks/feedback.py FOLDER ... -o OUT          # scenes on disk, and the procedural ones of weights.py
    python benchmarks/feedback.py -o OUT --procedural 4      # a trial

For every scene and number of inputs: PSNR, SSIM and depth error on held-out views after T = 0 .. 6 iterations, with
their processor seconds (of one thread). The rivals start from T = 0 and take as many steps of Adam as fit into the
seconds of T = 1, 2 and 3 iterations: on all inputs at once ("full"), or on two at a time ("mini"). Last, refinement
for 10, 30 and 60 s from T = 0 and from T = 3, whose iterations count. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from PIL import Image

from ilrm import Gaussians, Scene, render
from ilrm.model.reconstruct import reconstruct
from ilrm.pipeline.refine import RefineConfig, refine
from ilrm.scenes import select_inputs

sys.path.insert(0, str(Path(__file__).parent))
from weights import Options as Sources
from weights import network, score
from weights import scenes as test_scenes

_PICTURE_WIDTH = 960
RIVALS = {
    "full": replace(RefineConfig.long(), views_per_step=None),
    "mini": RefineConfig.long(),
}


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        folders: scenes on disk, or none.
        output: folder of the results.
        procedural, first: number of procedural scenes, and the first one to measure now.
        views: numbers of input photos.
        most: iterations.
        rivals: measure refinement of equal time, too.
        long: seconds of refinement to compare from T = 0 and T = 3; none skips it.
        size: longer side of photos in pixels.
        weights: name or path.
        picture: instead of measuring, write a picture of the folders' scenes from 8 photos: a held-out photo, and its
            rendering after 0, 1 and 3 iterations.
    """

    folders: tyro.conf.Positional[tuple[Path, ...]] = ()
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("out/feedback")
    procedural: int = 50
    first: int = 0
    views: tuple[int, ...] = (2, 4, 8, 12)
    most: int = 6
    rivals: bool = True
    long: tuple[float, ...] = ()
    size: int = 256
    weights: str = "ilrm-small"
    picture: Path | None = None


def iterated(inputs: Scene, options: Options) -> tuple[list[Gaussians], list[float]]:
    """The states after each iteration, the decoder's first, and their seconds: all iterations take as long."""
    model = network(options.weights, True)
    begin = time.process_time()
    reconstruct(inputs, model, feedback=0, points=False)
    between = time.process_time()
    states = reconstruct(inputs, model, feedback=options.most, iterations=True, points=False)
    alone, together = between - begin, time.process_time() - between
    first = len(states.means) - 1 - options.most
    numbers = range(options.most + 1)
    each = (together - alone) / max(options.most, 1)
    return [states[first + i] for i in numbers], [alone + each * i for i in numbers]


def refined(start: Gaussians, inputs: Scene, seconds: float, config: RefineConfig) -> tuple[Gaussians, int]:
    """Refined for these processor seconds, by steps whose time was measured before; and their number."""
    begin = time.process_time()
    refine(start, inputs, 3, config=config)
    steps = int(seconds / ((time.process_time() - begin) / 3))
    return (refine(start, inputs, steps, config=config).gaussians if steps else start), steps


def measure(inputs: Scene, held_out: Scene, options: Options) -> dict[str, Any]:
    near = inputs.cameras.near_plane()
    found: dict[str, Any] = {}
    states, seconds = iterated(inputs, options)
    for iterations, (state, used) in enumerate(zip(states, seconds, strict=True)):
        found[f"T{iterations}"] = {**score(state, held_out, near), "seconds": used}
    for name, config in RIVALS.items() if options.rivals else ():
        for iterations in (1, 2, 3):
            allowed = max(seconds[iterations] - seconds[0], 0.0)
            result, steps = refined(states[0], inputs, allowed, config)
            found[f"{name}{iterations}"] = {**score(result, held_out, near), "steps": steps}
    for allowed in options.long:
        for iterations in (0, 3):
            left = allowed - (seconds[iterations] - seconds[0])
            result, steps = refined(states[iterations], inputs, left, RefineConfig.long())
            found[f"T{iterations}+{allowed:g}s"] = {**score(result, held_out, near), "steps": steps}
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Means by group of scenes, inputs and what was done."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups["procedural" if row["scene"].startswith("procedural") else row["scene"], row["views"]].append(row)
    columns = [name for name in rows[0] if name not in ("scene", "views")]
    lines = [f"| scenes | inputs | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for (name, views), of_group in sorted(groups.items()):
        cells = [_cell([row[column] for row in of_group if column in row]) for column in columns]
        lines.append(f"| {len(of_group)} x {name} | {views} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(values: list[dict[str, float]]) -> str:
    if not values:
        return ""
    means = {key: sum(value[key] for value in values) / len(values) for key in values[0]}
    parts = [f"{means['psnr']:.2f}", f"{means['ssim']:.3f}"]
    parts += [f"{means['abs_rel']:.3f}"] if "abs_rel" in means else []
    parts += [f"{means['seconds']:.1f} s"] if "seconds" in means else [f"{means['steps']:.0f} steps"]
    return " / ".join(parts)


def draw(options: Options, target: Path) -> None:
    rows = []
    for _, _, scene, candidates, hidden in test_scenes(Sources(options.folders, procedural=0, size=options.size)):
        inputs = scene.select(select_inputs(scene.cameras, 8, candidates)).loaded()
        held_out = scene.select(hidden[len(hidden) // 2 :][:1]).loaded()
        states, _ = iterated(inputs, replace(options, most=3))
        near = inputs.cameras.near_plane()
        drawn = [render(states[i], held_out.cameras, near=near).rgb[0].clamp(0, 1) for i in (0, 1, 3)]
        row = torch.cat([held_out.images[0], *drawn], dim=1).permute(2, 0, 1)[None]
        height = round(row.shape[2] * _PICTURE_WIDTH / row.shape[3])
        rows.append(torch.nn.functional.interpolate(row, (height, _PICTURE_WIDTH), mode="area")[0])
    picture = torch.cat(rows, dim=1).permute(1, 2, 0).mul(255).round().byte().numpy()
    Image.fromarray(picture).save(target, quality=90)


def main(options: Options) -> None:
    torch.set_num_threads(1)
    if options.picture is not None:
        draw(options, options.picture)
        return
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "results.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(row["scene"], row["views"]) for row in rows}
    sources = Sources(options.folders, procedural=options.procedural, first=options.first, size=options.size)
    for name, _, scene, candidates, hidden in test_scenes(sources):
        for views in options.views:
            if views > len(candidates) or (name, views) in done:
                continue
            inputs = scene.select(select_inputs(scene.cameras, views, candidates)).loaded()
            row = {"scene": name, "views": views, **measure(inputs, scene.select(hidden).loaded(), options)}
            rows.append(row)
            with file.open("a") as out:
                out.write(json.dumps(row) + "\n")
            brief = {key: round(value["psnr"], 2) for key, value in row.items() if isinstance(value, dict)}
            print(name, views, json.dumps(brief), flush=True)
    if rows:
        (options.output / "table.md").write_text(table(rows))


if __name__ == "__main__":
    main(tyro.cli(Options))
