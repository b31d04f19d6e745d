"""Two processes train as one does: gloo on the CPU, DDP and FSDP2."""

from __future__ import annotations

import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ilrm.train.checkpoint import read_checkpoint
from ilrm.train.engine import train
from tests.train.runs import STAGE, command, rows, run, tiny

CONFIG = tiny(steps=5, stages=(replace(STAGE, batch=4),), validate_every=5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("alone") / "out"
    train(CONFIG, output)
    return output


def assert_same(output: Path, expected: Path) -> None:
    """Losses, gradient norms and validation agree to 1e-5, and the weights of the checkpoints nearly."""
    for name in ("log.csv", "validation.csv"):
        for row, wanted in zip(rows(output, name), rows(expected, name), strict=True):
            assert {k: float(v) for k, v in row.items()} == pytest.approx(
                {k: float(v) for k, v in wanted.items()}, rel=1e-5
            )
    found, tensors = (read_checkpoint(x / "last").tensors for x in (output, expected))
    assert found.keys() == tensors.keys()
    for name, x in found.items():
        assert x.shape == tensors[name].shape, name
        assert torch.allclose(x, tensors[name], atol=2e-4, rtol=1e-3), name


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_are_as_one(alone: Path, tmp_path: Path, strategy: str) -> None:
    run(command(CONFIG, tmp_path / "out", "--devices", "2", "--strategy", strategy))
    assert_same(tmp_path / "out", alone)


@pytest.mark.slow
def test_sharded_run_goes_on_alone_and_back(alone: Path, tmp_path: Path) -> None:
    """The same file continues in another number of processes."""
    sharded = ("--devices", "2", "--strategy", "fsdp")
    output = tmp_path / "out"
    run(command(replace(CONFIG, steps=2, validate_every=0, validation=None), output, *sharded))
    run(command(replace(CONFIG, steps=3, validate_every=0, validation=None), output))
    run(command(replace(CONFIG, accumulate=2), output, *sharded))
    assert_same(output, alone)


@pytest.mark.slow
def test_torchrun(alone: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    plain = command(CONFIG, tmp_path / "out", "--devices", "2")
    run([sys.executable, *launcher, *plain[1:]])
    assert_same(tmp_path / "out", alone)


@pytest.mark.slow
def test_mistake_is_told_once(tmp_path: Path) -> None:
    said = run(command(replace(CONFIG, accumulate=4), tmp_path / "out", "--devices", "2"), status=1)
    assert said.count("does not divide into 2 ranks") == 1
    assert "Traceback" not in said
