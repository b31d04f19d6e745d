"""Two processes train as one does: gloo on the CPU, DDP and FSDP2."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ilrm.core.errors import ConfigError
from ilrm.train import distributed
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
def test_two_processes_are_as_one(alone: Path, tmp_path: Path) -> None:
    run(command(CONFIG, tmp_path / "out", "--devices", "2", "--strategy", "ddp"))
    assert_same(tmp_path / "out", alone)


@pytest.mark.slow
def test_a_run_goes_on_in_shards_and_back(alone: Path, tmp_path: Path) -> None:
    """The same file continues in another number of processes, in shards or not."""
    output, unscored = tmp_path / "out", replace(CONFIG, validate_every=0, validation=None)
    train(replace(unscored, steps=2), output)
    run(command(replace(unscored, steps=4, accumulate=2), output, "--devices", "2", "--strategy", "fsdp"))
    train(CONFIG, output)
    assert_same(output, alone)


@pytest.mark.slow
def test_shards_of_torchrun_that_are_read_later(tmp_path: Path) -> None:
    """What is in shards is as one, too; so are numbers that stay on the device until some steps are done."""
    # One agent, which takes any free port. Two agents, as on two nodes, sometimes wait minutes for each other after the
    # run is complete.
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    config = replace(CONFIG, read_every=4)
    train(config, tmp_path / "alone")
    plain = command(config, tmp_path / "out", "--devices", "2", "--strategy", "fsdp")
    run([sys.executable, *launcher, *plain[1:]])
    assert_same(tmp_path / "out", tmp_path / "alone")


@pytest.mark.slow
def test_mistake_is_told_once(tmp_path: Path) -> None:
    options = ("--devices", "2", "--strategy", "fsdp")
    said = run(command(replace(CONFIG, term_norms=1), tmp_path / "out", *options), status=1)
    assert said.count("needs whole weights, and these are in shards") == 1
    assert "Traceback" not in said


SLURM = {"SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "train.sh"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x"}


@pytest.mark.parametrize(
    ("variables", "devices", "nodes"),
    [
        ({}, 4, 1),  # the command starts the others itself
        ({**TORCHRUN, "RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, 2, 2),
        ({**SLURM, "SLURM_NTASKS": "8", "SLURM_TASKS_PER_NODE": "8"}, 8, 1),
        ({**SLURM, "SLURM_NTASKS": "16", "SLURM_TASKS_PER_NODE": "8(x2)", "SLURM_PROCID": "9"}, 8, 2),
        ({"SLURM_NTASKS": "8", "SLURM_JOB_NAME": "interactive"}, 2, 1),
        ({"SLURM_NTASKS": "8", "SLURM_JOB_NAME": "train.sh"}, 1, 1),  # in a batch script, without srun
    ],
)
def test_processes_that_were_started_by_others(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], devices: int, nodes: int
) -> None:
    environment(monkeypatch, variables)
    distributed._check_started(devices, nodes)


@pytest.mark.parametrize(
    ("variables", "devices", "nodes", "message"),
    [
        (
            {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
            1,
            1,
            "torchrun started 2 processes, 2 on",
        ),
        (
            {**SLURM, "SLURM_NTASKS": "2", "SLURM_TASKS_PER_NODE": "1(x2)"},
            1,
            1,
            "SLURM started 2 processes, 1 on a node",
        ),
        ({**SLURM, "SLURM_NTASKS": "4", "SLURM_TASKS_PER_NODE": "3,1"}, 2, 2, "SLURM started 4 processes, 3 and 1 on"),
        ({"SLURM_NTASKS": "8", "SLURM_JOB_NAME": "train.sh"}, 8, 1, "SLURM started 1 process, 1 on a node"),
    ],
)
def test_processes_that_do_not_fit_are_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], devices: int, nodes: int, message: str
) -> None:
    environment(monkeypatch, variables)
    with pytest.raises(ConfigError, match=message) as told:
        distributed._check_started(devices, nodes)
    assert f"--devices {devices} and --nodes {nodes}" in str(told.value)
    monkeypatch.setattr(distributed, "_FIRST_SPEAKS_S", 0.0)
    environment(monkeypatch, {**variables, "RANK": "1", "SLURM_PROCID": "1"})
    others_speak = "SLURM_STEP_ID" not in variables and "RANK" not in variables
    with pytest.raises(ConfigError if others_speak else SystemExit):
        distributed._check_started(devices, nodes)


def environment(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_"))]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
