"""How a path to splats is read, and cameras of other programs next to them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

from ilrm.cli import main
from ilrm.core.cameras import Cameras
from ilrm.core.errors import CameraError, GaussiansError, IlrmWarning
from ilrm.pictures.camera_path import load_path
from ilrm.results.beside import cameras_beside, find_splats
from ilrm.splats import save_ply
from ilrm.splats.cameras import load_cameras, save_cameras
from tests.conftest import make_cameras, make_gaussians


def trained(cameras: Cameras) -> list[dict[str, object]]:
    """Cameras as INRIA's trainer writes them."""
    return [
        {
            "id": view,
            "img_name": f"{view:04d}",
            "width": cameras.width,
            "height": cameras.height,
            "position": cameras.c2w[view, :3, 3].tolist(),
            "rotation": cameras.c2w[view, :3, :3].tolist(),
            "fx": cameras.K[view, 0, 0].item(),
            "fy": cameras.K[view, 1, 1].item(),
        }
        for view in range(len(cameras))
    ]


@pytest.fixture
def output(tmp_path: Path) -> tuple[Path, Cameras]:
    """An output folder of INRIA's trainer: two saved iterations and the cameras."""
    cameras = make_cameras(3, 40, 30).to(dtype=torch.float64)
    for iteration, count in (("7000", 5), ("30000", 9), ("late", 7)):
        folder = tmp_path / "out" / "point_cloud" / f"iteration_{iteration}"
        folder.mkdir(parents=True)
        save_ply(make_gaussians(count), folder / "point_cloud.ply")
    (tmp_path / "out" / "cameras.json").write_text(json.dumps(trained(cameras)))
    return tmp_path / "out", cameras


def test_the_last_iteration_of_a_training_is_meant_and_its_cameras_are_read(output: tuple[Path, Cameras]) -> None:
    folder, expected = output
    splats = find_splats(folder)
    assert splats == folder / "point_cloud" / "iteration_30000" / "point_cloud.ply"
    beside = cameras_beside(splats)
    assert beside is not None
    cameras, names = beside
    assert names == ("0000", "0001", "0002")
    torch.testing.assert_close(cameras.c2w, expected.c2w)
    torch.testing.assert_close(cameras.K[:, [0, 1], [0, 1]], expected.K[:, [0, 1], [0, 1]])
    assert cameras.K[:, :2, 2].tolist() == [[20, 15]] * 3  # the trainer knows no other principal point
    assert load_path(folder / "cameras.json").names == names


def test_several_sizes_become_one_and_every_camera_sees_the_same(output: tuple[Path, Cameras]) -> None:
    folder, expected = output
    views = trained(expected)
    views[1] |= {"width": 80, "height": 90, "fx": 100.0, "fy": 60.0}
    (folder / "cameras.json").write_text(json.dumps(views))
    cameras, _ = load_cameras(folder / "cameras.json")
    assert (cameras.width, cameras.height) == (40, 30)
    assert cameras.K[1].tolist() == [[50, 0, 20], [0, 20, 15], [0, 0, 1]]


def test_folders_without_a_scene_say_what_is_there(tmp_path: Path) -> None:
    assert find_splats(tmp_path / "absent.ply") == tmp_path / "absent.ply"
    with pytest.raises(GaussiansError, match="ilrm reconstruct"):
        find_splats(tmp_path)
    save_ply(make_gaussians(2), tmp_path / "mine.ply")
    with pytest.raises(GaussiansError, match=r"mine\.ply"):
        find_splats(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"w": 0}, "0x30"),
        ({"w": 1e400}, "infx30"),
        ({"h": float("nan")}, "40xnan"),
        ({"w": "wide"}, "not supported"),
        ({"fx": None}, "None"),
        ({"fx": 10**400}, "too large"),
        ({"w2c": [[1]]}, "invalid for input of size 1"),
        ({"w2c": [[0.0] * 4] * 4}, "singular"),
    ],
)
def test_impossible_cameras_are_refused_in_words(tmp_path: Path, change: dict[str, object], words: str) -> None:
    save_cameras(make_cameras(1, 40, 30), ["a"], tmp_path / "cameras.json")
    content = json.loads((tmp_path / "cameras.json").read_text())
    content["frames"][0] |= change
    (tmp_path / "cameras.json").write_text(json.dumps(content).replace("Infinity", "1e400"))
    with pytest.raises(CameraError, match=words):
        load_cameras(tmp_path / "cameras.json")


@pytest.mark.parametrize("change", [{"render_width": 1e400}, {"render_height": float("nan")}, {"fps": 1e400}])
def test_impossible_path_files_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    frame = {"camera_to_world": torch.eye(4).flatten().tolist(), "fov": 50}
    content = {"render_width": 64, "render_height": 48, "camera_path": [frame], **change}
    (tmp_path / "path.json").write_text(json.dumps(content).replace("Infinity", "1e400"))
    with pytest.raises(CameraError, match="is not a camera path"):
        load_path(tmp_path / "path.json")


@pytest.mark.parametrize("content", ["{", "[]", "3", '{"frames": [{"transform_matrix": []}]}'])
def test_a_foreign_file_beside_stops_nothing(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    save_ply(make_gaussians(20, scale=0.3), splats := tmp_path / "scene.ply")
    (tmp_path / "cameras.json").write_text(content)
    assert cameras_told(splats) is None
    assert main(["export", str(splats), "-o", str(tmp_path / "a.spz")]) == 0
    assert "cameras.json" not in capsys.readouterr().err  # nothing there needs cameras
    assert main(["export", str(splats), "-o", str(tmp_path / "b.ply"), "--frame", "y-up"]) == 0
    assert "left out the cameras beside the splats" in capsys.readouterr().err
    arguments = ["-o", str(tmp_path / "a.png"), "--frames", "1", "--size", "32"]
    assert main(["render", str(splats), *arguments]) == 0
    assert "left out the cameras beside the splats" in capsys.readouterr().err
    # What was asked for by name is refused.
    assert main(["render", str(splats), *arguments, "--cameras", str(tmp_path / "cameras.json")]) == 1


def cameras_told(splats: Path) -> object:
    with pytest.warns(IlrmWarning, match=r"cameras\.json"):
        return cameras_beside(splats)


def test_a_crop_that_is_not_applied_is_said(tmp_path: Path) -> None:
    frame = {"camera_to_world": torch.eye(4).flatten().tolist(), "fov": 50}
    content = {"render_width": 64, "render_height": 48, "camera_path": [frame]}
    file = tmp_path / "camera_path.json"
    file.write_text(json.dumps({**content, "crop": {"crop_center": [0, 0, 0], "crop_scale": [1, 1, 1]}}))
    with pytest.warns(IlrmWarning, match="crop box, which is ignored"):
        load_path(file)
    file.write_text(json.dumps({**content, "crop": None}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_path(file)
