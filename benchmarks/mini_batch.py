"""Step time and memory of mini-batch cross-attention, full : half : quarter, each in a fresh process.

    python benchmarks/mini_batch.py                   # the table
    python benchmarks/mini_batch.py --kind quarter    # one row's measurement

A step is the network's forward and backward pass in the (8, H, F) layout, without rendering. Memory is what the step
adds to the process's highest resident size, so mostly the activations kept for the backward pass.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

import torch
import tyro

from ilrm.model import ILRM, ComputeConfig, ILRMConfig
from ilrm.model.config import MiniBatch


@dataclass(frozen=True)
class Setting:
    """One measurement, run in this process."""

    kind: MiniBatch = "none"
    width: int = 384
    layers: int = 6
    views: int = 8
    size: int = 128
    repeats: int = 4
    threads: int = 1


def measure(setting: Setting) -> dict[str, float]:
    torch.set_num_threads(setting.threads)
    torch.manual_seed(0)
    model = ILRM(ILRMConfig(width=setting.width, layers=setting.layers), ComputeConfig(mini_batch=setting.kind))
    V, size = setting.views, setting.size
    images = torch.rand(1, V, size, size, 3)
    c2w = torch.eye(4).repeat(1, V, 1, 1)
    c2w[0, :, 0, 3] = torch.linspace(-1, 1, V)
    K = torch.tensor([[size, 0, size / 2], [0, size, size / 2], [0, 0, 1]]).expand(1, V, 3, 3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(setting.repeats):
        begun = time.perf_counter()
        gaussians = model(images, c2w, K)
        (gaussians.means.square().mean() + gaussians.opacities.mean()).backward()
        seconds.append(time.perf_counter() - begun)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"median": statistics.median(seconds[1:]), "worst": max(seconds[1:]), "gib": (after - before) / 2**20}


def main() -> None:
    rows = {}
    for kind in ("none", "half", "quarter"):
        out = subprocess.run([sys.executable, __file__, "--kind", kind], capture_output=True, text=True, check=True)
        rows[kind] = json.loads(out.stdout)
    full = rows["none"]
    print("| mini-batch | median s | worst s | time ratio | added GiB | memory ratio |\n|---|---|---|---|---|---|")
    for kind, row in rows.items():
        print(
            f"| {'full' if kind == 'none' else kind} | {row['median']:.2f} | {row['worst']:.2f} | "
            f"{row['median'] / full['median']:.2f} | {row['gib']:.2f} | {row['gib'] / full['gib']:.2f} |"
        )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(tyro.cli(Setting))))
    else:
        main()
