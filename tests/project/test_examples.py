"""The numbered examples run unchanged."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from ilrm.scenes import load_scene, save_scene
from tests.conftest import CAPTURE

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("[0-9]*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first one on four small photos, which is what it does with a capture of one's own."""
    capture = []
    if path.name.startswith("01"):
        save_scene(load_scene(CAPTURE, max_side=96).select([0, 3, 6, 9]), tmp_path / "photos")
        capture.append(str(tmp_path / "photos"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path), *capture])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()
    assert (tmp_path / "scene.ply").exists() == path.name.startswith("01")
