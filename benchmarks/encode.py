"""Encode time and peak memory of the full-size networks, beside plain torch code and the machine's own products.

    python benchmarks/encode.py                       # all settings, prints a table
    python benchmarks/encode.py --network 2FF ...     # one setting
    python benchmarks/encode.py --profile --network 2FF --precision bf16 --threads 1

Each setting runs in a fresh process, in which ours, the plain layers (``ilrm.model.compute.plain``: nothing in parts,
torch's attention) and the bare matrix products of the same shapes take turns, so that whatever else the machine does
hits all three alike. Ratios are medians over the turns. Weights are random: time does not depend on their values.
Peak memory is of a process that runs ours alone, Python and torch included.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import tyro

from ilrm.core.precision import autocast
from ilrm.model import ILRM, ILRMConfig
from ilrm.model.compute.plain import plainly


@dataclass(frozen=True)
class Setting:
    """One measurement, run in this process."""

    network: Literal["2FF", "4HF"]
    precision: Literal["fp32", "bf16"]
    threads: int
    turns: int = 3
    size: int = 256
    alone: bool = False
    """Ours only, once, for its peak memory."""
    profile: bool = False
    """Print where the time goes, and measure nothing."""


def make(setting: Setting) -> tuple[ILRM, tuple[torch.Tensor, ...]]:
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
    return model, (images, c2w, K.expand(1, views, 3, 3))


def products(config: ILRMConfig, views: int, size: int) -> list[tuple[int, int, int, int, int]]:
    """Matrix products of a forward pass: how often, batch, rows, inner length, columns."""
    d, heads, width, hidden = config.width, config.width // config.head_width, config.head_width, config.mlp_ratio
    viewpoint = (size // config.size_multiple) ** 2
    image = viewpoint * config.image_tokens_per_viewpoint_token
    T, queries = views * viewpoint, viewpoint * config.uplift
    per_layer = [
        (1, 1, T, d, d * config.uplift),  # queries
        (2, 1, views * image, d, d),  # keys and values
        (1, views * heads, queries, width, image),
        (1, views * heads, queries, image, width),
        (1, 1, T, d * config.uplift, d),
        (1, 1, T, d, 3 * d),  # self-attention
        (1, heads, T, width, T),
        (1, heads, T, T, width),
        (1, 1, T, d, d),
        (2, 1, T, d, hidden * d),  # both MLPs
        (2, 1, T, hidden * d, d),
    ]
    return [(config.layers * count, *shape) for count, *shape in per_layer]


def operations(config: ILRMConfig, views: int, size: int) -> float:
    """Floating-point operations of the matrix products."""
    return float(sum(2 * n * b * r * k * c for n, b, r, k, c in products(config, views, size)))


def bare_seconds(config: ILRMConfig, views: int, size: int, dtype: torch.dtype) -> float:
    """What the matrix products alone take, each shape measured once into memory that is at hand."""
    total = 0.0
    for count, batch, rows, inner, columns in products(config, views, size):
        a, b = (torch.randn(batch, *shape).to(dtype) for shape in ((rows, inner), (columns, inner)))
        out = torch.empty(batch, rows, columns, dtype=dtype)
        taken = []
        for _ in range(3):
            begun = time.perf_counter()
            torch.bmm(a, b.transpose(1, 2), out=out)
            taken.append(time.perf_counter() - begun)
        total += count * min(taken[1:])
    return total


def measure(setting: Setting) -> dict[str, float]:
    torch.set_num_threads(setting.threads)
    model, inputs = make(setting)
    config, views = model.config, int(setting.network[0])
    ours = model.cast_weights() if setting.precision == "bf16" else model
    plain = model if setting.precision == "fp32" or setting.alone else make(setting)[0]
    cpu, dtype = torch.device("cpu"), torch.bfloat16 if setting.precision == "bf16" else torch.float32

    def run(network: ILRM, plainly_computed: bool) -> float:
        begun = time.perf_counter()
        way = plainly(network) if plainly_computed else nullcontext()
        with torch.inference_mode(), autocast(setting.precision, cpu), way:
            gaussians = network(*inputs)
        taken = time.perf_counter() - begun
        assert gaussians.finite().all()
        return taken

    if setting.profile:
        run(ours, False)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as record:
            run(ours, False)
        print(record.key_averages().table(sort_by="self_cpu_time_total", row_limit=20))
        return {}
    first = run(ours, False)
    if setting.alone:
        return {"first": first, "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    run(plain, True)
    turns = [
        (run(ours, False), run(plain, True), bare_seconds(config, views, setting.size, dtype))
        for _ in range(setting.turns)
    ]
    median: Callable[[int], float] = lambda i: statistics.median(turn[i] for turn in turns)  # noqa: E731
    return {
        "ours": median(0),
        "plain": median(1),
        "products": median(2),
        "of_plain": statistics.median(turn[0] / turn[1] for turn in turns),
        "of_products": statistics.median(turn[2] / turn[0] for turn in turns),
        "gflops": operations(config, views, setting.size) / median(0) / 1e9,
    }


def main() -> None:
    columns = ("ours s", "plain s", "ours / plain", "products s", "products / ours", "GFLOP/s", "peak GiB")
    print(f"| network | precision | threads | {' | '.join(columns)} |")
    print("|---" * (3 + len(columns)) + "|")
    for network in ("2FF", "4HF"):
        for precision in ("fp32", "bf16"):
            for threads in (1, 2):
                command = [sys.executable, __file__, "--network", network, "--precision", precision]
                command += ["--threads", str(threads)]
                m: dict[str, float] = {}
                for options in ([], ["--alone"]):
                    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
                    m |= json.loads(done.stdout)
                print(
                    f"| {network} | {precision} | {threads} | {m['ours']:.2f} | {m['plain']:.2f} | "
                    f"{m['of_plain']:.2f} | {m['products']:.2f} | {m['of_products']:.2f} | {m['gflops']:.0f} | "
                    f"{m['peak_gib']:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(tyro.cli(Setting, config=(tyro.conf.FlagCreatePairsOff,)))))
    else:
        main()
