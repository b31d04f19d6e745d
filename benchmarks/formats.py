"""Size, speed, memory and loss of every splat format.

    python benchmarks/formats.py                                # on the bundled capture, all sizes; prints a table
    python benchmarks/formats.py --result OUT --counts 131072 1000000 2000000 --degrees 0 3 --picture formats.png

The Gaussians are those of a reconstruction, each replaced by as many as the count needs: scattered by one standard
deviation (seed 0) and smaller in proportion, so that pictures stay similar. SH of a higher degree
than the result has are drawn from a normal distribution of width 0.05. Every file is written and read in fresh
processes; peak memory is the highest resident size of the process, Python, torch and the Gaussians included. The loss
is the PSNR between renderings of what was read back and renderings of the Gaussians themselves, from the cameras of the
reconstruction, over all pixels.
"""

from __future__ import annotations

import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from PIL import Image

from ilrm.core.errors import IlrmError
from ilrm.core.gaussians import Gaussians, quaternion_to_matrix
from ilrm.render import render
from ilrm.splats import load_gaussians, save_gaussians
from ilrm.splats.cameras import load_cameras
from ilrm.splats.formats import FORMATS

_VIEWS = 4
_SH_WIDTH = 0.05
# Clusters colours by k-means; with SH of a higher degree on the CPU 20,000 Gaussians take minutes.
_SLOW = (".sog",)


@dataclass(frozen=True)
class Table:
    """All formats.

    Attributes:
        result: folder of `ilrm reconstruct`; by default one of the bundled capture is made.
        counts: numbers of Gaussians.
        degrees: SH degrees; those above 0 with the first count only.
        formats: extensions.
        repeats: how often each file is written and read.
        picture: file for one rendering of each format side by side.
    """

    result: Path | None = None
    counts: tuple[int, ...] = (131_072, 1_000_000, 2_000_000)
    degrees: tuple[int, ...] = (0, 3)
    formats: tuple[str, ...] = tuple(FORMATS)
    repeats: int = 3
    picture: Path | None = None


@dataclass(frozen=True)
class Job:
    """One format in this process.

    Attributes:
        task: what to do.
        gaussians: tensors to write (and to render for "render").
        file: splat file to write or read.
        cameras: cameras.json of the reconstruction.
        pictures: .npy file for the renderings.
    """

    task: Literal["write", "read", "render"]
    gaussians: Path
    file: Path
    cameras: Path
    pictures: Path
    repeats: int


def grow(gaussians: Gaussians, count: int, degree: int) -> Gaussians:
    """The Gaussians described at the top of this file."""
    draw = torch.Generator().manual_seed(0)
    copies = math.ceil(count / len(gaussians))
    many = gaussians[torch.arange(len(gaussians)).repeat(copies)[:count]]
    if copies > 1:
        local = many.scales * torch.randn(count, 3, generator=draw)
        scattered = many.means + (quaternion_to_matrix(many.quats) @ local[..., None])[..., 0]
        many = Gaussians(scattered, many.scales / copies**0.5, many.quats, many.opacities, many.sh)
    wanted = (degree + 1) ** 2
    drawn = _SH_WIDTH * torch.randn(count, max(wanted - many.sh.shape[1], 0), 3, generator=draw)
    sh = torch.cat([many.sh, drawn], dim=1)[:, :wanted]
    return Gaussians(many.means, many.scales, many.quats, many.opacities, sh)


def work(job: Job) -> dict[str, object]:
    """Do one job; seconds of each repeat and the peak memory."""
    given = torch.load(job.gaussians, mmap=True, weights_only=True)
    gaussians = Gaussians(**given)
    report: dict[str, object] = {}
    if job.task == "write":
        report["seconds"] = timed(lambda: save_gaussians(gaussians, job.file), job.repeats)
        report["bytes"] = job.file.stat().st_size
    elif job.task == "read":
        report["seconds"] = timed(lambda: load_gaussians(job.file), job.repeats)
    report["peak_gib"] = peak_gib()
    if job.task != "write":
        shown = gaussians if job.task == "render" else load_gaussians(job.file)
        cameras = load_cameras(job.cameras)[0].to(dtype=torch.float32)
        cameras = cameras[torch.linspace(0, len(cameras) - 1, min(_VIEWS, len(cameras))).long()]
        with torch.no_grad():
            np.save(job.pictures, render(shown, cameras).rgb.clamp(0, 1).numpy())
    return report


def peak_gib() -> float:
    """The highest resident size of this process. On Linux getrusage would count that of its parent in."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    own = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return (own[0] if own else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 2**20


def timed(call: Callable[[], object], repeats: int) -> list[float]:
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun)
    return seconds


def run(job: Job) -> dict:
    """The same in a fresh process. Raises CalledProcessError with what it said."""
    options = [word for f in fields(job) for word in (f"--{f.name}", str(getattr(job, f.name)))]
    done = subprocess.run([sys.executable, __file__, *options], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


def measure(table: Table, result: Path, count: int, degree: int, folder: Path) -> list[Image.Image]:
    """Print the rows of one set of Gaussians; the first view of each format."""
    tensors = folder / "gaussians.pt"
    grown = grow(load_gaussians(result / "scene.ply"), count, degree)
    torch.save({f.name: getattr(grown, f.name) for f in fields(grown)}, tensors)
    del grown
    truth = folder / "truth.npy"
    run(Job("render", tensors, folder / "none", result / "cameras.json", truth, 1))
    shown = [np.load(truth)[0]]
    for extension in table.formats:
        if extension in _SLOW and (count, degree) != (table.counts[0], 0):
            print(f"| {extension} | {count:,} | {degree} | left out: takes very long without a GPU |", flush=True)
            continue
        file, pictures = folder / f"scene{extension}", folder / "pictures.npy"
        try:
            wrote = run(Job("write", tensors, file, result / "cameras.json", pictures, table.repeats))
            read = run(Job("read", tensors, file, result / "cameras.json", pictures, table.repeats))
        except RuntimeError as error:
            print(f"| {extension} | {count:,} | {degree} | failed: {error} |", flush=True)
            continue
        error = float(np.square(np.load(pictures).astype(np.float64) - np.load(truth)).mean())
        loss = f"{-10 * math.log10(error):.1f}" if error else "equal"
        print(
            f"| {extension} | {count:,} | {degree} | {wrote['bytes'] / 1e6:.1f} | {wrote['bytes'] / count:.1f} | "
            f"{spread(wrote['seconds'])} | {spread(read['seconds'])} | {wrote['peak_gib']:.2f} | "
            f"{read['peak_gib']:.2f} | {loss} |",
            flush=True,
        )
        shown.append(np.load(pictures)[0])
        file.unlink()
    return [Image.fromarray((255 * picture).round().astype(np.uint8)) for picture in shown]


def spread(seconds: list[float]) -> str:
    """Median, then fastest and slowest."""
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} .. {max(seconds):.2f})"


def main(table: Table) -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(
        f"Commit {commit}, {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"load average {os.getloadavg()[0]:.1f}; seconds are median (fastest .. slowest) of {table.repeats}.\n"
    )
    print("| format | Gaussians | SH degree | MB | bytes each | write s | read s | write GiB | read GiB | PSNR dB |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder, result = Path(name), table.result
        if result is None:
            result = folder / "result"
            command = [sys.executable, "-m", "ilrm.cli", "demo", "-o", str(result), "--json"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        settings = [(count, table.degrees[0]) for count in table.counts]
        settings += [(table.counts[0], degree) for degree in table.degrees[1:]]
        pictures = [measure(table, result, count, degree, folder) for count, degree in settings]
    if table.picture is not None:
        width, height = pictures[0][0].size
        sheet = Image.new("RGB", (max(len(row) for row in pictures) * width, len(pictures) * height))
        for y, row in enumerate(pictures):
            for x, picture in enumerate(row):
                sheet.paste(picture, (x * width, y * height))
        sheet.save(table.picture)


if __name__ == "__main__":
    if "--task" in sys.argv:
        try:
            print(json.dumps(work(tyro.cli(Job))))
        except IlrmError as problem:
            sys.exit(problem.problem)
    else:
        main(tyro.cli(Annotated[Table, tyro.conf.arg(name="")]))
