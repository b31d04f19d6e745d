"""The smallest run that has every part: 32x32 procedural scenes, one layer, averaged weights, validation."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from ilrm.model import ComputeConfig, FootprintDecoder, ILRMConfig
from ilrm.train.config import LossConfig, OptimiserConfig, Procedural, Spread, Stage, TrainConfig
from ilrm.train.serialise import to_json
from tests.conftest import PATIENCE_S

MODEL = ILRMConfig(width=32, head_width=16, layers=1, decoder=FootprintDecoder())
STAGE = Stage((32, 32), 2, Spread(inputs=(2, 3), targets=1), (Procedural(),))
# Wall times; everything else in log.csv must be reproduced.
TIMES = {"scenes_per_s", "seconds", "data_wait"}


def tiny(**changes: Any) -> TrainConfig:
    """The config, with some fields changed."""
    config = TrainConfig(
        name="tiny",
        model=MODEL,
        stages=(STAGE,),
        steps=4,
        compute=ComputeConfig(mini_batch="random"),
        loss=LossConfig(depth=0.1),
        optimiser=OptimiserConfig(peak=2e-3, schedule="constant", warm_up=3, ema=0.9),
        validation=replace(STAGE, batch=1),
        seed=3,
        precision="fp32",
        save_every=0,
        validate_every=0,
        validation_scenes=1,
    )
    return replace(config, **changes)


def rows(output: Path, name: str = "log.csv") -> list[dict[str, str]]:
    """A table of a run, without wall times."""
    with (output / name).open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def command(config: TrainConfig, output: Path, *options: str) -> list[str]:
    """The command line that runs a config (written beside its output)."""
    file = output.with_suffix(".json")
    to_json(config, file)
    return [sys.executable, "-m", "ilrm.cli", "train", "smoke", "-o", str(output), *options, "--config", str(file)]


def environment() -> dict[str, str]:
    """One thread per process: some of these tests run several processes."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


def run(arguments: list[str], status: int = 0) -> str:
    """Run a command to its end and check the exit status; returns its stderr."""
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == status, done.stderr
    return done.stderr
