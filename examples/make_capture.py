"""Make the capture that ships with the package: twelve photos of a furnished room, four of them held out.

    python examples/make_capture.py -o src/ilrm/assets/capture

The same command always makes the same photos.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from ilrm.datasets.procedural import ProceduralConfig, make_scene
from ilrm.files import write_json
from ilrm.scenes.save import save_scene

HELD_OUT = (2, 4, 7, 9)  # between inputs, never at the ends of the walk


@dataclass(frozen=True)
class Args:
    """Where to write the capture, and what it contains."""

    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    seed: int = 54
    size: int = 256
    samples: int = 4


def main(args: Args) -> None:
    """Write images, transforms.json with nerfstudio's train and test lists, and surface points."""
    config = ProceduralConfig(
        width=args.size,
        height=args.size,
        kind="room",
        path="handheld",
        baseline=(0.35, 0.45),
        objects=(14, 20),
        samples=args.samples,
        points=1024,
    )
    scene = replace(make_scene(args.seed, config), depth=None)
    transforms = save_scene(scene, args.out, image_format="jpg")
    listed = json.loads(transforms.read_text("utf-8"))
    files = [frame["file_path"] for frame in listed["frames"]]
    listed["test_filenames"] = [files[k] for k in HELD_OUT]
    listed["train_filenames"] = [file for file in files if file not in listed["test_filenames"]]
    write_json(transforms, listed)
    print(f"{len(listed['train_filenames'])} inputs and {len(HELD_OUT)} held-out photos in {args.out}")


if __name__ == "__main__":
    main(tyro.cli(Args))
