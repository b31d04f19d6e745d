"""Each oddity of a capture is reported once, in one line, and is in the report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ilrm.cli import main
from ilrm.core.errors import IlrmWarning
from ilrm.scenes import check_scene, load_scene


@pytest.fixture
def odd_capture(scene_folder: Path, tmp_path: Path) -> Path:
    """One photo of six is not there, and another has an impossible principal point."""
    folder = tmp_path / "capture"
    shutil.copytree(scene_folder, folder)
    content = json.loads((folder / "transforms.json").read_text())
    (folder / content["frames"][1]["file_path"]).unlink()
    content["frames"][4]["cx"] = 1e6
    (folder / "transforms.json").write_text(json.dumps(content))
    return folder


EXPECTED = ("1 of the 6 images of", "view_004.png has the principal point outside the image")


def test_reconstruct_and_refine_warn_and_report_it(odd_capture: Path, weights: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    command = ["reconstruct", str(odd_capture), "-o", str(out), "--weights", str(weights), "--device", "cpu"]
    assert main([*command, "--export", "--json"]) == 0
    captured = capsys.readouterr()
    metrics = json.loads((out / "metrics.json").read_text())
    assert json.loads(captured.out)["warnings"] == metrics["warnings"]
    assert (
        main(["refine", str(out / "scene.ply"), str(odd_capture), "-o", str(tmp_path / "b.ply"), "--steps", "1"]) == 0
    )
    for said in (captured.err, capsys.readouterr().err):
        for words in EXPECTED:
            assert said.count(words) == 1, said
        assert "IlrmWarning" not in said
    assert all(any(words in line for line in metrics["warnings"]) for words in EXPECTED)


def test_the_python_call_and_the_check_say_the_same(odd_capture: Path) -> None:
    with pytest.warns(IlrmWarning) as heard:
        load_scene(odd_capture)
    told = {str(warning.message) for warning in heard}
    assert told == {finding.message for finding in check_scene(odd_capture) if finding.level == "warning"}
    assert all(any(words in line for line in told) for words in EXPECTED)


def test_a_good_capture_has_no_warnings(result: Path) -> None:
    assert json.loads((result / "metrics.json").read_text())["warnings"] == []
