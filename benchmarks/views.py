"""Held-out quality by the choice of inputs, and of one group of photos beside many.

    python benchmarks/views.py FOLDER [FOLDER ...]
    python benchmarks/views.py FOLDER [FOLDER ...] --counts 16 --groups

Every 8th photo is held out; nothing else uses it. Without --groups, as many inputs as each of ``counts`` says are
chosen by cameras alone (k-means) and by what they see together. With it, one group of that size is compared with
all photos in groups of that size. Each FOLDER is a scene, or holds scenes. Seconds are those that the process computes.
"""

from __future__ import annotations

import platform
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from ilrm.core.gaussians import Gaussians
from ilrm.core.reporting import Silent
from ilrm.core.scene import Scene
from ilrm.model.ilrm import ILRM
from ilrm.pipeline.forward.groups import Group, make_groups, view_affinity
from ilrm.pipeline.forward.passes import forward_pass
from ilrm.pipeline.scoring import score
from ilrm.scenes import load_scene, select_inputs, split_holdout
from ilrm.scenes.views import choose_inputs


@dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        folders: scenes, or folders of scenes.
        counts: numbers of inputs.
        groups: compare one group with all photos in groups of that size, rather than two choices.
        size: longer side in pixels.
        weights: name or path.
    """

    folders: tyro.conf.Positional[tuple[Path, ...]]
    counts: tuple[int, ...] = (2, 4, 8, 12)
    groups: bool = False
    size: int = 256
    weights: str = "ilrm-small"


def scenes_in(folders: tuple[Path, ...]) -> list[Path]:
    found = []
    for folder in folders:
        inside = sorted(child for child in folder.iterdir() if (child / "transforms.json").exists())
        found += [folder] if (folder / "transforms.json").exists() else inside
    return found


def measure(inputs: Scene, groups: list[Group], held_out: Scene, model: ILRM) -> tuple[Gaussians, str]:
    """The Gaussians, and PSNR, SSIM and seconds for the table."""
    start = time.process_time()
    rounds = model.feedback_iterations()
    made = forward_pass(inputs, model, groups, precision="fp32", feedback=rounds, reporter=Silent())
    seconds = time.process_time() - start
    psnr, ssim = score(made.gaussians, held_out, made.near) or (0.0, 0.0)
    return made.gaussians, f"{psnr:.2f} | {ssim:.3f} | {seconds:.0f}"


def compare(scene: Scene, count: int, model: ILRM, *, groups: bool) -> list[tuple[str, str, str]]:
    """Rows: what was chosen, number of inputs and Gaussians, scores."""
    rest, held_out = split_holdout(len(scene))
    truth, pool = scene.select(held_out).loaded(), scene.select(rest)
    chosen = {"k-means": select_inputs(pool.cameras, count), "co-visibility": choose_inputs(pool, count)}
    rows = []
    if groups:
        del chosen["k-means"]
    elif chosen["k-means"] == chosen["co-visibility"]:
        chosen = {"both": chosen["k-means"]}
    for name, views in chosen.items():
        made, scores = measure(pool.select(views), [Group(tuple(range(count)))], truth, model)
        rows.append((name, f"{count} | {len(made)}", scores))
    if groups:
        parts = make_groups(view_affinity(pool), count)
        made, scores = measure(pool, parts, truth, model)
        rows.append((f"{len(parts)} groups", f"{len(pool)} | {len(made)}", scores))
    return rows


def main(options: Options) -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(
        f"Commit {commit}, {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"weights {options.weights}, {options.size} px.\n\n"
        "| scene | photos | chosen by | inputs | Gaussians | PSNR | SSIM | CPU s |\n|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    model = ILRM.from_pretrained(options.weights)
    for folder in scenes_in(options.folders):
        scene = load_scene(folder, max_side=options.size)
        for count in options.counts:
            if count < len(split_holdout(len(scene))[0]):
                for name, size, scores in compare(scene, count, model, groups=options.groups):
                    print(f"| {folder.name} | {len(scene)} | {name} | {size} | {scores} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
