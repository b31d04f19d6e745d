"""Time the CPU rasteriser: forward and backward, one view, and on the smallest size also the reference.

    python benchmarks/rasteriser.py [--threads 1 2] [--repeats 9]

The Gaussians are pixel-aligned ones, as the model predicts them: one for each pixel of a grid in each of several
input views on an arc around a wavy surface, placed on that surface with 2 % noise in depth, standard deviations of
0.5 to 1.5 pixels of the rendered image, opacities uniform in [0.05, 0.95], degree 0. The rendered view lies between
the input views, so the layers of all views overlap in it. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import time
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path

import torch

from ilrm.core.cameras import Cameras
from ilrm.core.gaussians import Gaussians
from ilrm.render import Backend, render


@dataclass(frozen=True)
class Size:
    """``views`` input views with grid x grid Gaussians each, rendered at ``pixels`` x ``pixels``."""

    views: int
    grid: int
    pixels: int

    @property
    def count(self) -> int:
        return self.views * self.grid**2


# The reference is timed on the first only: its memory grows with Gaussians times pixels.
SIZES = (Size(4, 16, 32), Size(4, 64, 128), Size(8, 128, 256), Size(8, 192, 512))


def arc_cameras(angles: torch.Tensor, pixels: int) -> Cameras:
    """Cameras (V) at distance 3 on a horizontal arc, facing the origin; 53 degrees field of view."""
    c2w = torch.eye(4).repeat(len(angles), 1, 1)
    sin, cos = angles.sin(), angles.cos()
    c2w[:, 0, 0], c2w[:, 0, 2], c2w[:, 2, 0], c2w[:, 2, 2] = cos, -sin, sin, cos
    c2w[:, 0, 3], c2w[:, 2, 3] = 3 * sin, -3 * cos
    K = torch.tensor([[pixels, 0, pixels / 2], [0, pixels, pixels / 2], [0, 0, 1.0]])
    return Cameras(c2w, K.repeat(len(angles), 1, 1), pixels, pixels)


def pixel_aligned(size: Size, seed: int = 0) -> Gaussians:
    """The Gaussians described at the top of this file."""
    draw = torch.Generator().manual_seed(seed)
    cameras = arc_cameras(torch.linspace(-0.3, 0.3, size.views), size.grid)
    origins, directions = (x.reshape(-1, 3) for x in cameras.rays())
    flat = origins + directions * (-origins[:, 2:] / directions[:, 2:])  # where the rays meet the plane z = 0
    relief = 0.2 * torch.sin(3 * flat[:, 0]) * torch.cos(2 * flat[:, 1])
    distance = (relief[:, None] - origins[:, 2:]) / directions[:, 2:]
    distance = distance * (1 + 0.02 * torch.randn(size.count, 1, generator=draw))
    pixel = distance / size.pixels
    return Gaussians(
        means=origins + distance * directions,
        scales=pixel * (0.5 + torch.rand(size.count, 3, generator=draw)),
        quats=torch.nn.functional.normalize(torch.randn(size.count, 4, generator=draw), dim=-1),
        opacities=0.05 + 0.9 * torch.rand(size.count, generator=draw),
        sh=torch.randn(size.count, 1, 3, generator=draw),
    )


def measure(size: Size, backend: Backend, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of each forward and each backward pass, after one warm-up of both."""
    values = pixel_aligned(size)
    cameras = arc_cameras(torch.tensor([0.05]), size.pixels)
    target = torch.rand(1, size.pixels, size.pixels, 3, generator=torch.Generator().manual_seed(1))
    forward, backward = [], []
    for _ in range(repeats + 1):
        gaussians = Gaussians(**{f.name: getattr(values, f.name).clone().requires_grad_() for f in fields(values)})
        start = time.perf_counter()
        rgb = render(gaussians, cameras, backend=backend).rgb
        middle = time.perf_counter()
        loss = (rgb - target).square().mean()
        before = time.perf_counter()
        loss.backward()
        forward.append(middle - start)
        backward.append(time.perf_counter() - before)
    return forward[1:], backward[1:]


def milliseconds(seconds: list[float]) -> str:
    """Median, then fastest and slowest."""
    low, middle, high = (1e3 * f(seconds) for f in (min, statistics.median, max))
    return f"{middle:.1f} ({low:.1f} .. {high:.1f})"


def processor() -> str:
    """The CPU's name, as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} x {len(names)}" if names else platform.processor()


def git(*words: str) -> str:
    """What a git command prints about this checkout."""
    result = subprocess.run(["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent, check=True)
    return result.stdout.strip()


def commit() -> str:
    """The short hash of the checkout, with a plus sign if the package has uncommitted changes."""
    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno", ":/src/ilrm") else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--no-reference", action="store_true")
    arguments = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numba", "llvmlite", "numpy"))
    print(f"Commit {commit()}; {processor()}; Python {platform.python_version()}, {packages}.")
    print(f"Load average over the last minute at the start: {os.getloadavg()[0]:.1f}.")
    print(f"Median (fastest .. slowest) of {arguments.repeats} runs after one warm-up, in milliseconds.\n")
    print("| backend | threads | Gaussians | image | forward | backward |")
    print("|---|---|---|---|---|---|")
    jobs: list[tuple[Backend, Size]] = [("numba", size) for size in SIZES]
    if not arguments.no_reference:
        jobs.append(("reference", SIZES[0]))
    for backend, size in jobs:
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            forward, backward = measure(size, backend, arguments.repeats)
            label = f"| {backend} | {threads} | {size.count} | {size.pixels} x {size.pixels} |"
            print(label, milliseconds(forward), "|", milliseconds(backward), "|", flush=True)


if __name__ == "__main__":
    main()
