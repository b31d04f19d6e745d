"""The command in unusual conditions: closed streams, little memory, odd encodings, a signal during start-up."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

from ilrm.cli import main
from ilrm.cli.commands import Command, _memory_advice
from tests.cli.conftest import tree
from tests.conftest import PATIENCE_S

ILRM = [sys.executable, "-m", "ilrm.cli"]
needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")


def shell(line: str, *, timeout: float = PATIENCE_S, **env: str) -> subprocess.CompletedProcess[str]:
    """What ``ilrm`` in a line of shell does; undecodable output is kept."""
    line = re.sub(r"\bilrm (?=[-a-z]+ )", " ".join(ILRM) + " ", line, count=1)
    return subprocess.run(
        ["bash", "-c", line],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=timeout,
        env={**os.environ, **env},
    )


@needs_dev_full
@pytest.mark.parametrize(
    "line", ["weights list >&-", "weights list --json >/dev/full", "--help >/dev/full", "--help >&-"]
)
def test_results_that_cannot_be_told(line: str) -> None:
    done = shell(f"ilrm {line}")
    assert done.returncode == 1, done.stderr
    reason = "no space left on device" if "full" in line else "bad file descriptor"
    assert done.stderr == f"ilrm: stdout cannot be written, but all files are complete: {reason}\n"


@needs_dev_full
def test_messages_that_nobody_can_read_cost_nothing() -> None:
    done = shell("ilrm weights list --json 2>/dev/full")
    assert done.returncode == 0
    assert json.loads(done.stdout)["weights"]
    for stderr in ("2>/dev/full", "2>&-"):
        assert shell(f"ilrm view '' {stderr}").returncode == 1


def test_the_result_stays_where_stdout_is_full(result: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    class Full:
        encoding = "utf-8"

        def write(self, _: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def flush(self) -> None:
            self.write("")

    for extra in ([], ["--json"]):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", Full())
            assert main(["export", str(result), "-o", str(tmp_path / "a.splat"), *extra]) == 1
        assert (tmp_path / "a.splat").stat().st_size > 0
        assert capsys.readouterr().err.splitlines()[-1].startswith("ilrm: stdout cannot be written")


def test_nobody_reads(result: Path) -> None:
    done = shell("set -o pipefail; ilrm weights list | true; echo ${PIPESTATUS[0]}")
    assert done.stdout in ("141\n", "0\n"), "0 where the pipe was still open"
    assert done.stderr == ""


def test_a_path_beyond_the_encoding_of_stdout(result: Path, tmp_path: Path) -> None:
    done = shell(f"cd {tmp_path} && ilrm export {result} -o caf\u00e9.splat", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "caf\\xe9.splat" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["café.splat"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["reconstruct", "scene", "-o", ""], "Argument 4 after -o is empty."),
        (["reconstruct", "", "-o", "out"], "Argument 2 after reconstruct is empty."),
        (["render", "scene.ply", "--output="], "Argument --output= is empty."),
        (["data", "convert", "a", "", "-o", "out"], "Argument 4 after a is empty."),
        ([""], "Argument 1 is empty."),
    ],
)
def test_empty_arguments_are_not_the_current_folder(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"ilrm: {words}")
    assert "one of them is probably not set" in told
    assert tree(tmp_path) == {}


def commands() -> list[type]:
    """Every command and subcommand."""
    found = []
    for part in Command.__args__:
        command = part.__args__[0] if hasattr(part, "__metadata__") else part
        hints = command.__dataclass_fields__
        if "command" not in hints:
            found.append(command)
            continue
        module = sys.modules[command.__module__]
        found += [
            getattr(module, name)
            for name in ("Make", "Convert", "Check", "List", "Pull", "Show")
            if hasattr(module, name)
        ]
    return found


@pytest.mark.parametrize("command", commands(), ids=lambda command: f"{command.__module__}.{command.__name__}")
def test_advice_about_memory_names_flags_that_the_command_has(command: type) -> None:
    advice = _memory_advice(object.__new__(command))
    flags = [word.strip(",.") for word in advice.split() if word.startswith("--")]
    for flag in flags:
        assert flag[2:].replace("-", "_") in command.__dataclass_fields__
    assert "more memory" in advice


def test_a_refusal_of_the_system_is_one_line(scene_folder, weights, tmp_path, monkeypatch, capsys) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/some/file")

    monkeypatch.setattr(import_module("ilrm.pipeline.run"), "forward_pass", refused)
    arguments = ["reconstruct", str(scene_folder), "-o", str(tmp_path / "out"), "--weights", str(weights)]
    assert main(arguments) == 1
    assert "ilrm: The system refuses /some/file: too many open files." in capsys.readouterr().err
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("after", ["import tyro", "import torch"])
@pytest.mark.skipif(os.name == "nt", reason="no such signals")
def test_an_interrupt_while_modules_are_imported_is_quiet(after: str, scene_folder: Path, tmp_path: Path) -> None:
    """The last imported module sends the signal, so that it arrives in the middle of an import."""
    name = after.split()[1]
    (tmp_path / f"{name}.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(600)\n", encoding="utf-8"
    )
    started = time.monotonic()
    done = subprocess.run(
        [*ILRM, "reconstruct", str(scene_folder), "-o", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr == "ilrm: interrupted, nothing written\n"
    assert time.monotonic() - started < 500
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", ["", "libtorch.so: failed to map segment from shared object"])
def test_too_little_memory_for_the_modules_themselves(words: str, scene_folder: Path, tmp_path: Path) -> None:
    kind = "ImportError" if words else "MemoryError"
    (tmp_path / "torch.py").write_text(f"raise {kind}({words!r})\n", encoding="utf-8")
    done = subprocess.run(
        [*ILRM, "reconstruct", str(scene_folder), "-o", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
    )
    assert done.returncode == 1
    assert done.stderr.startswith("ilrm: Out of memory; nothing was written.\n")
    assert "Traceback" not in done.stderr


def test_a_module_of_unix_is_not_needed(monkeypatch) -> None:
    """Windows has no ``resource``."""
    import torch

    from ilrm.core.checks import peak_memory

    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory(torch.device("cpu")) is None
