"""How many procedural views per second this machine makes.

python benchmarks/procedural.py --threads 2 --size 128
"""

from __future__ import annotations

import platform
import statistics
import time
from dataclasses import dataclass
from typing import Literal

import torch
import tyro

from ilrm.datasets.procedural import ProceduralConfig, make_batch


@dataclass(frozen=True)
class Args:
    """What is measured: ``repeats`` batches of ``scenes`` scenes, after one unmeasured batch."""

    threads: int = 2
    size: int = 128
    views: int = 12
    scenes: int = 4
    repeats: int = 7
    device: str = "cpu"
    style: Literal["plain", "photographic"] = "plain"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main(args: Args) -> None:
    """Print views per second (median, least and most over the repeats) and the processor seconds per view."""
    torch.set_num_threads(args.threads)
    config = ProceduralConfig(views=args.views, width=args.size, height=args.size, style=args.style)
    make_batch(range(args.scenes), config, args.device)
    rates, busy = [], []
    for repeat in range(1, args.repeats + 1):
        seeds = range(repeat * args.scenes, (repeat + 1) * args.scenes)
        wall, processor = time.perf_counter(), time.process_time()
        batch = make_batch(seeds, config, args.device)
        batch.images.sum().item()  # waits for a GPU
        views = args.scenes * args.views
        rates.append(views / (time.perf_counter() - wall))
        busy.append((time.process_time() - processor) / views)
    device = (
        torch.cuda.get_device_name() if args.device.startswith("cuda") else f"{_processor()}, {args.threads} threads"
    )
    print(f"{device}; torch {torch.__version__}; {args.size}x{args.size}, {args.views} views a scene, {args.style}")
    print(f"views a second: median {statistics.median(rates):.1f} (least {min(rates):.1f}, most {max(rates):.1f})")
    print(f"processor time: median {statistics.median(busy) * 1e3:.1f} ms a view")


if __name__ == "__main__":
    main(tyro.cli(Args))
