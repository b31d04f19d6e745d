"""Cameras found from photos alone, beside the stored ones.

    python benchmarks/capture.py FOLDER ... -o OUT             # registered share, pose errors, seconds
    python benchmarks/capture.py FOLDER ... -o OUT --psnr      # and held-out PSNR of the whole road from both

FOLDER holds images/ and transforms.json, whose poses are used only for comparison. The found cameras are
aligned by a similarity first; position errors are shares of the largest distance of a camera from their mean.
OUT/results.jsonl keeps what is done, so a stopped run goes on.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

import ilrm
from ilrm.scenes import load_scene


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        folders: scenes with images/ and stored poses.
        output: folder of the results.
        psnr: also reconstruct from both and compare held-out PSNR.
        refine: steps of refinement in that.
    """

    folders: tyro.conf.Positional[tuple[Path, ...]]
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("out/capture")
    psnr: bool = False
    refine: int = 0


def align(found: np.ndarray, true: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Scale, rotation (3, 3) and translation (3,) that map poses (N, 4, 4) to others.

    The rotation is the mean of those between the cameras' own: places on a line would leave one angle open. Scale and
    translation have the least squared error of the places.
    """
    u, _, vt = np.linalg.svd(np.einsum("nij,nkj->ik", true[:, :3, :3], found[:, :3, :3]))
    rotation = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
    a, b = found[:, :3, 3] @ rotation.T, true[:, :3, 3]
    scale = ((a - a.mean(0)) * (b - b.mean(0))).sum() / np.square(a - a.mean(0)).sum()
    return scale, rotation, b.mean(0) - scale * a.mean(0)


def pose_errors(found: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotation errors in degrees and position errors (shares of the extent) of poses (N, 4, 4)."""
    scale, rotation, translation = align(found, true)
    centres = scale * found[:, :3, 3] @ rotation.T + translation
    turn = np.einsum("nji,njk->nik", rotation @ found[:, :3, :3], true[:, :3, :3])
    degrees = np.degrees(np.arccos(np.clip((np.trace(turn, axis1=1, axis2=2) - 1) / 2, -1, 1)))
    extent = np.linalg.norm(true[:, :3, 3] - true[:, :3, 3].mean(0), axis=1).max()
    return degrees, np.linalg.norm(centres - true[:, :3, 3], axis=1) / extent


def measure(folder: Path, options: Options) -> dict[str, Any]:
    out = options.output / folder.name
    photos = options.output / f"{folder.name}-photos"
    shutil.rmtree(photos, ignore_errors=True)
    shutil.copytree(folder / "images", photos)
    begin = time.perf_counter()
    report = ilrm.capture(photos, out, overwrite=True).report
    seconds = time.perf_counter() - begin
    stored, ours = load_scene(folder), load_scene(out)
    truth = {
        Path(name).stem: pose for name, pose in zip(stored.names, stored.cameras.c2w.double().numpy(), strict=True)
    }
    focal = {Path(name).stem: K[0, 0].item() for name, K in zip(stored.names, stored.cameras.K, strict=True)}
    stems = [Path(name).stem for name in ours.names]
    degrees, places = pose_errors(ours.cameras.c2w.double().numpy(), np.stack([truth[stem] for stem in stems]))
    ratio = [K[0, 0].item() / focal[stem] for stem, K in zip(stems, ours.cameras.K, strict=True)]
    row: dict[str, Any] = {
        "scene": folder.name,
        "photos": len(stored),
        "registered": len(ours),
        "mapper": report["mapper"],
        "rotation_deg": [round(float(np.median(degrees)), 3), round(float(degrees.max()), 3)],
        "position": [round(float(np.median(places)), 5), round(float(places.max()), 5)],
        "focal_ratio": round(float(np.median(ratio)), 4),
        "seconds": round(seconds, 1),
        "stages": report["seconds"],
    }
    if options.psnr:
        for name, source in (("stored", folder), ("found", out)):
            result = ilrm.run(source, refine=options.refine, export=())
            row[name] = {key: result.metrics[key] for key in ("psnr", "ssim", "num_inputs")}
    return row


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    options.output.mkdir(parents=True, exist_ok=True)
    results = options.output / "results.jsonl"
    done = {json.loads(line)["scene"] for line in results.read_text().splitlines()} if results.exists() else set()
    for folder in options.folders:
        if folder.name not in done:
            row = measure(folder, options)
            print(json.dumps(row), flush=True)
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
