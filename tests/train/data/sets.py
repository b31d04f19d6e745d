"""Small data sets and configs for the tests of training data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ilrm.datasets.procedural import ProceduralConfig
from ilrm.model import ILRMConfig
from ilrm.train.config import Procedural, Source, Spread, Stage, TrainConfig
from tests.scenes.test_chunks import example

MODEL = ILRMConfig(width=16, head_width=16, layers=1, patch_size=4)
PROCEDURAL = Procedural(ProceduralConfig(objects=(0, 2), shadows=False))
SIZE = (16, 24)


def write_chunk_set(folder: Path, scenes: int = 6, views: int = 8) -> Path:
    """``scenes`` scenes in chunks of two, with keys s0, s1, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    index = {}
    for first in range(0, scenes, 2):
        name = f"{first // 2:06d}.torch"
        keys = [f"s{number}" for number in range(first, min(first + 2, scenes))]
        torch.save([example(key, views=views) for key in keys], folder / name)
        index |= dict.fromkeys(keys, name)
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def stage(*sources: Source, **changes: Any) -> Stage:
    values: dict[str, Any] = {"size": SIZE, "batch": 4, "sampler": Spread(inputs=(2, 3), targets=1)}
    return Stage(sources=sources or (PROCEDURAL,), **{**values, **changes})


def config(*stages: Stage, **changes: Any) -> TrainConfig:
    return TrainConfig("test", MODEL, stages or (stage(),), 100, **changes)
