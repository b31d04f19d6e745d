"""User mistakes: a clear message, exit status 1, no traceback, nothing written and no earlier result lost."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ilrm.cli import main
from ilrm.splats import ply, save_ply
from tests.cli.conftest import tree
from tests.conftest import NO_BYTECODE, make_gaussians

Edit = Callable[[Path, dict[str, Any]], None]


def with_frame(**values: Any) -> Edit:
    def edit(folder: Path, content: dict[str, Any]) -> None:
        content["frames"][2] |= values

    return edit


def with_pose(change: Callable[[np.ndarray], np.ndarray]) -> Edit:
    def edit(folder: Path, content: dict[str, Any]) -> None:
        frame = content["frames"][2]
        frame["transform_matrix"] = change(np.array(frame["transform_matrix"])).tolist()

    return edit


def with_top(**values: Any) -> Edit:
    def edit(folder: Path, content: dict[str, Any]) -> None:
        for frame in content["frames"]:
            for name in values:
                frame.pop(name, None)
        content |= values

    return edit


def without(*names: str) -> Edit:
    def edit(folder: Path, content: dict[str, Any]) -> None:
        for place in (content, *content.get("frames", [])):
            for name in names:
                place.pop(name, None)

    return edit


def with_photo(change: Callable[[Path], object]) -> Edit:
    def edit(folder: Path, content: dict[str, Any]) -> None:
        change(folder / content["frames"][2]["file_path"])

    return edit


def only_frames(count: int) -> Edit:
    def edit(folder: Path, content: dict[str, Any]) -> None:
        del content["frames"][count:]

    return edit


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:400])


def other_size(path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (31, 77)).save(path)


def nan_at(row: int, column: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(pose: np.ndarray) -> np.ndarray:
        pose[row, column] = np.nan
        return pose

    return change


THIRD = "view_002"  # the damaged frame
BAD_SCENES: dict[str, tuple[Edit, list[str]]] = {
    "one photo": (only_frames(1), ["1 photo", "at least 2"]),
    "no frames": (only_frames(0), ["transforms.json"]),
    "frames missing": (without("frames"), ["transforms.json", "frames"]),
    "pose missing": (without("transform_matrix"), ["transform_matrix"]),
    "focal length missing": (without("fl_x", "fl_y", "camera_angle_x"), ["fl_x"]),
    "focal length zero": (with_top(fl_x=0.0, fl_y=0.0), ["fl_x"]),
    "focal length negative": (with_top(fl_x=-50.0, fl_y=50.0), ["fl_x"]),
    "focal length a word": (with_top(fl_x="wide"), ["fl_x"]),
    "NaN pose": (with_pose(nan_at(0, 3)), [THIRD, "NaN"]),
    "NaN rotation": (with_pose(nan_at(1, 1)), [THIRD, "NaN"]),
    "mirrored pose": (with_pose(lambda p: p @ np.diag([-1.0, 1, 1, 1])), [THIRD, "mirror"]),
    "scaled rotation": (with_pose(lambda p: p @ np.diag([2.0, 2, 2, 1])), [THIRD, "orthonormal"]),
    "pose of wrong shape": (with_pose(lambda p: p[:2]), ["frame 2", "transform_matrix"]),
    "missing photos": (lambda folder, content: shutil.rmtree(folder / "images"), [THIRD]),
    "unreadable photo": (with_photo(lambda p: p.write_bytes(b"not an image at all")), [THIRD]),
    "empty photo": (with_photo(lambda p: p.write_bytes(b"")), [THIRD]),
    "truncated photo": (with_photo(cut), [THIRD]),
    "photo of wrong size": (with_photo(other_size), [THIRD, "31x77"]),
    "file name a number": (with_frame(file_path=7), ["file_path"]),
}


def expect_failure(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status = main(arguments)
    captured = capsys.readouterr()
    assert status == 1, captured.err
    assert captured.out == ""
    for word in words:
        assert word in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("name", BAD_SCENES)
def test_bad_scene(name: str, scene_folder: Path, weights: Path, tmp_path: Path, capsys) -> None:
    edit, words = BAD_SCENES[name]
    folder = tmp_path / "capture"
    shutil.copytree(scene_folder, folder)
    content = json.loads((folder / "transforms.json").read_text())
    edit(folder, content)
    (folder / "transforms.json").write_text(json.dumps(content))
    output = ["-o", str(tmp_path / "out"), "--weights", str(weights), "--json"]
    expect_failure(["reconstruct", str(folder), *output], words, capsys)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["capture"]


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def malicious_chunk(folder: Path) -> Path:
    with (folder / "000000.torch").open("wb") as file:
        pickle.dump([Malicious(folder / "executed")], file)
    return folder / "000000.torch"


def empty_folder(folder: Path) -> Path:
    return folder


def folder_of_text(folder: Path) -> Path:
    (folder / "notes.txt").write_text("no photos here")
    return folder


def json_of_words(folder: Path) -> Path:
    (folder / "transforms.json").write_text("this is {not json")
    return folder / "transforms.json"


def json_list(folder: Path) -> Path:
    (folder / "transforms.json").write_text("[1, 2, 3]")
    return folder / "transforms.json"


def json_bytes(folder: Path) -> Path:
    (folder / "transforms.json").write_bytes(b"\xff\xfe\x00\x80")
    return folder


def unknown_kind(folder: Path) -> Path:
    (folder / "capture.xyz").write_text("?")
    return folder / "capture.xyz"


BAD_INPUTS: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "nothing there": (lambda folder: folder / "absent", ["absent", "does not exist"]),
    "empty folder": (empty_folder, ["input", "transforms.json"]),
    "no photos in the folder": (folder_of_text, ["input", "transforms.json"]),
    "not JSON": (json_of_words, ["transforms.json"]),
    "JSON of another kind": (json_list, ["transforms.json"]),
    "JSON of raw bytes": (json_bytes, ["transforms.json"]),
    "unknown extension": (unknown_kind, ["capture.xyz"]),
    "malicious pickle": (malicious_chunk, ["000000.torch"]),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input(name: str, weights: Path, tmp_path: Path, capsys) -> None:
    make, words = BAD_INPUTS[name]
    folder = tmp_path / "input"
    folder.mkdir()
    path, before = make(folder), tree(tmp_path)
    output = ["-o", str(tmp_path / "out"), "--weights", str(weights)]
    expect_failure(["reconstruct", str(path), *output], words, capsys)
    assert tree(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["input"]  # the pickle did not run any code


BAD_ARGUMENTS: dict[str, tuple[list[str], list[str]]] = {
    "no view": (["--views", "0"], ["--views 0", "2 or more"]),
    "one view": (["--views", "1"], ["--views 1", "2 or more"]),
    "more views than photos": (["--views", "7"], ["--views 7", "6 photos", "2 to 6"]),
    "more views than held-out photos leave": (["--views", "5", "--holdout", "2"], ["--views 5", "3 are held out"]),
    "everything held out": (["--holdout", "1"], ["at least 2", "--holdout 0"]),
    "negative holdout": (["--holdout", "-3"], ["--holdout -3"]),
    "size zero": (["--size", "0"], ["--size 0", "32 to 4096"]),
    "gigantic size": (["--size", "1000000"], ["--size 1000000"]),
    "negative refinement": (["--refine", "-1"], ["--refine -1"]),
    "unknown device": (["--device", "toaster"], ["--device toaster", "cpu"]),
    "absent GPU": (["--device", "cuda:77"], ["cuda:77", "--device cpu"]),
    "unknown weights": (["--weights", "ilrm-smal"], ["'ilrm-smal'", "ilrm-small"]),
    "weights are a scene": (["--weights", "{scene}"], ["model.safetensors"]),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments(name: str, scene_folder: Path, weights: Path, tmp_path: Path, capsys) -> None:
    extra, words = BAD_ARGUMENTS[name]
    given = [] if "--weights" in extra else ["--weights", str(weights)]
    extra = [value.replace("{scene}", str(scene_folder)) for value in extra]
    expect_failure(["reconstruct", str(scene_folder), "-o", str(tmp_path / "out"), *given, *extra], words, capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("spoil", ["cut off", "noise", "empty"])
def test_corrupt_weights(spoil: str, scene_folder: Path, weights: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "spoilt"
    shutil.copytree(weights, folder)
    (file,) = folder.glob("*.safetensors")
    content = file.read_bytes()
    changed = {"cut off": content[: len(content) // 2], "noise": bytes(range(256)) * 8, "empty": b""}
    file.write_bytes(changed[spoil])
    arguments = ["reconstruct", str(scene_folder), "-o", str(tmp_path / "out"), "--weights", str(folder)]
    expect_failure(arguments, ["spoilt"], capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["spoilt"]


def test_malicious_weights(scene_folder: Path, tmp_path: Path, capsys) -> None:
    with (tmp_path / "weights.ckpt").open("wb") as file:
        pickle.dump({"state_dict": Malicious(tmp_path / "executed")}, file, protocol=2)
    arguments = ["reconstruct", str(scene_folder), "-o", str(tmp_path / "out")]
    expect_failure([*arguments, "--weights", str(tmp_path / "weights.ckpt")], ["weights.ckpt"], capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["weights.ckpt"]


BAD_OUTPUTS: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "output is a file": (lambda folder: folder / "file", ["file, not a folder"]),
    "output under a file": (lambda folder: folder / "file" / "out", ["is a file"]),
    "output where nobody may write": (lambda folder: Path("/proc/out"), ["/proc/out", "Cannot write"]),
    "name too long": (lambda folder: folder / ("n" * 300), ["shorter name"]),
}


@pytest.mark.parametrize("name", BAD_OUTPUTS)
def test_bad_output(name: str, scene_folder: Path, weights: Path, tmp_path: Path, capsys) -> None:
    make, words = BAD_OUTPUTS[name]
    (tmp_path / "file").write_text("precious")
    output = ["-o", str(make(tmp_path)), "--weights", str(weights)]
    expect_failure(["reconstruct", str(scene_folder), *output], words, capsys)
    assert tree(tmp_path) == {"file": b"precious"}


def test_bad_output_is_told_before_the_work(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("precious")
    arguments = ["reconstruct", str(tmp_path / "absent"), "-o", str(tmp_path / "file")]
    expect_failure(arguments, ["file, not a folder"], capsys)


def test_disk_full(scene_folder: Path, weights: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    written = Path.write_bytes

    def full_at_the_images(self: Path, data: bytes) -> int:
        if self.suffix == ".png":
            written(self, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written(self, data)

    (tmp_path / "notes.txt").write_bytes(b"mine")
    monkeypatch.setattr(Path, "write_bytes", full_at_the_images)
    arguments = ["reconstruct", str(scene_folder), "-o", str(tmp_path), "--weights", str(weights)]
    expect_failure(arguments, ["no space left on device", "free some space", str(tmp_path / "renders")], capsys)
    assert tree(tmp_path) == {"notes.txt": b"mine"}
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_file_size_limit(scene_folder: Path, weights: Path, tmp_path: Path) -> None:
    """A write that really fails, in another process with a file size limit of 20 kB."""
    command = [sys.executable, "-m", "ilrm.cli", "reconstruct", str(scene_folder), "-o", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--weights", str(weights), "--refine", "0"],
        env={**os.environ, **NO_BYTECODE},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "file too large" in done.stderr
    assert "scene.ply" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*partial*"))


def test_interrupted(scene_folder: Path, weights: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module("ilrm.pipeline.run"), "forward_pass", interrupted)
    arguments = ["reconstruct", str(scene_folder), "-o", str(tmp_path / "deep" / "out"), "--weights", str(weights)]
    assert main(arguments) == 130
    assert "interrupted, nothing written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "Out of memory; nothing was written"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), "Out of memory on the GPU"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "Out of memory;"),
    ],
    ids=["python", "GPU", "CPU"],
)
def test_out_of_memory(error: Exception, words: str, scene_folder, weights, tmp_path, monkeypatch, capsys) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(import_module("ilrm.pipeline.run"), "forward_pass", exhausted)
    arguments = ["reconstruct", str(scene_folder), "-o", str(tmp_path / "out"), "--weights", str(weights)]
    expect_failure(arguments, [words, "--size"], capsys)
    assert list(tmp_path.iterdir()) == []


def test_our_own_mistakes_keep_their_traceback(scene_folder, weights, tmp_path, monkeypatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(import_module("ilrm.pipeline.run"), "forward_pass", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        main(["reconstruct", str(scene_folder), "-o", str(tmp_path / "out"), "--weights", str(weights)])
    assert list(tmp_path.iterdir()) == []


def truncated_ply(path: Path) -> None:
    save_ply(make_gaussians(10), path)
    path.write_bytes(path.read_bytes()[:-5])


def point_cloud(path: Path) -> None:
    header = "ply\nformat binary_little_endian 1.0\nelement vertex 1\n"
    header += "property float x\nproperty float y\nproperty float z\nend_header\n"
    path.write_bytes(header.encode() + bytes(12))


def nan_ply(path: Path) -> None:
    save_ply(make_gaussians(10), path)
    fields = ply.read_fields(path)
    fields.xyz[:] = np.nan
    ply.write_fields(fields, path)


BAD_SPLATS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "absent": (lambda path: None, ["no such file"]),
    "empty": (lambda path: path.write_bytes(b""), ["not a PLY"]),
    "picture": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), ["not a PLY"]),
    "cut off": (truncated_ply, ["cut off"]),
    "point cloud": (point_cloud, ["point cloud", "opacity"]),
    "NaN": (nan_ply, ["10 of 10 Gaussians"]),
}


@pytest.mark.parametrize("command", ["render", "refine"])
@pytest.mark.parametrize("name", BAD_SPLATS)
def test_bad_splats(name: str, command: str, scene_folder: Path, tmp_path: Path, capsys) -> None:
    make, words = BAD_SPLATS[name]
    path = tmp_path / "bad.ply"
    make(path)
    before = tree(tmp_path)
    scene = ["--cameras", str(scene_folder)] if command == "render" else [str(scene_folder)]
    output = tmp_path / ("frames" if command == "render" else "out.ply")
    expect_failure([command, str(path), *scene, "-o", str(output)], ["bad.ply", *words], capsys)
    assert tree(tmp_path) == before
    assert not output.exists()


BAD_RENDERS: dict[str, tuple[list[str], list[str]]] = {
    "no frame": (["-o", "{out}/f", "--frames", "0"], ["--frames 0"]),
    "many frames in one file": (["-o", "{out}/a.png"], ["120 frames", "a.png"]),
    "unknown extension": (["-o", "{out}/a.avi"], ["a.avi", "'.avi'"]),
    "cameras are nonsense": (["-o", "{out}/f", "--cameras", "{out}/cameras.json"], ["cameras.json", "frames"]),
    "size of one pixel": (["-o", "{out}/f", "--size", "1"], ["--size 1"]),
}


@pytest.mark.parametrize("name", BAD_RENDERS)
def test_bad_renders(name: str, result: Path, tmp_path: Path, capsys) -> None:
    extra, words = BAD_RENDERS[name]
    (tmp_path / "cameras.json").write_text('{"frames": [{"w": 3}]}')
    arguments = [value.replace("{out}", str(tmp_path)) for value in extra]
    expect_failure(["render", str(result / "scene.ply"), *arguments], words, capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["cameras.json"]


def test_refine_writes_ply_only(result: Path, scene_folder: Path, tmp_path: Path, capsys) -> None:
    arguments = ["refine", str(result / "scene.ply"), str(scene_folder), "-o", str(tmp_path / "a.splat")]
    expect_failure(arguments, ["a.splat", ".ply"], capsys)


@pytest.mark.parametrize("name", ["NaN pose", "missing photos", "one photo"])
def test_data_check_names_what_is_wrong(name: str, scene_folder: Path, tmp_path: Path, capsys) -> None:
    edit, words = BAD_SCENES[name]
    folder = tmp_path / "capture"
    shutil.copytree(scene_folder, folder)
    content = json.loads((folder / "transforms.json").read_text())
    edit(folder, content)
    (folder / "transforms.json").write_text(json.dumps(content))
    status = main(["data", "check", str(folder), "--json"])
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert (status, report["usable"]) == ((0, True) if name == "one photo" else (1, False))
    if status:
        assert words[0] in captured.err


@pytest.mark.parametrize(
    "arguments", [[], ["reconstrukt"], ["reconstruct"], ["reconstruct", "x", "-o", "y", "--views", "many"]]
)
def test_arguments_that_cannot_be_parsed(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2


@pytest.mark.parametrize(
    "command",
    [
        ["reconstruct", "SCENE", "-o", "OUT"],
        ["refine", "PLY", "SCENE", "-o", "OUT.ply"],
        ["data", "convert", "SCENE", "-o", "OUT"],
        ["data", "check", "SCENE"],
        ["export", "PLY", "-o", "OUT", "--format", "colmap", "--photos", "SCENE"],
        ["render", "PLY", "-o", "OUT", "--cameras", "SCENE", "--nearest-photos", "SCENE"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_photos_above_the_budget_are_refused_with_the_flag(
    command: list[str], scene_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_ply(make_gaussians(20), tmp_path / "a.ply")
    places = {"SCENE": scene_folder, "PLY": tmp_path / "a.ply", "OUT": tmp_path / "o", "OUT.ply": tmp_path / "o.ply"}
    filled = [str(places.get(word, word)) for word in command]
    assert main([*filled, "--max-pixels", "3071"]) == 1
    said = capsys.readouterr().err
    assert "would take the memory of" in said
    if command[1] != "convert":  # its report holds the rest
        assert "--max-pixels 3072" in said
