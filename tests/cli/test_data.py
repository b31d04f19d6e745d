"""``ilrm data`` from the outside: its output, files and exit status."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ilrm.cli import main
from ilrm.scenes import list_keys, load_scene
from tests.cli.conftest import tree
from tests.scenes.files import write_scene

SMALL = ["--views", "2", "--size", "32", "--jobs", "1"]


def test_make_in_each_form(tmp_path: Path, capsys) -> None:
    for form in ("folders", "chunks", "json"):
        command = ["data", "make", "-o", str(tmp_path / form), "--scenes", "2", "--form", form, *SMALL, "--json"]
        command += ["--kind", "room", "--baseline", ".1", ".3", "--seed", "7"]
        for kept in (0, 2):
            assert main(command) == 0
            report = json.loads(capsys.readouterr().out)
            assert report["scenes"] == ["scene_000007", "scene_000008"]
            assert report["kept"] == kept
    assert list_keys(tmp_path / "chunks" / "train") == ("scene_000007", "scene_000008")
    assert load_scene(tmp_path / "folders" / "scene_000008").depth is not None
    lines = (tmp_path / "json" / "scenes.txt").read_text().splitlines()
    assert all(len(load_scene(tmp_path / "json" / line)) == 2 for line in lines)
    settings = json.loads((tmp_path / "chunks" / "record.json").read_text())["settings"]
    assert settings["procedural"]["kind"] == "room"
    assert settings["procedural"]["baseline"] == [0.1, 0.3]


def test_make_refuses_to_mix(tmp_path: Path, capsys) -> None:
    assert main(["data", "make", "-o", str(tmp_path), *SMALL]) == 0
    before = tree(tmp_path)
    assert main(["data", "make", "-o", str(tmp_path), *SMALL, "--views", "3"]) == 1
    error = capsys.readouterr().err
    assert "was made in another way" in error
    assert "to do:    choose another folder" in error
    assert tree(tmp_path) == before


def test_interrupted_make_says_that_it_continues(tmp_path: Path, capsys, monkeypatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ilrm.datasets.make_set.make_scene", interrupted)
    assert main(["data", "make", "-o", str(tmp_path), *SMALL]) == 130
    assert "the same command continues" in capsys.readouterr().err


def test_convert_and_check(tmp_path: Path, capsys) -> None:
    for name in ("one", "two"):
        write_scene(tmp_path / "in" / name, width=64, height=48)
    command = ["data", "convert", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--size", "32", "24", "--json"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["scenes"], report["converted"], report["broken"], report["views"]) == (2, 2, {}, 6)
    assert load_scene(tmp_path / "out" / "train", key="two").cameras.width == 32
    assert main(["data", "check", str(tmp_path / "out"), "--report", str(tmp_path / "check.json")]) == 0
    shown = capsys.readouterr().out
    assert "usable" in shown
    assert "6, 3 to 3 per scene" in shown
    assert "32x24 (2)" in shown
    written = json.loads((tmp_path / "check.json").read_text())
    assert [scene["name"] for scene in written["scenes"]] == ["one", "two"]
    assert written["scenes"][0]["findings"] == [{"level": "info", "message": "3 views of 32x24"}]


def test_broken_scenes_make_the_exit_status(tmp_path: Path, capsys) -> None:
    for name in ("good", "bad"):
        write_scene(tmp_path / "in" / name)
    shutil.rmtree(tmp_path / "in" / "bad" / "images")
    command = ["data", "convert", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--form", "json"]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "1 of 2 scenes could not be converted" in error
    assert "bad: 3 of the 3 images" in error
    assert json.loads((tmp_path / "out" / "report.json").read_text())["scenes"]["bad"]["status"] == "broken"
    assert main([*command, "--skip-broken"]) == 0
    assert "bad was left out" in capsys.readouterr().err
    assert main(["data", "convert", str(tmp_path / "in" / "bad"), "-o", str(tmp_path / "x"), "--skip-broken"]) == 1
    capsys.readouterr()
    assert main(["data", "check", str(tmp_path / "in"), "--report", str(tmp_path / "r.json"), "--json"]) == 1
    output = capsys.readouterr()
    assert json.loads(output.out) == json.loads((tmp_path / "r.json").read_text())
    assert json.loads(output.out)["usable"] is False
    assert "bad: 3 of the 3 images" in output.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["make", "-o", "OUT", "--jobs", "0"], "--jobs 0"),
        (["make", "-o", "OUT", "--scenes", "0"], "--scenes 0"),
        (["make", "-o", "OUT", "--seed", "-1"], "--seed -1"),
        (["make", "-o", "OUT", "--baseline", "2", "1"], "baseline = (2.0, 1.0)"),
        (["make", "-o", "FILE", *SMALL], "Cannot write"),
        (["convert", "-o", "OUT"], "No INPUT"),
        (["convert", "EMPTY", "-o", "OUT"], "holds no scenes"),
        (["convert", "SCENE", "SCENE", "-o", "OUT"], "Several scenes would be named scene"),
        (["convert", "SCENE", "-o", "OUT", "--size", "9", "9", "--max-side", "9"], "longer side and a size"),
        (["convert", "SCENE", "-o", "FILE"], "Cannot write"),
        (["check", "EMPTY"], "holds no scene"),
        (["check", "NOWHERE"], "does not exist"),
        (["check", "SCENE", "--report", "x.txt"], "ends in .json"),
        (["check", "SCENE", "--report", "FILE/x.json"], "Cannot write"),
    ],
)
def test_bad_input(arguments: list[str], words: str, tmp_path: Path, capsys) -> None:
    write_scene(tmp_path / "scene")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    places = {word: str(tmp_path / word.lower()) for word in ("OUT", "EMPTY", "SCENE", "FILE", "NOWHERE")}
    places["FILE/x.json"] = str(tmp_path / "file" / "x.json")
    assert main(["data", *(places.get(argument, argument) for argument in arguments)]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "file").read_text() == "mine"
