"""Cameras found from photos: their poses, what is written, and going on after an interruption."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ilrm
from ilrm.cli import main
from ilrm.core.errors import ConfigError, IlrmWarning, OutputError, WorkerError
from ilrm.datasets.procedural import ProceduralConfig, make_scene
from ilrm.pipeline.forward.posing import needs_capture
from ilrm.scenes import load_scene
from ilrm.scenes.capture import sfm
from tests.conftest import NO_BYTECODE
from tests.scenes.capture.conftest import HEIGHT, VIEWS, WIDTH, pixels, save

pytestmark = pytest.mark.slow


def aligned(found: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Errors in degrees and in shares of the extent, after the best rotation, scale and translation."""
    u, _, vt = np.linalg.svd(sum(t[:3, :3] @ f[:3, :3].T for f, t in zip(found, true, strict=True)))
    turn = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
    a, b = found[:, :3, 3] @ turn.T, true[:, :3, 3]
    a, b = a - a.mean(0), b - b.mean(0)
    places = np.linalg.norm((a * b).sum() / (a * a).sum() * a - b, axis=1) / np.linalg.norm(b, axis=1).max()
    left = [t[:3, :3].T @ turn @ f[:3, :3] for f, t in zip(found, true, strict=True)]
    return np.degrees([np.arccos(np.clip((np.trace(x) - 1) / 2, -1, 1)) for x in left]), places


def test_cameras_are_those_that_took_the_photos(captured: ilrm.Captured, posed: ilrm.Scene) -> None:
    scene = load_scene(captured.folder)
    assert len(scene) == VIEWS
    degrees, places = aligned(scene.cameras.c2w.double().numpy(), posed.cameras.c2w.double().numpy())
    assert np.median(degrees) < 0.3
    assert np.median(places) < 0.02
    assert scene.cameras.K[0, 0, 0].item() == pytest.approx(posed.cameras.K[0, 0, 0].item(), rel=0.03)
    assert abs(scene.cameras.width - WIDTH) <= 4
    assert abs(scene.cameras.height - HEIGHT) <= 4


def test_the_world_has_z_up_and_its_points_around_the_middle(captured: ilrm.Captured, posed: ilrm.Scene) -> None:
    scene = load_scene(captured.folder)
    assert scene.points is not None
    assert scene.points.median(0).values.norm() < 0.5
    assert len(scene.points) == captured.report["points"]
    # Procedural worlds have +z up, too. The angle between it and a camera is the same in both worlds.
    ours = scene.cameras.c2w[:, :3, :3].double().transpose(1, 2) @ torch.tensor([0.0, 0, 1]).double()
    true = posed.cameras.c2w[:, :3, :3].double().transpose(1, 2) @ torch.tensor([0.0, 0, 1]).double()
    degrees = torch.rad2deg(torch.arccos((ours * true).sum(-1).clamp(-1, 1)))
    assert degrees.max() < 12


def test_the_report_says_what_was_found(captured: ilrm.Captured) -> None:
    report = json.loads((captured.folder / "report.json").read_text())
    assert report == json.loads(json.dumps(captured.report))
    assert (report["photos"], report["registered"], report["left_out"]) == (VIEWS, VIEWS, {})
    assert report["support"] > 0.6
    assert report["unit"] == "unknown"
    assert {"photos", "features", "match", "incremental", "write"} <= report["seconds"].keys()
    with Image.open(captured.folder / "report.png") as picture:
        colours = np.asarray(picture.convert("RGB"))
    assert (colours == [200, 40, 40]).all(-1).sum() > 20 * VIEWS  # the cameras


def test_nerfstudio_s_file_has_what_it_needs(captured: ilrm.Captured) -> None:
    found = json.loads((captured.folder / "transforms.json").read_text())
    assert found["camera_model"] == "OPENCV"
    assert found["ply_file_path"] == "points.ply"
    for frame in found["frames"]:
        assert (captured.folder / frame["file_path"]).is_file()
        assert {"fl_x", "fl_y", "cx", "cy", "w", "h"} <= frame.keys()


def test_the_same_call_again_returns_what_is_there(captured: ilrm.Captured, photos: Path) -> None:
    before = (captured.folder / "transforms.json").stat().st_mtime_ns
    again = ilrm.capture(photos, captured.folder)
    assert again.report == captured.report
    assert (captured.folder / "transforms.json").stat().st_mtime_ns == before


def test_the_command_does_the_same(
    captured: ilrm.Captured, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    assert main(["capture", str(photos), "-o", str(captured.folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {**json.loads(json.dumps(captured.report)), "output": str(captured.folder)}


def test_an_interrupted_call_goes_on(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is the same, and finished stages are not repeated."""
    ran: list[str] = []
    call = sfm._call

    def interrupted(job: dict[str, Any], *rest: Any) -> None:
        if job["stage"] == "incremental" and "incremental" not in ran:
            ran.append("incremental")
            raise KeyboardInterrupt
        ran.append(job["stage"])
        call(job, *rest)

    monkeypatch.setattr(sfm, "_call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ilrm.capture(photos, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert any(entry.name.endswith(".kept") for entry in tmp_path.iterdir())
    assert ilrm.capture(photos, tmp_path / "out").report["registered"] == VIEWS
    assert ran == ["features", "match", "survey", "incremental", "incremental"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_killed_stage_says_how_to_go_on(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killer = tmp_path / "killer.py"
    killer.write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    monkeypatch.setattr(sfm.worker, "__file__", str(killer))
    with pytest.raises(WorkerError, match="signal 9") as raised:
        ilrm.capture(photos, tmp_path / "out")
    assert "goes on where it was" in raised.value.fix
    assert not (tmp_path / "out").exists()


def test_a_stage_that_hangs_is_ended(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = tmp_path / "sleeper.py"
    sleeper.write_text("import time; time.sleep(1000)")
    monkeypatch.setattr(sfm.worker, "__file__", str(sleeper))
    monkeypatch.setitem(sfm._LIMITS, "features", (0.5, 0.0))
    with pytest.raises(WorkerError, match="did not end"):
        ilrm.capture(photos, tmp_path / "out")


def test_metres_between_two_photos(photos: Path, captured: ilrm.Captured, tmp_path: Path) -> None:
    for wrong in (("00.jpg", "nothing.jpg", 1.0), ("00.jpg", "00.jpg", 1.0), ("00.jpg", "07.jpg", -1.0)):
        with pytest.raises(ConfigError, match="scale-from"):
            ilrm.capture(photos, tmp_path / "out", scale_from=wrong)
    # The stages of the attempts above are reused.
    report = ilrm.capture(photos, tmp_path / "out", scale_from=("00.jpg", "07.jpg", 2.5)).report
    scene = load_scene(tmp_path / "out")
    places = {Path(name).stem: place for name, place in zip(scene.names, scene.cameras.centers, strict=True)}
    first, last = places["00"], places["07"]
    assert (last - first).norm().item() == pytest.approx(2.5, rel=1e-6)
    assert report["unit"] == "metres"


def test_nothing_of_the_user_s_is_replaced(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "transforms.json").write_text("mine")
    with pytest.raises(OutputError, match=r"transforms\.json"):
        ilrm.capture(photos, out)
    assert [entry.name for entry in out.iterdir()] == ["transforms.json"]
    assert (out / "transforms.json").read_text() == "mine"
    with pytest.raises(OutputError, match=r"lies in|contains|is "):
        ilrm.capture(photos, photos / "00.jpg")
    with pytest.raises(OutputError):
        ilrm.capture(photos, photos)


def test_reconstruct_takes_photos(photos: Path, captured: ilrm.Captured, tmp_path: Path) -> None:
    """The whole road in one command. Cameras that were found before are used again."""
    out = tmp_path / "out"
    shutil.copytree(captured.folder, out / "capture", copy_function=shutil.copy2)
    before = (out / "capture" / "report.json").stat().st_mtime_ns
    options = ["--size", "64", "--views", "2", "--feedback", "0", "--device", "cpu", "--export"]
    assert main(["reconstruct", str(photos), "-o", str(out), *options]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["capture"]["registered"] == VIEWS
    assert metrics["num_inputs"] == 2
    assert (out / "scene.ply").is_file()
    assert (out / "capture" / "report.json").stat().st_mtime_ns == before


def test_cameras_are_found_only_where_there_are_none(captured: ilrm.Captured, photos: Path, tmp_path: Path) -> None:
    assert needs_capture(photos, "auto")
    assert not needs_capture(photos, "stored")
    assert not needs_capture(captured.folder, "auto")
    assert needs_capture(captured.folder, "sfm")
    assert not needs_capture(tmp_path / "nothing", "auto")
    assert not needs_capture(captured.folder.parent, "auto")  # a folder of scenes
    with pytest.raises(ConfigError, match="poses"):
        ilrm.run(photos, poses="guess")  # type: ignore[arg-type]


@pytest.mark.full
def test_two_scenes_in_one_folder(photos: Path, posed: ilrm.Scene, tmp_path: Path) -> None:
    """The larger one is solved, wide and tall photos together, and the photos of the other are named."""
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    for view in (2, 5):
        save(pixels(posed, view)[:, 60:260], folder / f"{view:02d}.jpg")  # as if the phone had been turned
    other = make_scene(1, ProceduralConfig(views=3, width=WIDTH, height=HEIGHT, style="photographic"))
    for view in range(3):
        save(pixels(other, view), folder / f"other {view}.jpg")
    with pytest.warns(IlrmWarning, match="have a camera"):
        report = ilrm.capture(folder, tmp_path / "out").report
    assert report["registered"] >= VIEWS - 1
    assert {f"other {view}.jpg" for view in range(3)} <= report["left_out"].keys()
    assert report["cameras"] == 2
    assert "photos have no camera" in report["weaknesses"][0]["problem"]
    assert load_scene(tmp_path / "out").cameras.width > load_scene(tmp_path / "out").cameras.height


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of POSIX")
def test_a_full_disk_is_told(photos: Path, tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
    call = f"from ilrm.cli import main; raise SystemExit(main(['capture', {str(photos)!r}, '-o', 'out']))"
    environment = {**os.environ, **NO_BYTECODE}
    done = subprocess.run(
        [sys.executable, "-c", limit + call], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "to do:" in done.stderr
    assert not (tmp_path / "out").exists()
    # With room, the same command goes on from what is there.
    assert ilrm.capture(photos, tmp_path / "out").report["registered"] == VIEWS
