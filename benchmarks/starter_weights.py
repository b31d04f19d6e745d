"""What the training of ``ilrm-small`` added: the bundled weights beside the same network untrained, no refinement.

    python benchmarks/starter_weights.py [FOLDER ...]

Untrained, the network shows what plane-sweep matching found. Procedural scenes have seeds that training never drew
(below 10^7); every 8th photo of a FOLDER is held out, or every 4th view of a procedural scene.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from ilrm import ILRM, Scene, load_scene, reconstruct, render
from ilrm.evaluate import psnr, ssim
from ilrm.scenes import split_holdout
from ilrm.scenes.procedural import ProceduralConfig, make_scene


@dataclass(frozen=True)
class Options:
    """What is compared.

    Attributes:
        folders: scenes on disk, or none.
        procedural: number of procedural scenes of each kind.
    """

    folders: tyro.conf.Positional[tuple[Path, ...]] = ()
    procedural: int = 10


def procedural(count: int, baseline: tuple[float, float]) -> Iterator[Scene]:
    config = ProceduralConfig(views=8, width=128, height=128, baseline=baseline)
    return (make_scene(seed, config) for seed in range(1000, 1000 + count))


def held_out_scores(scene: Scene, model: ILRM, every: int) -> tuple[float, float]:
    inputs, held_out = split_holdout(len(scene), every)
    gaussians = reconstruct(scene.select(inputs), model)
    views = scene.select(held_out)
    with torch.no_grad():
        rgb = render(gaussians, views.cameras).rgb
    truth = views.images[:]
    return psnr(rgb, truth).mean().item(), ssim(rgb, truth).mean().item()


def main(options: Options) -> None:
    trained = ILRM.from_pretrained("ilrm-small")
    torch.manual_seed(0)
    untrained = ILRM(trained.config).eval()
    groups = {
        "procedural, small baselines": (list(procedural(options.procedural, (0.05, 0.5))), 4),
        "procedural, wide baselines": (list(procedural(options.procedural, (0.5, 1.5))), 4),
        **{folder.name: ([load_scene(folder, max_side=256)], 8) for folder in options.folders},
    }
    print("| scenes | untrained PSNR | trained PSNR | untrained SSIM | trained SSIM |\n|---|---|---|---|---|")
    for name, (scenes, every) in groups.items():
        before, after = (
            torch.tensor([held_out_scores(scene, model, every) for scene in scenes]).mean(0)
            for model in (untrained, trained)
        )
        print(f"| {name} | {before[0]:.2f} | {after[0]:.2f} | {before[1]:.3f} | {after[1]:.3f} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
