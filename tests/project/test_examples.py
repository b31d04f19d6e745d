"""The numbered examples run unchanged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CAPTURE, PATIENCE_S

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("[0-9]*.py"))


def part_of_the_capture(folder: Path) -> Path:
    described = json.loads((CAPTURE / "transforms.json").read_text())
    frames = described["frames"][::3]
    for frame in frames:
        frame["file_path"] = str(CAPTURE / frame["file_path"])
    (folder / "transforms.json").write_text(json.dumps({**described, "frames": frames}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example(path: Path, tmp_path: Path) -> None:
    """The first one on four photos, which is what it does with a capture of one's own."""
    capture = [str(part_of_the_capture(tmp_path))] if path.name.startswith("01") else []
    command = [sys.executable, str(path), *capture]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
