"""Checkpoints are complete, verified, and continue only the run that wrote them."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ilrm.core.errors import ConfigError, OutputError, WeightsError
from ilrm.model import ILRM, ComputeConfig
from ilrm.train.checkpoint import (
    Checkpoint,
    Progress,
    check_same_run,
    collect,
    copy_checkpoint,
    read_checkpoint,
    restore,
    write_checkpoint,
)
from ilrm.train.config import OptimiserConfig, TrainConfig
from ilrm.train.optim import Average, make_optimiser
from ilrm.train.serialise import to_dict
from tests.conftest import NO_BYTECODE, PATIENCE_S
from tests.train.runs import MODEL, STAGE, environment, tiny

PROGRESS = Progress(step=7, seconds=1.5, seen=14, unusable=1, skipped=2, best_psnr=20.25)


def trained(seed: int) -> tuple[ILRM, torch.optim.Optimizer, Average]:
    """A small network after two optimiser steps with random gradients."""
    torch.manual_seed(seed)
    network = ILRM(MODEL)
    optimiser, average = make_optimiser(network, OptimiserConfig()), Average(network, 0.9)
    for _ in range(2):
        for parameter in network.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimiser.step()
        average.update(network)
    return network, optimiser, average


def checkpoint() -> Checkpoint:
    return Checkpoint(PROGRESS, collect(*trained(0)), 2, to_dict(tiny()))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "last", checkpoint())
    return tmp_path / "last"


def test_everything_comes_back(file: Path) -> None:
    found, written = read_checkpoint(file), checkpoint()
    assert (found.progress, found.average_updates, found.config) == (PROGRESS, 2, to_dict(tiny()))
    assert found.tensors.keys() == written.tensors.keys()
    assert all(torch.equal(found.tensors[name], x) for name, x in written.tensors.items())


def test_training_goes_on_as_if_nothing_had_happened(file: Path) -> None:
    """The next step of a restored network and of the original are the same bits."""
    original, fresh = trained(0), trained(1)
    restore(read_checkpoint(file), *fresh)
    for network, optimiser, average in (original, fresh):
        generator = torch.Generator().manual_seed(5)
        for parameter in network.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimiser.step()
        average.update(network)
    first, second = collect(*original), collect(*fresh)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_copy_is_a_checkpoint(file: Path) -> None:
    copy_checkpoint(file, file.with_name("best"))
    assert file.with_name("best").read_bytes() == file.read_bytes()


def damaged(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    if how == "cut in half":
        del content[len(content) // 2 :]
    elif how == "empty":
        content.clear()
    elif how == "weight":
        content[header + 1234] ^= 1
    elif how == "last byte":
        content[-1] ^= 0x80
    elif how == "step":
        place = content.index(b'step\\": 7') + 8
        content[place : place + 1] = b"9"
    elif how == "digest":
        place = content.index(b'"sha256":"') + 10
        content[place : place + 1] = b"0" if content[place : place + 1] != b"0" else b"1"
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("how", ["cut in half", "empty", "weight", "last byte", "step", "digest"])
def test_damage_is_noticed(file: Path, how: str) -> None:
    damaged(file, how)
    with pytest.raises(WeightsError, match=r"damaged|cannot be read") as caught:
        read_checkpoint(file)
    assert str(file) in caught.value.problem
    assert "step_N" in caught.value.fix


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "weights")
    with pytest.raises(WeightsError, match="no checkpoint of a training run"):
        read_checkpoint(tmp_path / "weights")
    (tmp_path / "folder").mkdir()
    with pytest.raises(WeightsError, match="cannot be read"):
        read_checkpoint(tmp_path / "folder")


def test_code_is_never_run(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    (tmp_path / "last").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(WeightsError, match="cannot be read"):
        read_checkpoint(tmp_path / "last")
    assert not (tmp_path / "ran").exists()


def test_newer_format_is_refused(file: Path) -> None:
    state = {"format": 2, "anything": "else"}
    save_file(load_file(file), file, metadata={"ilrm_checkpoint": json.dumps(state), "sha256": "0"})
    with pytest.raises(WeightsError, match=r"newer version \(format 2\)") as caught:
        read_checkpoint(file)
    assert caught.value.fix == "update ilrm"


def test_tensors_of_another_network_are_refused(file: Path) -> None:
    stored = read_checkpoint(file)
    network = ILRM(replace(MODEL, layers=2))
    with pytest.raises(WeightsError, match=r"another network: layers\.1\."):
        restore(stored, network, make_optimiser(network, OptimiserConfig()), None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 4}, "seed: 3 there, 4 now"),
        ({"name": "other"}, 'name: "tiny" there, "other" now'),
        ({"model": replace(MODEL, width=64)}, "model.width: 32 there, 64 now"),
        ({"stages": (replace(STAGE, batch=4),)}, "stages.0.batch: 2 there, 4 now"),
        ({"stages": (STAGE, replace(STAGE, start=9))}, "stages.1.size.0: nothing there, 32 now"),
        ({"optimiser": replace(tiny().optimiser, peak=1.0)}, "optimiser.peak: 0.002 there, 1.0 now"),
    ],
)
def test_another_run_is_refused_by_its_fields(change: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_same_run(to_dict(tiny()), tiny(**change), Path("OUT/last"))
    assert words in caught.value.problem
    assert "OUT/last" in caught.value.problem


@pytest.mark.parametrize(
    "change",
    [
        *(
            {"steps": 99},
            {"save_every": 5},
            {"validate_every": 5},
            {"keep_every": 2},
            {"workers": 1},
            {"accumulate": 2},
        ),
        *(
            {"validation": None},
            {"compute": ComputeConfig("random", checkpoint=True, attention="math")},
            {"non_finite": 9},
            {"compile": True},
        ),
    ],
    ids=lambda change: next(iter(change)),
)
def test_how_far_and_how_it_is_split_may_change(change: dict[str, object]) -> None:
    check_same_run(to_dict(tiny()), tiny(**change), Path("last"))


def test_fields_younger_than_the_checkpoint_count_with_their_defaults() -> None:
    stored = to_dict(tiny())
    del stored["loss"]["matching"], stored["optimiser"]["eps"]
    check_same_run(stored, tiny(), Path("last"))
    with pytest.raises(ConfigError, match=r"optimiser\.eps: 1e-08 there, 0\.1 now"):
        check_same_run(stored, tiny(optimiser=replace(tiny().optimiser, eps=0.1)), Path("last"))


FULL_DISK = """
import resource, sys
from pathlib import Path
from dataclasses import replace
from ilrm.core.errors import OutputError
from ilrm.train.checkpoint import read_checkpoint, write_checkpoint

path = Path(sys.argv[1])
stored = read_checkpoint(path)
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size // 2,) * 2)
try:
    write_checkpoint(path, replace(stored, progress=replace(stored.progress, step=8)))
except OutputError as error:
    print(error)
"""


def test_full_disk_leaves_the_earlier_checkpoint(file: Path) -> None:
    before = file.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(file)],
        env={**environment(), **NO_BYTECODE},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Cannot write {file}: file too large.")
    assert file.read_bytes() == before
    assert [entry.name for entry in file.parent.iterdir()] == ["last"]


def test_unwritable_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="in this path is a file"):
        write_checkpoint(tmp_path / "file" / "last", checkpoint())


def test_same_run_check_reads_every_field() -> None:
    """A field added to the config is compared unless it is listed as free."""
    from ilrm.train.checkpoint import _FREE, _leaves

    names = {name.split(".")[0] for name, _ in _leaves(to_dict(tiny()), "")}
    assert names | {name for name in _FREE if "." not in name} == set(TrainConfig.__dataclass_fields__)
