"""Tables that can be continued, and dashboards that show them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ilrm.core.errors import ConfigError
from ilrm.train.config import LossConfig
from ilrm.train.engine import train
from ilrm.train.log import Table, active_terms
from tests.conftest import NO_BYTECODE, PATIENCE_S
from tests.train.runs import environment, rows, tiny


def table(path: Path, step: int) -> Table:
    return Table(path, ("step", "loss", "note"), step)


def test_rows_after_the_checkpoint_are_cut(tmp_path: Path) -> None:
    first = table(tmp_path / "t.csv", 0)
    for step in range(1, 6):
        first.append({"step": step, "loss": step / 3, "note": 'a, "b"\nc'})
    again = table(tmp_path / "t.csv", 3)
    again.append({"step": 4, "loss": 0.5})
    found = rows(tmp_path, "t.csv")
    assert [row["step"] for row in found] == ["1", "2", "3", "4"]
    assert found[2] == {"step": "3", "loss": "1", "note": 'a, "b"\nc'}
    assert found[3] == {"step": "4", "loss": "0.5", "note": ""}


def test_half_a_row_is_cut(tmp_path: Path) -> None:
    table(tmp_path / "t.csv", 0).append({"step": 1, "loss": 0.25, "note": "x"})
    with (tmp_path / "t.csv").open("a") as file:
        file.write("2,0.1")
    table(tmp_path / "t.csv", 9)
    assert (tmp_path / "t.csv").read_text() == "step,loss,note\n1,0.25,x\n"


def test_table_of_something_else_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b,c\n1,2,3\n")
    table(tmp_path / "t.csv", 9)
    assert (tmp_path / "t.csv").read_text() == "step,loss,note\n"


def test_numbers_tell_floats_apart(tmp_path: Path) -> None:
    value = torch.rand(200, generator=torch.Generator().manual_seed(0))
    written = table(tmp_path / "t.csv", 0)
    for i, x in enumerate(value.tolist()):
        written.append({"step": i, "loss": x})
    assert torch.equal(torch.tensor([float(row["loss"]) for row in rows(tmp_path, "t.csv")]), value)


FULL_DISK = """
import resource, sys
from pathlib import Path
from ilrm.core.errors import OutputError
from ilrm.train.log import Table

table = Table(Path(sys.argv[1]), ("step", "note"), 0)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    for step in range(100):
        table.append({"step": step, "note": "x" * 40})
except OutputError as error:
    print(error)
"""


def test_full_disk_is_told(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "t.csv")],
        env={**environment(), **NO_BYTECODE},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.stdout.startswith(f"Cannot write {tmp_path / 't.csv'}: file too large."), done.stderr


def test_only_active_terms_have_columns() -> None:
    assert active_terms(LossConfig()) == ("mse",)
    assert active_terms(LossConfig(perceptual="vgg", depth=0.1)) == ("mse", "perceptual", "depth")
    assert active_terms(LossConfig(perceptual="vgg", perceptual_weight=0.0)) == ("mse",)
    assert active_terms(LossConfig(iterations=1.0, closer=0.2)) == ("mse", "iterations", "closer")


def scalars(folder: Path) -> dict[str, list[int]]:
    """Steps of every curve in TensorBoard's files, later files superseding earlier ones."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [e.step for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_boards_show_a_run_once(tmp_path: Path) -> None:
    """Continued after a save that is older than the last row: no step appears twice."""
    config = tiny(steps=2, validate_every=2)
    train(config, tmp_path)
    before = (tmp_path / "last").read_bytes()
    train(replace(config, steps=4), tmp_path)
    (tmp_path / "last").write_bytes(before)
    train(replace(config, steps=5), tmp_path)
    curves = scalars(tmp_path / "tensorboard")
    assert curves["train/loss"] == curves["loss/depth"] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2", "3", "4", "5"]
    assert [row["step"] for row in rows(tmp_path, "validation.csv")] == ["2", "4", "5"]
    picture = np.array(Image.open(tmp_path / "validation" / "step_4.png"))
    assert picture.shape == (32, 96, 3)
    assert picture.std() > 5


class FakeRun:
    def __init__(self, **options: Any) -> None:
        self.options, self.logged, self.finished = options, [], False

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


def test_wandb_is_used_where_a_project_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[FakeRun] = []
    fake = ModuleType("wandb")
    fake.__spec__ = importlib.util.spec_from_loader("wandb", None)
    fake.init = lambda **options: started.append(FakeRun(**options)) or started[-1]  # type: ignore[attr-defined]
    fake.Error = KeyError  # type: ignore[attr-defined]
    fake.Image = lambda array: ("image", array.shape)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    train(tiny(steps=1), tmp_path / "quiet")
    assert started == []
    monkeypatch.setenv("WANDB_PROJECT", "trial")
    train(tiny(steps=1), tmp_path / "out")
    (board,) = started
    assert board.finished
    assert board.options["name"] == "out"
    assert board.options["config"]["name"] == "tiny"
    assert (1, {"validation": ("image", (32, 96, 3))}) in board.logged
    assert any("train/loss" in values for _, values in board.logged)
    train(tiny(steps=2), tmp_path / "out")
    train(tiny(steps=1), tmp_path / "elsewhere" / "out")
    first, continued, other = (run.options["id"] for run in started)
    assert first == continued != other  # one curve for one run, whatever its folder is called
    fake.init = lambda **options: {}["API key"]  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"wandb cannot start: 'API key'"):
        train(tiny(steps=1), tmp_path / "unknown")


def test_without_tensorboard_nothing_is_missing_but_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("ilrm.train.log.find_spec", lambda name: None if name == "tensorboard" else find(name))
    train(tiny(steps=1), tmp_path)
    assert not (tmp_path / "tensorboard").exists()
    assert len(rows(tmp_path)) == 1
