"""``ilrm train``: the effect of its options, stopping and resuming, its messages."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ilrm.cli import main
from ilrm.cli.train import Train
from ilrm.train.checkpoint import read_checkpoint
from ilrm.train.config import TrainConfig
from ilrm.train.presets import PRESETS, preset
from ilrm.train.serialise import override, to_dict, to_json
from tests.cli.conftest import tree
from tests.conftest import PATIENCE_S, wait_until
from tests.train.runs import command, environment, rows, tiny

SMALL = ["--config", "stages.0.size=[32,32]", "validation.size=[32,32]", "model.width=32", "stages.0.batch=2"]


def test_smoke_run_leaves_a_log_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, output = tmp_path / "whole", tmp_path / "out"
    assert main(["train", "smoke", "-o", str(whole), "--steps", "6", "--seed", "1", *SMALL]) == 0
    capsys.readouterr()
    assert main(["train", "smoke", "-o", str(output), "--steps", "3", "--seed", "1", "--json", *SMALL]) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["step"], first["steps_now"], first["stopped_by"]) == (3, 3, "steps")
    assert (output / "last").is_file()
    with (output / "log.csv").open() as file:
        columns = csv.DictReader(file).fieldnames or []
    assert columns[:5] == ["step", "loss", "psnr", "lr", "scenes_per_s"]
    assert main(["train", "smoke", "-o", str(output), "--steps", "6", "--seed", "1", "--json", *SMALL]) == 0
    second = json.loads(capsys.readouterr().out)
    assert (second["step"], second["steps_now"]) == (6, 3)
    assert rows(output) == rows(whole)
    assert second["psnr"] == pytest.approx(float(rows(output)[-1]["psnr"]), abs=1e-5)


def test_every_preset_is_named_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    for name in PRESETS:
        assert name.removesuffix("-mc") in said
    assert {name.removesuffix("-mc") for name in PRESETS if name.endswith("-mc")} == {
        "re10k-2view",
        "re10k-4view",
        "re10k-8view",
    }


def leaves(value: object, path: str = "") -> Iterator[str]:
    """Paths of all fields of a config's JSON form that hold no objects."""
    inner = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    if not isinstance(value, dict) and not any(isinstance(x, dict) for _, x in inner):
        yield path
        return
    for name, below in inner:
        yield from leaves(below, f"{path}.{name}" if path else str(name))


@pytest.mark.parametrize("name", ["synthetic-small", "re10k-2view"])
def test_help_of_a_preset_lists_every_field(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", name, "--optimiser.peak", "0.125", "--help"])
    assert end.value.code == 0
    said = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    config = preset(name, None if name == "synthetic-small" else tmp_path)
    paths = [path.replace("_", "-") for path in leaves(to_dict(config))]
    assert len(paths) > 60
    assert {"stages.0.sampler.inputs", "stages.0.size", "optimiser.peak", "validation.batch"} <= {*paths}
    assert [path for path in paths if f"--{path} " not in said] == []
    assert "(default: 0.125)" in said


def parsed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> TrainConfig:
    """The config that a command line trains with."""
    configs: list[TrainConfig] = []

    def train(config: TrainConfig, *_: object, **__: object) -> None:
        configs.append(config)
        raise MemoryError

    monkeypatch.setattr("ilrm.train.engine.train", train)
    assert main(["train", *arguments]) == 1
    return configs[0]


def test_fields_are_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command line, a file and Python give the same config."""
    sampler = '{"kind": "bounded", "targets": 3}'
    given = parsed(
        monkeypatch,
        *("smoke", "--optimiser.peak", ".5", "-o", str(tmp_path), "--optimiser.betas", "0.5", "-0", "--save-every=7"),
        *("--stages.0.batch", "8", "--batch", "4", "--stages.0.size", "32", "96", "--stages.0.flip", "False"),
        *("--stages.0.shapes", "96", "32", "64", "48", "--validation.shapes", "64", "32"),
        *("--stages.0.sampler", sampler, "--validation.sampler.inputs", "2", "--loss.perceptual", "None"),
        *("--initial-weights", "ilrm-small", "--config", "seed=3", "--optimiser.weight-decay", "0"),
    )
    assignments = [
        *("optimiser.peak=0.5", "optimiser.betas=[0.5,0]", "save_every=7", "stages.0.batch=8", "stages.0.size=[32,96]"),
        *("stages.0.shapes=[[96,32],[64,48]]", "validation.shapes=[[64,32]]"),
        *("stages.0.flip=false", f"stages.0.sampler={sampler}", "validation.sampler.inputs=[2]"),
        *("loss.perceptual=null", "initial_weights=ilrm-small", "seed=3", "optimiser.weight_decay=0"),
    ]
    assert given == override(preset("smoke"), assignments)
    to_json(given, tmp_path / "all.json")
    assert given == parsed(monkeypatch, "smoke", "-o", str(tmp_path), "--config", str(tmp_path / "all.json"))


def test_options_change_the_config(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"optimiser": {"peak": 0.5}, "validate_every": 7}))
    made = Train(
        preset="synthetic-small",
        output=tmp_path,
        steps=9,
        seed=5,
        precision="fp32",
        accumulate=2,
        batch=8,
        workers=3,
        compile=True,
        checkpoint_layers=True,
        init="ilrm-small",
        config=(str(tmp_path / "a.json"), "loss.depth=0.25"),
    ).make_config()
    base = preset("synthetic-small")
    assert made == replace(
        base,
        steps=9,
        seed=5,
        precision="fp32",
        accumulate=2,
        workers=3,
        compile=True,
        initial_weights="ilrm-small",
        validate_every=7,
        compute=replace(base.compute, checkpoint=True),
        optimiser=replace(base.optimiser, peak=0.5),
        loss=replace(base.loss, depth=0.25),
        stages=tuple(replace(stage, batch=8) for stage in base.stages),
    )


def test_without_options_it_is_the_preset(tmp_path: Path) -> None:
    assert Train(preset="smoke", output=tmp_path).make_config() == preset("smoke")


def test_written_config_is_a_whole_change(tmp_path: Path) -> None:
    """The config.json of another run makes the same run of any preset, whatever kinds of parts it has."""
    to_json(preset("synthetic-small"), tmp_path / "config.json")
    made = Train(preset="smoke", output=tmp_path, config=(str(tmp_path / "config.json"),)).make_config()
    assert made == preset("synthetic-small")


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["train", "smoke", "-o", str(tmp_path / "out"), "--dry-run", *SMALL]
    assert main([*options, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["parameters"] > 10_000
    assert report["memory_bytes"] > 4 * report["parameters"]
    assert report["seconds"] > 0
    assert report["stages"][0]["gaussians"] == 3 * (32 // 2) ** 2
    assert main(options) == 0
    said = capsys.readouterr().out
    assert "parameters" in said
    assert "seconds per step" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_run_says_how_to_go_on(tmp_path: Path, number: int, status: int) -> None:
    """Both go to all its processes, as a terminal sends Ctrl-C and a scheduler SIGTERM."""
    output = tmp_path / "out"
    config = tiny(steps=100_000, workers=1)
    process = subprocess.Popen(
        command(config, output), env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    log = output / "log.csv"
    wait_until(lambda: log.exists() and len(log.read_text().splitlines()) >= 4, process)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == status, said
    step = read_checkpoint(output / "last").progress.step
    assert f"stopped after step {step} of 100000; the same command continues from there" in said
    assert "Traceback" not in said
    assert len(rows(output)) == step


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["smok"], "no preset 'smok'"),
        (["smoke", "--steps", "0"], "--steps 0 was given"),
        (["smoke", "--minutes", "-1"], "--minutes -1.0 was given"),
        (["smoke", "--minutes", "nan"], "--minutes nan was given"),
        (["smoke", "--batch", "0"], "--batch 0 was given"),
        (["smoke", "--accumulate", "3"], "does not divide"),
        (["smoke", "--init", "nothing-of-that-name"], "no weights 'nothing-of-that-name'"),
        (["smoke", "--data", "/nowhere"], "smoke"),
        (["re10k-2view"], "re10k-2view"),
        (["re10k-2view", "--data", "/nowhere"], "/nowhere"),
        (["smoke", "--config", "optimiser.pick=1"], "no field 'pick'"),
        (["smoke", "--config", "missing.json"], "--config missing.json cannot be read"),
        (["smoke", "--config", "seed=red"], 'seed = "red"'),
        (["smoke", "--config", "stages.²=1"], "no entry ²"),
        (["smoke", "--config", "model.head_width=0"], "head_width = 0"),
        (["smoke", "--config", "model.width=1e400"], "model.width = Infinity"),
        (["smoke", "--config", "loss.mse=" + "[" * 100_000], "nested too deeply"),
        (["smoke", "--config", "a" * 300], "cannot be read"),
        (["smoke", "--seed", "18446744073709551616"], "seed = 18446744073709551616"),
        (["smoke", "--steps", "1" * 30], "steps = 1111"),
        (["smoke", "--batch", "1" * 30], "batch = 1111"),
        (["smoke", "--config", "optimiser.weight_decay=NaN"], "weight_decay = nan"),
        (["smoke", "--config", "model.layers=100000"], "layers = 100000"),
        (["smoke", "--optimiser.peek", "1"], "no field 'peek'"),
        (["smoke", "--optimizer.peak", "1"], "did you mean optimiser?"),
        (["smoke", "--optimiser.peak"], "--optimiser.peak was given no value"),
        (["smoke", "--optimiser.peak", "-1"], "optimiser.peak = -1"),
        (["smoke", "--optimiser.peak", "high"], 'optimiser.peak = "high"'),
        (["smoke", "--stages.0.size", "64"], "stages.0.size = [64]"),
        (["smoke", "--stages.0.shapes", "64", "32", "64"], "--stages.0.shapes was given 3 values"),
        (["smoke", "--stages.7.batch", "2"], "stages has no entry 7"),
        (["smoke", "--model.matching.planes", "8"], "model.matching = null has no fields"),
        (["smoke", "--stages.0.sampler.kind", "spiral"], "stages.0.sampler"),
        (["smoke", "--save-every", "often"], 'save_every = "often"'),
    ],
    ids=lambda x: " ".join(x)[:60] if isinstance(x, list) else "",
)
def test_mistakes_are_told(options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    assert main(["train", *options, "-o", str(output)]) == 1
    said = capsys.readouterr()
    assert words in said.err
    assert said.out == ""
    assert not (output / "last").exists()


def test_refused_runs_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    arguments = ["train", "smoke", "-o", str(output), "--steps", "1", *SMALL]
    assert main(arguments) == 0
    before = tree(output)
    assert main([*arguments, "--seed", "9"]) == 1
    assert "seed: 0 there, 9 now" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    assert main(["train", "smoke", "-o", str(tmp_path / "other"), *SMALL]) == 1
    assert "holds other things (thesis.tex)" in capsys.readouterr().err
    assert tree(output) == before
    assert list(tree(tmp_path / "other")) == ["thesis.tex"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nothing is closed to the administrator")
def test_closed_folder_is_told_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o500)
    assert main(["train", "smoke", "-o", str(tmp_path / "out"), *SMALL]) == 1
    assert "permission" in capsys.readouterr().err


def test_out_of_memory_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("ilrm.train.engine.train", exhausted)
    assert main(["train", "smoke", "-o", str(tmp_path / "out")]) == 1
    assert "raise --accumulate, or give --checkpoint-layers" in capsys.readouterr().err
