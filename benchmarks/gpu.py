"""Every figure of the GPU path in one run of at most four minutes, as JSON with card, versions and commit.

    python benchmarks/gpu.py -o gpu.json            # on a GPU
    python benchmarks/gpu.py -o cpu.json --small    # the same script in small form, on any machine

Times are medians after a warm-up, with the device waited for. Weights are random: time does not depend on their values.
If a part fails, the report has its error, and the other parts go on. "busy" is the share of the wall time in which
kernels run, from torch's profiler.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from gpu_parts.bench import Bench
from gpu_parts.networks import compiled, encode, feedback, matching, transfer
from gpu_parts.rendering import matrix_rate, procedural, rasteriser, refinement
from gpu_parts.training import feedback_step, training_run, training_step


@dataclass(frozen=True)
class Arguments:
    """Measure everything that runs on a GPU."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """JSON file to write; it is written again after every part."""
    small: bool = False
    """Small sizes, on the CPU too: the script's own check."""
    parts: tuple[str, ...] = ()
    """Some of the parts by name; all by default."""
    minutes: float = 4.0
    """No part begins after this."""
    commit: str | None = None
    """Of the code, where it is no repository."""


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "matrix_rate": matrix_rate,
    "transfer": transfer,
    "rasteriser": rasteriser,
    "encode": encode,
    "matching": matching,
    "procedural": procedural,
    "training_step": training_step,
    "training_run": training_run,
    "feedback": feedback,
    "feedback_step": feedback_step,
    "refinement": refinement,
    "compiled": compiled,
}


def about(bench: Bench, given: str | None) -> dict[str, Any]:
    """Card, versions and commit."""
    folder = Path(__file__).resolve().parent
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    cuda = bench.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "gsplat": _version("gsplat"),
        "python": platform.python_version(),
        "commit": given or commit.stdout.strip() or None,
        "precision": bench.precision,
        "small": bench.small,
    }


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _chosen(parts: tuple[str, ...]) -> Iterator[tuple[str, Callable[[Bench], dict[str, Any]]]]:
    if unknown := sorted(set(parts) - set(PARTS)):
        sys.exit(f"There are no parts {', '.join(unknown)}. There are: {', '.join(PARTS)}")
    return ((name, part) for name, part in PARTS.items() if not parts or name in parts)


def main(arguments: Arguments) -> int:
    bench = Bench(arguments.small)
    report: dict[str, Any] = {"about": about(bench, arguments.commit), "seconds": {}, "parts": {}}
    started, failed = time.monotonic(), 0
    for name, part in _chosen(arguments.parts):
        if time.monotonic() - started > 60 * arguments.minutes:
            report["parts"][name] = {"left_out": "no time was left"}
            continue
        begun = time.monotonic()
        try:
            report["parts"][name] = part(bench)
        except Exception as error:
            failed += 1
            report["parts"][name] = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        report["seconds"][name] = round(time.monotonic() - begun, 2)
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
        print(name, report["seconds"][name], "s", json.dumps(report["parts"][name])[:200], flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, config=(tyro.conf.FlagCreatePairsOff,))))
