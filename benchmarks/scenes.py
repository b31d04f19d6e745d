"""Held-out quality of ``ilrm reconstruct`` on folders of scenes, before and after refinement.

    python benchmarks/scenes.py FOLDER [FOLDER ...] -o out/scenes

Every 8th photo is held out and scored, all others are inputs; nothing else uses the held-out photos. Each FOLDER is a
scene, or holds scenes. Writes a table and one picture: truth above rendering, one column per view.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from PIL import Image


@dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        folders: scenes, or folders of scenes.
        output: where results and table.md go.
        refine: steps of refinement.
        views: number of inputs; all that are not held out by default.
        size: longer side in pixels.
        weights: name or path.
        show: held-out views of each scene in the picture.
    """

    folders: tyro.conf.Positional[tuple[Path, ...]]
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    refine: int = 300
    views: int | None = None
    size: int = 256
    weights: str = "ilrm-small"
    show: int = 2


def scenes_in(folders: tuple[Path, ...]) -> list[Path]:
    found = []
    for folder in folders:
        inside = sorted(child for child in folder.iterdir() if (child / "transforms.json").exists())
        found += [folder] if (folder / "transforms.json").exists() else inside
    return found


def run(scene: Path, options: Options) -> dict:
    command = [sys.executable, "-m", "ilrm.cli", "reconstruct", str(scene), "-o", str(options.output / scene.name)]
    command += ["--holdout", "8", "--refine", str(options.refine), "--watch", "none", "--weights", options.weights]
    command += ["--size", str(options.size), "--json"]
    command += [] if options.views is None else ["--views", str(options.views)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def picture(options: Options, results: dict[str, dict]) -> Image.Image:
    columns = []
    for name, metrics in results.items():
        folder = options.output / name / "renders"
        for held_out in metrics["held_out_names"][: options.show]:
            with Image.open(folder / f"{Path(held_out).stem}_vs_truth.png") as opened:
                both = np.asarray(opened.convert("RGB"))
            half = both.shape[1] // 2
            columns.append(np.concatenate([both[:, half:], both[:, :half]]))
    height = max(c.shape[0] for c in columns)
    padded = [np.pad(c, ((0, height - c.shape[0]), (0, 4), (0, 0)), constant_values=255) for c in columns]
    return Image.fromarray(np.concatenate(padded, axis=1))


def before(name: str, metrics: dict) -> float:
    """A score before refinement, which is the only one without any."""
    return metrics[name] if metrics[f"{name}_before_refine"] is None else metrics[f"{name}_before_refine"]


def main(options: Options) -> None:
    options.output.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    lines = [
        f"Commit {commit}, {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"weights {options.weights}, {options.refine} steps of refinement.",
        "",
        "| scene | inputs | held out | size | PSNR before | PSNR after | SSIM before | SSIM after | Gaussians | "
        "reconstruct s | refine s | peak GB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    results = {}
    for scene in scenes_in(options.folders):
        m = results[scene.name] = run(scene, options)
        lines.append(
            f"| {scene.name} | {m['num_inputs']} | {len(m['held_out_names'])} | {m['width']}x{m['height']} | "
            f"{before('psnr', m):.2f} | {m['psnr']:.2f} | {before('ssim', m):.3f} | {m['ssim']:.3f} | "
            f"{m['num_gaussians']} | {m['seconds']['reconstruct']:.1f} | {m['seconds'].get('refine', 0):.1f} | "
            f"{m['peak_memory_gb']:.2f} |"
        )
        print(lines[-1], flush=True)
    (options.output / "table.md").write_text("\n".join(lines) + "\n")
    picture(options, results).save(options.output / "held_out.png")


if __name__ == "__main__":
    main(tyro.cli(Options))
