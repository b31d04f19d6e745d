"""Every command does what it claims and reports it to people and machines."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ilrm.cli import main
from ilrm.evaluate import psnr
from ilrm.results import load_result
from ilrm.scenes import load_scene
from ilrm.splats import load_gaussians, load_ply
from ilrm.splats.cameras import load_cameras
from tests.cli.conftest import tree, visible
from tests.conftest import CAPTURE, PATIENCE_S, wait_until

HEAVY = ("numba", "numpy", "PIL", "pycolmap", "rich", "torch", "viser")


def png(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path))).float() / 255


def test_reconstruct_writes_everything(result: Path, scene_folder: Path) -> None:
    metrics = json.loads((result / "metrics.json").read_text())
    scene = load_scene(scene_folder)
    assert metrics["held_out_names"] == [scene.names[0], scene.names[3]]
    assert metrics["num_inputs"] == len(metrics["input_names"]) == 3
    assert not set(metrics["input_names"]) & set(metrics["held_out_names"])
    assert (metrics["width"], metrics["height"]) == (64, 48)
    assert metrics["refine_steps"] == 4
    stages = {"load", "reconstruct", "kernels", "score_before_refine", "refine", "score", "write", "export"}
    assert set(metrics["seconds"]) == stages
    assert metrics["peak_memory_gb"] > 0.1
    assert metrics["watched"] == "none"
    assert len(load_ply(result / "scene.ply")) == metrics["num_gaussians"] == 3 * 64 * 48 // 4
    named = {"cameras.json", "inputs", "metrics.json", "preview.mp4", "renders", "scene.ply", "viewer.html"}
    assert visible(result) == named
    assert set(metrics["files"].values()) == {"scene.ply", "viewer.html", "preview.mp4"}
    assert len(list((result / "renders").iterdir())) == 4


def test_reconstruct_writes_what_is_asked_for(scene_folder: Path, weights: Path, tmp_path: Path) -> None:
    command = ["reconstruct", str(scene_folder), "-o", str(tmp_path / "out"), "--weights", str(weights)]
    command += ["--views", "2", "--device", "cpu"]
    assert main([*command, "--export", "spz", "splat", "glb", "compressed-ply"]) == 0
    written = visible(tmp_path / "out")
    splats = {"scene.ply", "scene.spz", "scene.splat", "scene.glb", "scene.compressed.ply"}
    assert written == {"cameras.json", "inputs", "metrics.json", "renders"} | splats
    assert {len(load_gaussians(tmp_path / "out" / name)) for name in splats} == {2 * 64 * 48 // 4}
    assert main([*command, "--export"]) == 0
    assert visible(tmp_path / "out") == written - splats | {"scene.ply"}


def test_input_photos_travel_along(result: Path, scene_folder: Path) -> None:
    scene, shown = load_scene(scene_folder), load_result(result)
    assert len(shown.photos) == 3
    for name, photo in zip(shown.names, shown.photos, strict=True):
        assert photo is not None
        truth = scene.images[scene.names.index(name)]
        assert (torch.from_numpy(photo.copy()) / 255 - truth).abs().mean() < 0.02


def test_scores_are_those_of_the_written_files(result: Path, scene_folder: Path) -> None:
    """Rendering the written splats at the held-out poses gives the reported PSNR."""
    from ilrm.pipeline.refine import mean_psnr

    metrics = json.loads((result / "metrics.json").read_text())
    scene = load_scene(scene_folder)
    held_out = scene.select([scene.names.index(name) for name in metrics["held_out_names"]])
    assert mean_psnr(load_ply(result / "scene.ply"), held_out) == pytest.approx(metrics["psnr"], abs=1e-3)


def test_renders_show_prediction_beside_truth(result: Path, scene_folder: Path) -> None:
    scene = load_scene(scene_folder)
    (pair,) = (p for p in sorted((result / "renders").iterdir()) if p.name.endswith("0_vs_truth.png"))
    both, alone = png(pair), png(pair.with_name(pair.name.replace("_vs_truth", "")))
    assert both.shape == (48, 128, 3)
    assert torch.equal(both[:, :64], alone)
    assert psnr(both[None, :, 64:], scene.images[[0]]) > 50


def test_cameras_return(result: Path, scene_folder: Path) -> None:
    cameras, names = load_cameras(result / "cameras.json")
    scene = load_scene(scene_folder)
    expected = scene.cameras[[scene.names.index(name) for name in names]]
    torch.testing.assert_close(cameras.c2w, expected.c2w, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cameras.K, expected.K)


def test_json_is_the_only_output(scene_folder: Path, weights: Path, tmp_path: Path, capsys) -> None:
    arguments = ["reconstruct", str(scene_folder), "-o", str(tmp_path / "out"), "--weights", str(weights), "--json"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["psnr"] is None  # six photos: none is held out by default
    assert report["held_out_names"] == []
    assert report["num_inputs"] == 6
    assert report == {**json.loads((tmp_path / "out" / "metrics.json").read_text()), "output": str(tmp_path / "out")}


def test_same_seed_same_file(scene_folder: Path, weights: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        arguments = ["--weights", str(weights), "--views", "3", "--refine", "60", "--size", "32", "--device", "cpu"]
        assert main(["reconstruct", str(scene_folder), "-o", str(tmp_path / name), *arguments]) == 0
    a, b = load_ply(tmp_path / "a" / "scene.ply"), load_ply(tmp_path / "b" / "scene.ply")
    assert len(a) == len(b)
    torch.testing.assert_close(a.means, b.means, atol=1e-4, rtol=1e-4)


def test_existing_folder_is_updated(result: Path, scene_folder: Path, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    command = ["reconstruct", str(scene_folder), "-o", str(tmp_path), "--weights", str(weights)]
    assert main([*command, "--holdout", "2", "--export", "spz"]) == 0
    before = visible(tmp_path / "renders")
    assert main([*command, "--holdout", "3", "--export"]) == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert 0 < len(visible(tmp_path / "renders")) < len(before)
    assert visible(tmp_path) == {"cameras.json", "inputs", "metrics.json", "notes.txt", "renders", "scene.ply"}


def test_held_out_photos_steer_only_when_asked(scene_folder: Path, weights: Path, tmp_path: Path) -> None:
    watched = []
    for name, extra in (("a", []), ("b", ["--watch", "held-out"])):
        arguments = ["--weights", str(weights), "--holdout", "3", "--refine", "2", *extra]
        assert main(["reconstruct", str(scene_folder), "-o", str(tmp_path / name), *arguments]) == 0
        watched.append(json.loads((tmp_path / name / "metrics.json").read_text())["watched"])
    assert watched == ["none", "held-out"]  # all four photos that are not held out are inputs


def test_render_orbit(result: Path, tmp_path: Path, capsys) -> None:
    arguments = ["render", str(result / "scene.ply"), "-o", str(tmp_path / "orbit"), "--frames", "3", "--json"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["files"] == ["frame_0000.png", "frame_0001.png", "frame_0002.png"]
    frames = [png(tmp_path / "orbit" / name) for name in report["files"]]
    assert frames[0].shape == (48, 64, 3)
    assert not torch.equal(frames[0], frames[1])


def test_render_poses_equals_the_reconstruction(result: Path, scene_folder: Path, tmp_path: Path) -> None:
    arguments = ["--path", "poses", "--cameras", str(scene_folder)]
    assert main(["render", str(result / "scene.ply"), "-o", str(tmp_path / "poses"), *arguments]) == 0
    (name,) = (p.name for p in (result / "renders").iterdir() if p.name.endswith("3.png"))
    # near differs a little: it follows the extent of the cameras that were given
    assert (png(tmp_path / "poses" / name) - png(result / "renders" / name)).abs().max() <= 2 / 255
    assert len(visible(tmp_path / "poses")) == 6


def test_render_one_file(result: Path, tmp_path: Path) -> None:
    one = ["--frames", "1", "--size", "128"]
    assert main(["render", str(result / "scene.ply"), "-o", str(tmp_path / "a.png"), *one]) == 0
    assert png(tmp_path / "a.png").shape == (96, 128, 3)


def test_refine_file(result: Path, scene_folder: Path, tmp_path: Path, capsys) -> None:
    arguments = ["--steps", "60", "--holdout", "3", "--json"]
    output = tmp_path / "better.ply"
    assert main(["refine", str(result / "scene.ply"), str(scene_folder), "-o", str(output), *arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["psnr"] > report["psnr_before_refine"]
    assert len(load_ply(output)) == report["num_gaussians"]


def test_refine_for_a_time(result: Path, scene_folder: Path, tmp_path: Path, capsys) -> None:
    command = ["refine", str(result / "scene.ply"), str(scene_folder), "-o", str(tmp_path / "a.ply")]
    assert main([*command, "--seconds", "1s", "--holdout", "3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["refine_steps"] is None
    assert report["refine_seconds"] == 1.0
    assert report["refine_steps_done"] >= 1
    assert report["psnr_inputs"] > report["psnr_inputs_before_refine"] - 0.2
    assert main([*command, "--seconds", "soon", "--overwrite"]) == 1
    assert "--seconds soon was given" in capsys.readouterr().err


def test_data_make_and_check(tmp_path: Path, capsys) -> None:
    assert main(["data", "make", "-o", str(tmp_path / "made"), "--scenes", "2", "--views", "3", "--size", "32"]) == 0
    names = sorted(p.name for p in (tmp_path / "made").iterdir())
    assert names == ["scene_000000", "scene_000001"]
    assert len(load_scene(tmp_path / "made" / "scene_000001")) == 3
    capsys.readouterr()
    assert main(["data", "check", str(tmp_path / "made" / "scene_000000"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["usable"] is True


def test_weights_commands(weights: Path, tmp_path: Path, capsys) -> None:
    assert main(["weights", "list", "--json"]) == 0
    assert "ilrm-small" in [entry["name"] for entry in json.loads(capsys.readouterr().out)["weights"]]
    assert main(["weights", "convert", str(weights), "-o", str(tmp_path / "half"), "--bf16"]) == 0
    capsys.readouterr()
    assert main(["weights", "show", str(tmp_path / "half"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] > 1000


@pytest.mark.parametrize("command", ["", "demo", "reconstruct", "render", "refine", "weights", "data", "data make"])
def test_help(command: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    assert "usage: ilrm" in capsys.readouterr().out


@pytest.mark.parametrize("command", [[], ["reconstruct"]])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    """Half of the time of ``ilrm --help`` would be numpy's and Rich's."""
    code = (
        f"import sys\nfrom ilrm.cli import main\ntry:\n    main([*{command!r}, '--help'])\n"
        f"except SystemExit:\n    print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("HEAVY []")


@pytest.mark.parametrize("arguments", [["weights", "list"], ["weights", "--help"]])
def test_closed_pipe_is_quiet(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "ilrm.cli", *arguments]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 141


def test_interrupted_run_leaves_the_earlier_result(
    scene_folder: Path, weights: Path, result: Path, tmp_path: Path
) -> None:
    import signal

    out = tmp_path / "out"
    shutil.copytree(result, out)
    before = tree(out)
    command = [sys.executable, "-m", "ilrm.cli", "reconstruct", str(scene_folder), "-o", str(out)]
    command += ["--weights", str(weights), "--refine", "100000"]
    for sent, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            assert "inputs" in process.stderr.readline()  # it has read the scene, and begins
            wait_until(lambda: list(out.glob(".*.partial")), process)
            process.send_signal(sent)
            _, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == status, errors
        assert "Traceback" not in errors
        assert tree(out) == before


def test_a_swallowed_interrupt_is_raised_again(monkeypatch, capsys) -> None:
    """Python drops exceptions of destructors; the user's Ctrl-C must not be lost in one."""
    import os
    import signal

    from ilrm.cli import commands

    def run(self: object, console: object) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        time.sleep(30)
        raise AssertionError("the interrupt was lost")

    alarm = signal.getsignal(signal.SIGALRM)
    monkeypatch.setattr(commands._StopCleanly, "_AGAIN_AFTER_S", 0.2)
    monkeypatch.setattr("ilrm.cli.weights.List.run", run, raising=True)
    assert main(["weights", "list"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGALRM) is alarm
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_demo_is_a_reconstruction_of_the_bundled_capture(tmp_path: Path, monkeypatch, capsys) -> None:
    """``test_shipped`` runs it."""
    given = {}

    def run(console: object, **options: Any) -> dict[str, Any]:
        given.update(options)
        return {"psnr": 1.0}

    monkeypatch.setattr("ilrm.cli.reconstruct.run_and_show", run)
    assert main(["demo", "-o", str(tmp_path / "demo"), "--refine", "2", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"psnr": 1.0}
    assert given.pop("input").samefile(CAPTURE)
    assert given == {"output": tmp_path / "demo", "refine": "2", "device": "cpu", "overwrite": False}
