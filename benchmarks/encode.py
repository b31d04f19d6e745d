"""Encode time and peak memory of the full-size networks, each setting in a fresh process.

    python benchmarks/encode.py            # all settings, prints a table
    python benchmarks/encode.py --views 2  # one setting

Peak memory is the highest resident size of the process, Python and torch included. Weights are random: neither
time nor memory depends on their values.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Literal

import torch
import tyro

from ilrm.core.precision import autocast
from ilrm.model import ILRM, ILRMConfig


@dataclass(frozen=True)
class Setting:
    """One measurement, run in this process."""

    network: Literal["2FF", "4HF"]
    precision: Literal["fp32", "bf16"]
    threads: int
    repeats: int = 3
    size: int = 256


def measure(setting: Setting) -> dict[str, float]:
    torch.set_num_threads(setting.threads)
    config = ILRMConfig.released_two_view() if setting.network == "2FF" else ILRMConfig.released_wide()
    views = int(setting.network[0])
    torch.manual_seed(0)
    with torch.device("meta"):
        model = ILRM(config)
    model = model.to_empty(device="cpu").eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    images = torch.rand(1, views, setting.size, setting.size, 3)
    c2w = torch.eye(4).repeat(1, views, 1, 1)
    c2w[0, :, 0, 3] = torch.linspace(-1, 1, views)
    K = torch.tensor([[setting.size, 0, setting.size / 2], [0, setting.size, setting.size / 2], [0, 0, 1]])
    seconds = []
    with torch.inference_mode(), autocast(setting.precision, torch.device("cpu")):
        for _ in range(setting.repeats):
            begun = time.perf_counter()
            gaussians = model(images, c2w, K.expand(1, views, 3, 3))
            seconds.append(time.perf_counter() - begun)
    assert gaussians.finite().all()
    return {
        "first": seconds[0],
        "median": statistics.median(seconds[1:]),
        "worst": max(seconds[1:]),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> None:
    print("| network | precision | threads | first s | median s | worst s | peak GiB |\n|---|---|---|---|---|---|---|")
    for network in ("2FF", "4HF"):
        for precision in ("fp32", "bf16"):
            for threads in (1, 2):
                command = [sys.executable, __file__, "--network", network, "--precision", precision]
                out = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True, check=True)
                m = json.loads(out.stdout)
                print(
                    f"| {network} | {precision} | {threads} | {m['first']:.2f} | {m['median']:.2f} | "
                    f"{m['worst']:.2f} | {m['peak_gib']:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(tyro.cli(Setting))))
    else:
        main()
