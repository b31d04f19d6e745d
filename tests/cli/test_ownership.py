"""No command overwrites what it reads, or a file that it did not write."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ilrm.cli import main
from ilrm.files import atomic_folder
from ilrm.files.manifest import MANIFEST
from tests.cli.conftest import tree, visible
from tests.files.test_folders import dying, fill


@pytest.fixture
def capture(scene_folder: Path, tmp_path: Path) -> Path:
    """A capture that a test may destroy."""
    shutil.copytree(scene_folder, tmp_path / "data" / "capture")
    return tmp_path / "data" / "capture"


@pytest.fixture
def scene(result: Path, tmp_path: Path) -> Path:
    """A result that a test may destroy."""
    shutil.copytree(result, tmp_path / "result")
    return tmp_path / "result"


def photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The message of a command that must fail and leave every byte of a folder unchanged."""
    before = tree(folder)
    assert main([str(argument) for argument in arguments]) == 1
    assert tree(folder) == before
    return capsys.readouterr().err


@pytest.mark.parametrize("output", ["capture", ".", "capture/images", "capture/images/out"])
@pytest.mark.parametrize("form", ["json", "chunks"])
def test_convert_onto_its_input(capture: Path, output: str, form: str, capsys) -> None:
    for source in (capture, capture.parent):
        words = refused(
            capture.parent, capsys, "data", "convert", source, "-o", capture.parent / output, "--form", form
        )
        assert "which this command reads" in words


@pytest.mark.parametrize("name", ["report.json", "train/index.json", "scenes.txt", "capture/images/x.png"])
def test_convert_and_make_keep_files_of_their_names(capture: Path, tmp_path: Path, name: str, capsys) -> None:
    out = tmp_path / "set"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    form = "chunks" if "train" in name else "json"
    words = refused(out, capsys, "data", "convert", capture, "-o", out, "--form", form)
    assert str(out / name) in words


def test_make_keeps_a_list_of_scenes(tmp_path: Path, capsys) -> None:
    (tmp_path / "scenes.txt").write_text("mine")
    words = refused(tmp_path, capsys, "data", "make", "-o", tmp_path, "--size", "32", "--form", "json")
    assert "scenes.txt" in words


@pytest.mark.parametrize("folder", ["inputs", "renders"])
def test_reconstruct_into_a_capture_with_photos_in_our_folders(
    capture: Path, weights: Path, folder: str, capsys
) -> None:
    os.rename(capture / "images", capture / folder)
    cameras = (capture / "transforms.json").read_text().replace("images/", f"{folder}/")
    (capture / "transforms.json").write_text(cameras)
    arguments = ["reconstruct", capture, "--weights", weights]
    for output in (capture, capture / folder, capture / folder / "out", capture.parent):
        assert "which this command reads" in refused(capture.parent, capsys, *arguments, "-o", output)


@pytest.mark.parametrize("name", ["renders/shot.png", "inputs/a.jpg", "mesh.glb", "metrics.json", "preview.mp4"])
def test_reconstruct_keeps_foreign_files(capture: Path, weights: Path, tmp_path: Path, name: str, capsys) -> None:
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    words = refused(out, capsys, "reconstruct", capture, "-o", out, "--weights", weights)
    assert str(out / name) in words
    assert "--overwrite" in words


def test_reconstruct_keeps_a_camera_file_called_cameras_json(capture: Path, weights: Path, capsys) -> None:
    os.rename(capture / "transforms.json", capture / "cameras.json")
    refused(capture, capsys, "reconstruct", capture, "-o", capture, "--weights", weights)


def test_reconstruct_twice_and_beside_other_files(capture: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    command = ["reconstruct", str(capture), "-o", str(out), "--weights", str(weights), "--export"]
    assert main([*command, "--views", "2"]) == 0
    assert len(list((out / "inputs").iterdir())) == 2
    assert main([*command, "--views", "3"]) == 0
    assert len(list((out / "inputs").iterdir())) == 3
    assert (out / "notes.txt").read_text() == "mine"


def test_render_keeps_frames_of_other_programs(scene: Path, tmp_path: Path, capsys) -> None:
    frames = tmp_path / "frames"
    for number in range(5):
        photo(frames / f"frame_{number:05d}.png")
    before = tree(frames)
    assert main(["render", str(scene), "-o", str(frames), "--frames", "2", "--path", "orbit"]) == 0
    assert {name: data for name, data in tree(frames).items() if name in before} == before
    photo(tmp_path / "others" / "frame_0001.png")
    words = refused(tmp_path / "others", capsys, "render", scene, "-o", tmp_path / "others", "--frames", "2")
    assert "frame_0001.png" in words


def test_render_onto_the_photos(capture: Path, scene: Path, capsys) -> None:
    arguments = ["render", scene, "--path", "input", "--cameras", capture]
    assert "which this command reads" in refused(capture, capsys, *arguments, "-o", capture / "images")
    assert "is in the way" in refused(capture, capsys, "render", scene, "--path", "input", "-o", capture / "images")


def test_export_into_the_project_that_it_came_from(capture: Path, scene: Path, capsys) -> None:
    (capture / "sparse" / "1").mkdir(parents=True)
    (capture / "sparse" / "1" / "images.bin").write_text("mine")
    arguments = ["export", scene, "--format", "colmap", "--photos", capture, "-o"]
    for output in (capture, capture / "images"):
        assert "which this command reads" in refused(capture, capsys, *arguments, output)
    shutil.copytree(capture / "images", capture.parent / "other" / "images")
    assert "images" in refused(capture.parent / "other", capsys, *arguments, capture.parent / "other")


@pytest.mark.parametrize(
    "command",
    [
        ["export", "{scene}", "-o", "{file}.spz"],
        ["mesh", "{scene}", "-o", "{file}.ply"],
        ["view", "{scene}", "--html", "{file}.html"],
        ["render", "{scene}", "-o", "{file}.mp4", "--frames", "2"],
        ["render", "{scene}", "-o", "{file}.png", "--frames", "1"],
        ["refine", "{scene}/scene.ply", "{capture}", "-o", "{file}.ply", "--steps", "1"],
        ["data", "check", "{capture}", "--report", "{file}.json"],
    ],
    ids=lambda command: " ".join(command[:2]).split(" {")[0],
)
def test_a_file_that_exists_is_replaced_only_on_demand(
    capture: Path, scene: Path, tmp_path: Path, command: list[str], capsys
) -> None:
    places = {"scene": scene, "capture": capture, "file": tmp_path / "existing"}
    arguments = [argument.format(**places) for argument in command]
    (file,) = (Path(argument) for argument in arguments if "existing" in argument)
    file.write_text("mine")
    assert "exists already" in refused(tmp_path, capsys, *arguments)
    assert main([*arguments, "--overwrite"]) == 0
    assert file.read_bytes() != b"mine"


@pytest.mark.parametrize(
    "command",
    [
        ["export", "{scene}/scene.ply", "-o", "{scene}/scene.ply"],
        ["export", "{scene}", "-o", "{scene}/scene.ply"],
        ["refine", "{scene}/scene.ply", "{capture}", "-o", "{scene}/scene.ply", "--steps", "1"],
        ["refine", "{scene}/scene.ply", "{capture}", "-o", "{capture}/points.ply", "--steps", "1"],
        ["mesh", "{scene}", "-o", "{scene}/scene.ply"],
        ["data", "check", "{capture}", "--report", "{capture}/transforms.json"],
        ["data", "check", "{capture}/transforms.json", "--report", "{capture}/transforms.json"],
    ],
)
def test_the_input_is_not_even_replaced_on_demand(capture: Path, scene: Path, command: list[str], capsys) -> None:
    (capture / "points.ply").touch()
    arguments = [argument.format(scene=scene, capture=capture) for argument in command]
    assert "which this command reads" in refused(scene.parent, capsys, *arguments, "--overwrite")


def test_results_in_a_result_folder_are_replaced_unasked(scene: Path) -> None:
    for _ in range(2):
        assert main(["export", str(scene), "-o", str(scene / "small.spz"), "--top", "100"]) == 0


def test_training_keeps_a_file_called_probe(tmp_path: Path, capsys) -> None:
    (tmp_path / "probe").write_text("mine")
    words = refused(tmp_path, capsys, "train", "smoke", "-o", tmp_path)
    assert "no training run" in words


@pytest.mark.parametrize(
    "command",
    [
        ["export", "{out}", "-o", "{tmp}/a.spz"],
        ["export", "{out}/scene.ply", "-o", "{tmp}/a.splat"],
        ["view", "{out}", "--html", "{tmp}/a.html"],
        ["render", "{out}", "-o", "{out}/a.png", "--frames", "1"],
        ["refine", "{out}/scene.ply", "{capture}", "-o", "{out}/better.ply", "--steps", "1"],
        ["mesh", "{out}", "-o", "{tmp}/a.ply"],
        ["reconstruct", "{capture}", "-o", "{out}", "--weights", "{weights}", "--views", "2", "--export"],
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("step", [12, 16])
def test_any_command_completes_what_a_killed_one_has_begun(
    command: list[str], step: int, scene: Path, capture: Path, weights: Path, tmp_path: Path
) -> None:
    """A result is replaced by one with other metrics; the process dies while half of its files are in place."""
    names = ("scene.ply", "metrics.json", "cameras.json", "preview.mp4", "viewer.html", "inputs/", "renders/")
    new = {name: data for name, data in tree(scene).items() if name != MANIFEST and not name.startswith("renders")}
    new["metrics.json"] = json.dumps({**json.loads(new["metrics.json"]), "seed": 77}).encode()

    def replace() -> None:
        with atomic_folder(scene, names) as staging:
            fill(staging, new)

    assert dying(step, replace)
    assert not (scene / "scene.ply").exists()
    places = {"out": scene, "tmp": tmp_path, "capture": capture, "weights": weights}
    assert main([argument.format(**places) for argument in command]) == 0
    seen = visible(scene)
    assert {"scene.ply", "metrics.json", "cameras.json", "inputs"} <= seen
    if command[0] != "reconstruct":
        assert {name: data for name, data in tree(scene).items() if name in new} == new
    assert not list(scene.glob(".*.partial"))
