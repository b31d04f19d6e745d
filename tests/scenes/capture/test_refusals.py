"""Captures that cannot work are refused in words that say what to shoot instead; weak ones are named."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

import ilrm
from ilrm.cli import main
from ilrm.core.errors import IlrmWarning, SceneError
from ilrm.datasets.procedural import ProceduralConfig, make_scene
from ilrm.scenes.capture import diagnosis, report, worker
from ilrm.scenes.capture.exif import PhotoData
from ilrm.scenes.capture.media import find_media
from ilrm.scenes.capture.models import Model, best, is_scrap
from ilrm.scenes.capture.photos import Shot
from ilrm.scenes.readers.colmap_model import Camera
from tests.scenes.capture.conftest import pixels, save


def refused(folder: Path) -> SceneError:
    with pytest.raises(SceneError) as raised:
        ilrm.capture(folder, folder.parent / "out")
    assert not (folder.parent / "out").exists()
    assert not [entry for entry in folder.parent.iterdir() if entry.name.endswith(".kept")]
    return raised.value


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_photos(count: int, posed: ilrm.Scene, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for view in range(count):
        save(pixels(posed, view), tmp_path / "photos" / f"{view}.jpg")
    error = refused(tmp_path / "photos")
    words = {0: "no photos and no video", 1: "has one photo", 2: "has 2 photos"}[count]
    assert words in error.problem


def test_one_picture_many_times(posed: ilrm.Scene, tmp_path: Path) -> None:
    for copy in range(12):
        save(pixels(posed, 0), tmp_path / "photos" / f"{copy}.jpg")
    assert "11 of 12 photos repeat another" in refused(tmp_path / "photos").problem


def test_all_blurred(posed: ilrm.Scene, tmp_path: Path) -> None:
    for view in range(4):
        image = Image.fromarray(pixels(posed, view)).filter(ImageFilter.GaussianBlur(6))
        save(np.asarray(image), tmp_path / "photos" / f"{view}.jpg")
    error = refused(tmp_path / "photos")
    assert "All 4 photos" in error.problem
    assert "light" in error.fix


@pytest.mark.slow
def test_photos_of_different_places(tmp_path: Path) -> None:
    for seed in range(3):
        scene = make_scene(seed, ProceduralConfig(views=1, width=320, height=240, style="photographic"))
        save(pixels(scene, 0), tmp_path / "photos" / f"{seed}.jpg")
    assert "do not overlap" in refused(tmp_path / "photos").problem


@pytest.mark.slow
def test_a_camera_that_stands_still(posed: ilrm.Scene, tmp_path: Path) -> None:
    """Only the light changes."""
    for number, factor in enumerate((0.6, 0.8, 1.0, 1.2)):
        save((pixels(posed, 0) * factor).clip(0, 255).astype(np.uint8), tmp_path / "photos" / f"{number}.jpg")
    assert "stands still" in refused(tmp_path / "photos").problem


@pytest.mark.slow
def test_a_camera_that_only_turns(tmp_path: Path) -> None:
    """A distant wall of pictures, seen from one place: photos differ by homographies K R K^-1."""
    config = ProceduralConfig(views=1, width=320, height=240, style="photographic")
    quarters = [pixels(make_scene(seed, config), 0) for seed in range(4)]
    wall = Image.fromarray(np.concatenate([np.concatenate(quarters[:2], 1), np.concatenate(quarters[2:], 1)]))
    K = np.array([[300.0, 0, 160], [0, 300, 120], [0, 0, 1]])
    far = np.array([[300.0, 0, 320], [0, 300, 240], [0, 0, 1]])
    for number, degrees in enumerate(np.linspace(-14, 14, 5)):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        h = far @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]) @ np.linalg.inv(K)
        data = (h / h[2, 2]).ravel()[:8].tolist()
        seen = wall.transform((320, 240), Image.Transform.PERSPECTIVE, data, Image.Resampling.BICUBIC)
        save(np.asarray(seen), tmp_path / "photos" / f"{number}.jpg")
    error = refused(tmp_path / "photos")
    assert "from one place" in error.problem
    assert "step sideways" in error.fix


@pytest.mark.slow
def test_a_moving_camera_is_not_one_that_turns() -> None:
    """Turning explains a translation badly."""
    rng = np.random.default_rng(0)
    points = rng.uniform([-2, -2, 3], [2, 2, 9], (200, 3))
    K, size = np.array([[300.0, 0, 160], [0, 300, 120], [0, 0, 1]]), (320, 240)

    def seen(shift: float, degrees: float) -> np.ndarray:
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        moved = (points - [shift, 0, 0]) @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]).T @ K.T
        return moved[:, :2] / moved[:, 2:]

    turn, move = ((seen(0, 0), seen(shift, degrees), size, size) for shift, degrees in ((0.0, 8.0), (0.5, 2.0)))
    assert worker._turned([turn])[0] < 0.3
    assert worker._turned([move])[0] > 3


def test_the_command_tells_it_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    for command in ("capture", "reconstruct"):
        assert main([command, str(tmp_path / "photos"), "-o", str(tmp_path / "out")]) == 1
        told = capsys.readouterr().err
        assert "Traceback" not in told
        assert "expected:" in told
    assert not (tmp_path / "out").exists()


def test_what_a_folder_holds(posed: ilrm.Scene, tmp_path: Path) -> None:
    for name in ("a/1.jpg", "b/1.jpg", ".hidden/2.jpg", "b/.3.jpg"):
        save(pixels(posed, 0), tmp_path / "photos" / name)
    (tmp_path / "photos" / "clip.mp4").write_bytes(b"")
    with pytest.warns(IlrmWarning, match="only the photos are used"):
        media = find_media(tmp_path / "photos")
    assert [file.relative_to(tmp_path / "photos").as_posix() for file in media.photos] == ["a/1.jpg", "b/1.jpg"]
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.mov").write_bytes(b"")
    assert find_media(tmp_path / "films").video == tmp_path / "films" / "a.mov"
    (tmp_path / "films" / "b.webm").write_bytes(b"")
    with pytest.raises(SceneError, match="2 videos"):
        find_media(tmp_path / "films")
    for path, words in ((tmp_path / "photos/a/1.jpg", "single photo"), (tmp_path / "none", "does not exist")):
        with pytest.raises(SceneError, match=words):
            find_media(path)


def model_of(registered: int, support: float, mapper: str = "incremental", agreement: float = 1000.0) -> dict[str, Any]:
    names = [f"{i}" for i in range(registered)]
    return {
        "mapper": mapper,
        "registered": names,
        "points": 100 * registered,
        "agreement": agreement,
        "support": dict.fromkeys(names, support),
        "error_px": 0.5,
        "track_length": 3.0,
    }


def test_the_largest_model_that_fits_is_chosen() -> None:
    small, whole, other = model_of(2, 0.9), model_of(20, 0.9), model_of(20, 0.9, "together", 2000.0)
    assert best([small, whole, other]) is whole
    assert best([small]) is None
    assert best([]) is None
    assert best([model_of(8, 0.9), other]) is other
    wrong = model_of(20, 0.4, agreement=5000.0)
    assert best([wrong, other]) is other
    assert best([wrong, model_of(20, 0.3, "together")]) is wrong
    assert is_scrap(model_of(4, 0.9), 38)
    assert not is_scrap(model_of(10, 0.9), 100)
    assert not is_scrap(model_of(4, 0.9), 12)


def shot(number: int, **changes: Any) -> Shot:
    known = {
        "name": f"{number}.jpg",
        "file": Path(f"{number}.jpg"),
        "prepared": f"{number}",
        "width": 320,
        "height": 240,
    }
    measured = {"blur": 0.3, "brightness": 0.5, "thumbnail": b"", "data": PhotoData()}
    return Shot(**{**known, **measured, **changes})


def solved(names: list[str], **changes: Any) -> Model:
    shared = tuple((a, b, 60) for a, b in pairwise(names))
    known: dict[str, Any] = {
        "mapper": "incremental",
        "w2c": dict.fromkeys(names, np.eye(4)),
        "cameras": dict.fromkeys(names, Camera("SIMPLE_RADIAL", 320, 240, (300.0, 160.0, 120.0, 0.0))),
        "points": np.zeros((10, 3)),
        "rgb": np.zeros((10, 3)),
        "error_px": 0.5,
        "track_length": 3.0,
        "points_of": dict.fromkeys(names, 100),
        "shared": shared,
        "support": 0.9,
        "contradicted": frozenset(),
    }
    return Model(**{**known, **changes})


def test_photos_without_a_camera_are_named_with_the_reason() -> None:
    shots = [shot(i) for i in range(9)]
    pairs = [{"names": [a, b]} for a, b in (("0", "1"), ("1", "2"), ("2", "3"), ("4", "5"), ("2", "8"))]
    survey = {"pairs": pairs, "keypoints": {f"{i}": 500 for i in range(9)} | {"7": 20}}
    found = report.left_out(shots, solved(["0", "1", "2"], contradicted=frozenset({"8"})), survey)
    assert found.keys() == {"3.jpg", "4.jpg", "5.jpg", "6.jpg", "7.jpg", "8.jpg"}
    assert "does not fit" in found["3.jpg"]
    assert "another group of 2 photos" in found["4.jpg"]
    assert "no other photo" in found["6.jpg"]
    assert "few details" in found["7.jpg"]
    assert "contradicts" in found["8.jpg"]


def around(degrees: list[float], radius: float = 3.0) -> ilrm.Cameras:
    """Cameras on a circle around the origin, looking at it; +z is up."""
    poses = []
    for angle in np.radians(degrees):
        forward = -np.array([np.cos(angle), np.sin(angle), 0.0])
        down = np.array([0.0, 0, -1])
        poses.append(np.eye(4))
        poses[-1][:3, :3] = np.stack([np.cross(down, forward), down, forward], 1)
        poses[-1][:3, 3] = -radius * forward
    K = torch.tensor([[300.0, 0, 160], [0, 300, 120], [0, 0, 1]]).repeat(len(degrees), 1, 1)
    return ilrm.Cameras(torch.from_numpy(np.stack(poses)).float(), K, 320, 240)


def problems(cameras: ilrm.Cameras, shots: list[Shot] | None = None, **changes: Any) -> list[str]:
    shots = shots or [shot(i) for i in range(len(cameras))]
    model = solved([shot.prepared for shot in shots], **changes)
    return [weakness.problem for weakness in report.weaknesses(shots, {}, {}, model, cameras)]


def test_weaknesses_are_named() -> None:
    turn = list(range(0, 360, 30))
    assert problems(around(turn)) == []
    assert "one side only (20 degrees" in problems(around([0, 10, 20]))[0]
    assert "no photo for 120 degrees" in problems(around(list(range(0, 241, 24))))[0]
    assert "within" in problems(around([0, 1, 2]))[0]
    bright = [shot(i, brightness=0.8 if i == 5 else 0.4) for i in range(12)]
    assert "between 4.jpg and 5.jpg (2.0 times)" in problems(around(turn), bright)[0]
    weak = dict.fromkeys([f"{i}" for i in range(12)], 100) | {"3": 10}
    assert "3.jpg" in problems(around(turn), points_of=weak)[0]
    zoomed = [shot(i, data=PhotoData(focal=2.0)) for i in range(12)]
    assert "focal length of 2.00" in problems(around(turn), zoomed)[0]
    sparse = tuple((f"{i}", f"{i + 1}", 10) for i in range(11))
    assert "share only 10%" in problems(around(turn), shared=sparse)[0]


def test_photos_that_cannot_be_used_are_named() -> None:
    turn = around(list(range(0, 360, 30)))
    shots = [shot(i) for i in range(len(turn))]
    model = solved([one.prepared for one in shots])
    refused = {"a.jpg": "is blurred", "b.heic": "cannot be opened as an image"}
    blurred, broken = (weakness.problem for weakness in report.weaknesses(shots, {}, refused, model, turn))
    assert "1 photos are too blurred to use: a.jpg" in blurred
    assert "1 photos cannot be used: b.heic (cannot be opened as an image)" in broken


def test_groups_by_overlap() -> None:
    pairs = [{"names": ["a", "b"]}, {"names": ["d", "c"]}, {"names": ["b", "e"]}]
    assert diagnosis.groups_that_overlap(pairs, list("abcdef")) == [["a", "b", "e"], ["c", "d"], ["f"]]
