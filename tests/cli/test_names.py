"""Names that are not UTF-8 (old archives, network drives), very long ones, and locales that know ASCII only."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ilrm.cli import main
from ilrm.scenes import load_scene
from ilrm.scenes.names import file_stems
from ilrm.scenes.readers.chunks import list_keys
from ilrm.scenes.save import image_names

CAFE = "caf\udce9"  # the byte E9, which is é in Latin-1


@pytest.fixture(scope="module")
def named(scene_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scene in a folder, and with a photo, whose names are not UTF-8."""
    folder = tmp_path_factory.mktemp("names") / CAFE
    try:
        shutil.copytree(scene_folder, folder)
    except OSError:
        pytest.skip("this disk allows UTF-8 names only")
    cameras = json.loads((folder / "transforms.json").read_text("utf-8"))
    for number, name in ((0, f"{CAFE}.png"), (1, "café.png")):
        frame = cameras["frames"][number]
        (folder / frame["file_path"]).rename(folder / "images" / name)
        frame["file_path"] = f"images/{name}"
    (folder / "transforms.json").write_text(json.dumps(cameras), encoding="utf-8")
    return folder


def test_names_that_are_not_utf8_go_through_all_commands(named: Path, weights: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / f"{CAFE}-out"
    options = ["--weights", str(weights), "--holdout", "3", "--device", "cpu"]
    assert main(["reconstruct", str(named), "-o", str(out), *options]) == 0
    page = (out / "viewer.html").read_text("utf-8")
    assert "caf\\xe9-out" in page
    assert CAFE + ".png" in load_scene(named).names
    held_out = json.loads((out / "metrics.json").read_text("utf-8"))["held_out_names"]
    assert held_out[0] == f"{CAFE}.png", "read as the name on disk"
    assert (out / "renders" / "caf%E9_vs_truth.png").is_file()
    assert (out / "inputs" / "café.jpg").is_file()

    assert main(["view", str(out), "--html", str(tmp_path / f"{CAFE}.html")]) == 0
    assert main(["render", str(out), "-o", str(tmp_path / f"{CAFE}.mp4"), "--frames", "2"]) == 0
    project = tmp_path / f"{CAFE}-colmap"
    arguments = ["export", str(out), "-o", str(project), "--format", "colmap", "--photos", str(named)]
    assert main(arguments) == 0
    assert sorted(load_scene(project).names)[:2] == ["caf%E9.png", "café.png"]
    for form in ("json", "chunks"):
        assert main(["data", "convert", str(named), "-o", str(tmp_path / form), "--form", form, "--jobs", "1"]) == 0
    assert list_keys(tmp_path / "chunks" / "train") == ("caf%E9",)
    assert (tmp_path / "json" / "scenes.txt").read_text("utf-8") == "caf%E9/opencv_cameras.json\n"
    assert main(["data", "check", str(named), "--report", str(tmp_path / f"{CAFE}.json")]) == 0
    assert json.loads((tmp_path / f"{CAFE}.json").read_text("utf-8"))["usable"]
    assert "Traceback" not in capsys.readouterr().err


def test_names_of_files_are_portable_and_short_enough() -> None:
    assert image_names([f"{CAFE}.png", "b/é.png"], "jpg") == ["caf%E9.jpg", "é.jpg"]
    assert image_names(["ж" * 120 + ".png", "b.png"], "jpg") == ["000000.jpg", "000001.jpg"]
    assert file_stems(["a" * 150 + "/" + "b" * 150 + ".png", "c/d.png", f"{CAFE}.png"]) == ["0000_", "c_d", "caf%E9"]


@pytest.mark.skipif(os.name == "nt", reason="no such locales")
def test_a_locale_of_ascii_reads_our_own_files(named: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--weights", str(weights), "--holdout", "0", "--device", "cpu", "--export"]
    assert main(["reconstruct", str(named), "-o", str(out), *options]) == 0
    names = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "ilrm.cli", "view", str(out), "--html", str(tmp_path / "p.html")],
        capture_output=True,
        text=True,
        env={**os.environ, **names},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "p.html").read_text("utf-8").count("<img alt=") == 6, "every photo is there, that of é too"
