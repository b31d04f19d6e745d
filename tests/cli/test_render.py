"""``ilrm render``: videos, their content, resuming after an interruption, and user mistakes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from ilrm.cli import main
from ilrm.core.gaussians import Gaussians
from ilrm.pictures import frame_store
from ilrm.pictures.camera_path import cameras_on_ring, load_path, make_path, nearest_views
from ilrm.pictures.frames import Picture, clear_near_plane, path_depth_range, render_path
from ilrm.pictures.options import resized
from ilrm.scenes import load_scene
from ilrm.splats import save_ply
from ilrm.splats.cameras import load_cameras
from tests.cli.conftest import tree, visible
from tests.cli.test_bad_input import expect_failure, nan_ply
from tests.conftest import make_cameras, make_gaussians
from tests.pictures.test_orbits import FOCUS, ring


def video(path: Path) -> np.ndarray:
    """(F, H, W, 3) frames in [0, 1]."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]) / 255


def image(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)) / 255


def report(arguments: list[object], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["render", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def camera_path_json(path: Path, frames: int = 3, **changed: Any) -> Path:
    """nerfstudio's file: cameras at z = 4 that look at the origin along -z, y up."""
    pose = np.eye(4)
    pose[2, 3] = 4.0
    entry = {"camera_to_world": pose.flatten().tolist(), "fov": 60.0, "aspect": 1.5}
    content = {"camera_type": "perspective", "render_width": 48, "render_height": 32, "fps": 12}
    path.write_text(json.dumps({**content, "camera_path": [entry] * frames, **changed}))
    return path


@pytest.mark.parametrize("path", ["auto", "orbit", "spiral", "wobble", "interpolate"])
def test_video_of_a_result(path: str, result: Path, tmp_path: Path, capsys) -> None:
    got = report([result, "-o", tmp_path / "a.mp4", "--path", path, "--frames", "5"], capsys)
    assert (got["frames"], got["width"], got["height"], got["fps"], got["reused"]) == (5, 64, 48, 30.0, 0)
    seen = video(tmp_path / "a.mp4")
    assert seen.shape == (5, 48, 64, 3)
    assert np.abs(seen[0] - seen[2]).mean() > 1e-3
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.mp4"]


def test_video_shows_the_frames_of_the_folder(result: Path, tmp_path: Path) -> None:
    for output in ("a.mp4", "frames", "a.webp"):
        assert main(["render", str(result), "-o", str(tmp_path / output), "--frames", "3", "--size", "96x64"]) == 0
    seen = video(tmp_path / "a.mp4")
    for i in range(3):
        assert np.abs(seen[i] - image(tmp_path / "frames" / f"frame_000{i}.png")).mean() < 0.02
    with Image.open(tmp_path / "a.webp") as preview:
        assert (preview.n_frames, preview.size) == (3, (96, 64))  # pyright: ignore[reportAttributeAccessIssue]


def test_panels_stand_side_by_side(result: Path, scene_folder: Path, tmp_path: Path) -> None:
    """Colour, depth, normals, opacity, photo; at an input camera the photo is its own."""
    extra = ["--path", "input", "--what", "rgb", "depth", "normals", "opacity", "--nearest-photos", str(scene_folder)]
    assert main(["render", str(result), "-o", str(tmp_path / "out"), *extra]) == 0
    assert main(["render", str(result), "-o", str(tmp_path / "alone"), "--path", "input"]) == 0
    scene = load_scene(scene_folder)
    names = [Path(name).stem for name in load_cameras(result / "cameras.json")[1]]
    files = sorted((tmp_path / "out").glob("*.png"))
    assert len(files) == len(names) == 3
    for file in files:
        (view,) = (i for i, name in enumerate(scene.names) if Path(name).stem in file.stem)
        panels = np.split(image(file), 5, axis=1)
        np.testing.assert_array_equal(panels[0], image(tmp_path / "alone" / file.name))
        assert np.abs(panels[4] - scene.images[view].numpy()).mean() < 0.01
        assert np.ptp(panels[3], axis=2).max() == 0


def test_even_sizes_loops_and_ping_pong(result: Path, tmp_path: Path, capsys) -> None:
    shown = ["--frames", "4", "--size", "45", "--fps", "10", "--ping-pong", "--loops", "2", "--background", "#000"]
    got = report([result, "-o", tmp_path / "a.mp4", *shown], capsys)
    assert (got["frames"], got["fps"], got["width"], got["height"]) == (12, 10.0, 44, 34)
    seen = video(tmp_path / "a.mp4")
    assert seen.shape == (12, 34, 44, 3)
    for first, second in ((1, 5), (2, 4), (3, 9), (0, 6)):
        assert np.abs(seen[first] - seen[second]).mean() < 0.01


def test_path_file_of_nerfstudio(tmp_path: Path, capsys) -> None:
    """A red Gaussian above the middle and a blue one to the right of it, in OpenGL's sense."""
    colours = torch.tensor([[[1.0, -1, -1]], [[-1, -1, 1]]]) * 0.5 / 0.28209479
    means = torch.tensor([[0.0, 1, 0], [1, 0, 0]])
    one = torch.ones(2)
    save_ply(
        Gaussians(means, torch.full((2, 3), 0.15), torch.eye(4)[:1].repeat(2, 1), one, colours), tmp_path / "a.ply"
    )
    path = camera_path_json(tmp_path / "camera_path.json")
    got = report([tmp_path / "a.ply", "-o", tmp_path / "out.mp4", "--path", path], capsys)
    assert (got["frames"], got["fps"], got["width"], got["height"]) == (3, 12.0, 48, 32)
    report([tmp_path / "a.ply", "-o", tmp_path / "out", "--path", path], capsys)
    seen = image(tmp_path / "out" / "frame_0000.png")
    reach = 16 / np.tan(np.radians(30)) / 4  # pixels a world unit, at distance 4
    np.testing.assert_allclose(seen[round(16 - reach), 24], [1, 0, 0], atol=0.2)
    np.testing.assert_allclose(seen[16, round(24 + reach)], [0, 0, 1], atol=0.2)
    assert load_path(path).fps == 12


def test_path_file_of_ours_is_the_input(result: Path, tmp_path: Path) -> None:
    shutil.copy(result / "cameras.json", tmp_path / "path.json")
    for name, path in (("a", "input"), ("b", str(tmp_path / "path.json"))):
        assert main(["render", str(result), "-o", str(tmp_path / name), "--path", path]) == 0
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_splats_alone_get_cameras(result: Path, tmp_path: Path, capsys) -> None:
    shutil.copy(result / "scene.ply", tmp_path / "alone.ply")
    got = report([tmp_path / "alone.ply", "-o", tmp_path / "a.mp4", "--frames", "2", "--size", "64"], capsys)
    assert (got["width"], got["height"]) == (64, 48)
    seen = video(tmp_path / "a.mp4")
    assert (seen < 0.9).any(-1).mean() > 0.05  # something is there, not only background


@pytest.mark.parametrize("up", ["x", "y", "z", "-x", "-y", "-z"])
def test_cameras_that_are_made_up_see_the_scene_upright(up: str) -> None:
    cameras = cameras_on_ring(make_gaussians(200), up).check()  # pyright: ignore[reportArgumentType]
    axis = torch.zeros(3, dtype=torch.float64)
    axis["xyz".index(up[-1])] = -1.0 if up[0] == "-" else 1.0
    assert (cameras.c2w[:, :3, 1] @ axis < -0.9).all()
    assert (cameras.centers @ axis > 0.5).all()  # from above
    seen = list(render_path(make_gaussians(200), cameras.resize(64, 48), Picture(("opacity",))))
    assert all(0.1 < frame.mean() < 0.9 and frame[20:28, 24:40].mean() > 0.3 for frame in seen)


class Stop:
    """Counts rendered frames, and presses Ctrl-C at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int = 1000) -> None:
        self.count, self.after = 0, after
        self.render = frame_store.render_frame
        monkeypatch.setattr(frame_store, "render_frame", self)

    def __call__(self, *arguments: Any) -> torch.Tensor:
        if self.count == self.after:
            raise KeyboardInterrupt
        self.count += 1
        return self.render(*arguments)


@pytest.mark.parametrize("output", ["a.mp4", "frames"])
def test_interrupted_render_goes_on(output: str, result: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    command = ["render", str(result), "-o", str(tmp_path / output), "--frames", "6"]
    assert main([*command[:3], str(tmp_path / "whole" / output), *command[4:]]) == 0
    with monkeypatch.context() as patch:
        assert Stop(patch, after=4).count == 0
        assert main(command) == 130
    assert "4 of 6 frames are kept" in capsys.readouterr().err
    assert not (tmp_path / output).exists()
    again = Stop(monkeypatch)
    assert report(command[1:], capsys)["reused"] == 4
    assert again.count == 2
    expected = {str(Path("whole", output, *Path(name).parts[1:])) for name in tree(tmp_path) if "whole" not in name}
    assert {name for name in tree(tmp_path) if "whole" in name} == expected
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([output, "whole"])
    if output == "frames":
        assert tree(tmp_path / output) == tree(tmp_path / "whole" / output)
    else:
        # Not bit by bit: the encoder itself is not reproducible.
        assert np.abs(video(tmp_path / output) - video(tmp_path / "whole" / output)).mean() < 0.01


CHANGES: dict[str, list[str]] = {
    "path": ["--path", "wobble"],
    "size": ["--size", "48"],
    "what": ["--what", "depth"],
    "background": ["--background", "black"],
    "frames": ["--frames", "5"],
}


@pytest.mark.parametrize("change", [*CHANGES, "splats"])
def test_changed_options_start_anew(change: str, result: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    source = tmp_path / "source"
    shutil.copytree(result, source)
    command = ["render", str(source), "-o", str(tmp_path / "a.mp4"), "--frames", "4"]
    with monkeypatch.context() as patch:
        Stop(patch, after=2)
        assert main(command) == 130
    if change == "splats":
        save_ply(make_gaussians(50), source / "scene.ply")
    capsys.readouterr()
    assert report([*command[1:], *CHANGES.get(change, [])], capsys)["reused"] == 0
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.mp4", "source"]  # what was kept is gone as well


def test_another_frame_rate_reuses_the_frames(result: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    command = ["render", str(result), "-o", str(tmp_path / "a.mp4"), "--frames", "4"]
    with monkeypatch.context() as patch:
        Stop(patch, after=3)
        assert main(command) == 130
    assert report([*command[1:], "--fps", "15"], capsys)["reused"] == 3


def test_shorter_render_into_the_same_folder(result: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.png").write_text("mine")
    for frames in ("5", "2"):
        assert main(["render", str(result), "-o", str(tmp_path / "out"), "--frames", frames, "--size", "32"]) == 0
    assert visible(tmp_path / "out") == {"frame_0000.png", "frame_0001.png", "mine.png"}


def test_stabilised_interpolation(result: Path, tmp_path: Path, capsys) -> None:
    extra = ["--path", "interpolate", "--stabilise", "--size", "32", "--what", "opacity"]
    assert report([result, "-o", tmp_path / "a.mp4", *extra], capsys)["frames"] == 3 * 16


def test_default_paths() -> None:
    gaussians = make_gaussians(300)
    moved = Gaussians(
        gaussians.means + FOCUS.float(), *(getattr(gaussians, n) for n in ("scales", "quats", "opacities", "sh"))
    )
    around, front = make_path("auto", moved, ring(9), 12), make_path("auto", gaussians, make_cameras(6, 40, 30), 12)
    assert around.closed
    radius = (around.cameras.centers - FOCUS)[:, [0, 2]].norm(dim=-1)
    torch.testing.assert_close(radius, torch.full((12,), 2.0).double())
    photo = make_cameras(6, 40, 30)[3]  # the one in the middle: the spiral goes about it, framed like it
    assert (front.cameras.centers - photo.centers).norm(dim=-1).max() < 0.1 * 4.5 * 3**0.5
    assert (front.cameras.forward @ photo.forward[0]).min() > 0.97
    assert len(make_path("orbit", gaussians, make_cameras(6, 40, 30)).cameras) == 120
    pair = make_cameras(2, 40, 30)
    there_and_back = make_path("interpolate", gaussians, pair, 8).cameras
    torch.testing.assert_close(there_and_back.c2w[[0, 4]], pair.c2w, atol=1e-5, rtol=0)
    torch.testing.assert_close(there_and_back.c2w[[1, 2, 3]], there_and_back.c2w[[7, 6, 5]], atol=1e-6, rtol=0)


def test_nearest_views_weigh_place_and_direction() -> None:
    cameras = ring(8)
    assert nearest_views(cameras[[5, 2, 2]], cameras, 2.0) == [5, 2, 2]
    turned = cameras.c2w[[0, 0]].clone()
    turned[1, :3, :3] = cameras.c2w[4, :3, :3]  # at the same place, looking back
    pair = type(cameras)(turned, cameras.K[:2], 40, 30)
    assert nearest_views(pair, pair, 2.0) == [0, 1]


def test_specks_before_the_lens_are_not_drawn() -> None:
    gaussians, cameras = make_gaussians(400), make_cameras(6, 40, 30)
    near = clear_near_plane(gaussians, cameras, 0.01)
    assert 0.2 < near < 2
    assert clear_near_plane(gaussians, cameras, 50.0) == 50.0
    limits = path_depth_range(gaussians, cameras, 0.01)
    assert limits is not None
    assert 1 < limits[0] < limits[1] < 8


def test_cropped_sizes_keep_shapes() -> None:
    cameras = make_cameras(2, 64, 48)
    wide = resized(cameras, "128x64", even=True)
    assert (wide.width, wide.height) == (128, 64)
    torch.testing.assert_close(wide.K[:, 0, 0] / wide.K[:, 1, 1], cameras.K[:, 0, 0] / cameras.K[:, 1, 1])
    torch.testing.assert_close(wide.K[:, 1, 2] - 32, 2 * (cameras.K[:, 1, 2] - 24))  # the middle stays the middle


BAD: dict[str, tuple[list[str], list[str]]] = {
    "unknown path": (["-o", "{out}/a.mp4", "--path", "orbitt"], ["'orbitt'", "spiral"]),
    "path file absent": (["-o", "{out}/a.mp4", "--path", "{out}/no.json"], ["no.json"]),
    "path file no JSON": (["-o", "{out}/a.mp4", "--path", "{out}/text.json"], ["text.json", "camera_path"]),
    "path file without frames": (["-o", "{out}/a.mp4", "--path", "{out}/none.json"], ["0 frames"]),
    "path file cut": (["-o", "{out}/a.mp4", "--path", "{out}/cut.json"], ["cut.json", "camera_to_world"]),
    "path file NaN": (["-o", "{out}/a.mp4", "--path", "{out}/nan.json"], ["frame 0", "NaN"]),
    "path file of fisheyes": (["-o", "{out}/a.mp4", "--path", "{out}/fish.json"], ["fisheye"]),
    "path file too large": (["-o", "{out}/a.mp4", "--path", "{out}/huge.json"], ["100000x", "--size"]),
    "frames of a path file": (["-o", "{out}/f", "--path", "{out}/good.json", "--frames", "9"], ["--frames 9"]),
    "frames of the input": (["-o", "{out}/f", "--path", "input", "--frames", "9"], ["input cameras"]),
    "no frame": (["-o", "{out}/a.mp4", "--frames", "0"], ["--frames 0"]),
    "unknown extension": (["-o", "{out}/a.avi"], ["a.avi", "'.avi'", ".mp4"]),
    "odd size": (["-o", "{out}/a.mp4", "--size", "65x49"], ["65x49", "even"]),
    "no size": (["-o", "{out}/a.mp4", "--size", "big"], ["--size big"]),
    "too small": (["-o", "{out}/a.mp4", "--size", "640x3"], ["--size 640x3"]),
    "no colour": (["-o", "{out}/a.mp4", "--background", "blurple"], ["blurple"]),
    "no time": (["-o", "{out}/a.mp4", "--fps", "0"], ["0 frames per second"]),
    "times of images": (["-o", "{out}/f", "--fps", "3"], ["--fps", ".mp4"]),
    "twice the same": (["-o", "{out}/a.mp4", "--what", "rgb", "rgb"], ["--what rgb rgb"]),
    "photos absent": (["-o", "{out}/a.mp4", "--nearest-photos", "{out}/nowhere"], ["nowhere"]),
    "preview too large": (["-o", "{out}/a.gif", "--frames", "5000", "--size", "1024"], ["a.gif", ".mp4"]),
    "nobody may write": (["-o", "/proc/nowhere/a.mp4", "--frames", "2"], ["/proc/nowhere", "Cannot write"]),
    "folder nobody may write": (["-o", "/proc/nowhere", "--frames", "2"], ["/proc/nowhere", "Cannot write"]),
    "a folder": (["-o", "{out}/folder.mp4", "--frames", "2"], ["folder.mp4", "folder"]),
    "under a file": (["-o", "{out}/text.json/a.mp4", "--frames", "2"], ["is a file"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_renders(name: str, result: Path, tmp_path: Path, capsys) -> None:
    extra, words = BAD[name]
    (tmp_path / "text.json").write_text("not JSON")
    (tmp_path / "folder.mp4").mkdir()
    for file, changed in {
        **{"good": {}, "none": {"camera_path": []}, "cut": {"camera_path": [{"fov": 50}]}},
        **{"nan": {"camera_path": [{"camera_to_world": [float("nan")] * 16, "fov": 50}]}},
        **{"fish": {"camera_type": "fisheye"}, "huge": {"render_width": 100_000}},
    }.items():
        camera_path_json(tmp_path / f"{file}.json", **changed)
    before = tree(tmp_path)
    arguments = [value.replace("{out}", str(tmp_path)) for value in extra]
    expect_failure(["render", str(result), *arguments], words, capsys)
    assert tree(tmp_path) == before
    assert not list(tmp_path.rglob("*.partial"))


SPLATS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "NaN": (nan_ply, ["10 of 10 Gaussians"]),
    "absent": (lambda path: None, ["no such file"]),
}


@pytest.mark.parametrize("name", SPLATS)
def test_bad_splats_alone(name: str, tmp_path: Path, capsys) -> None:
    make, words = SPLATS[name]
    make(tmp_path / "bad.ply")
    before = tree(tmp_path)
    expect_failure(["render", str(tmp_path / "bad.ply"), "-o", str(tmp_path / "a.mp4")], words, capsys)
    expect_failure(["render", str(tmp_path / "bad.txt"), "-o", str(tmp_path / "a.mp4")], [".ply"], capsys)
    expect_failure(["render", str(tmp_path), "-o", str(tmp_path / "a.mp4")], ["scene.ply"], capsys)
    assert tree(tmp_path) == before
