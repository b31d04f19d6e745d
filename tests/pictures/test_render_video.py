"""``ilrm.render_video``: the content of the video, and what is refused before any work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ilrm
from ilrm.cli import main
from ilrm.core.errors import ConfigError, GaussiansError, IlrmError, OutputError
from ilrm.pictures.camera_path import CameraPath
from ilrm.splats import load_gaussians, save_ply
from ilrm.splats.cameras import load_cameras, save_cameras
from tests.conftest import make_cameras, make_gaussians
from tests.pictures.test_video import read

CAMERAS = make_cameras(3, 64, 48)


def test_the_input_cameras_are_the_frames(tmp_path: Path) -> None:
    gaussians = make_gaussians(60)
    assert ilrm.render_video(gaussians, CAMERAS, tmp_path / "a.mp4", path="input", background=(0, 0, 0)) == 3
    truth = ilrm.render(gaussians, CAMERAS, (0, 0, 0), near=CAMERAS.near_plane()).rgb.clamp(0, 1).numpy()
    for found, expected in zip(read(tmp_path / "a.mp4"), truth, strict=True):
        assert np.abs(found / 255 - expected).mean() < 0.02


def test_paths_by_name_by_file_and_as_cameras(tmp_path: Path) -> None:
    gaussians = make_gaussians(60)
    video = tmp_path / "a.mp4"
    assert ilrm.render_video(gaussians, CAMERAS, video, frames=4, what=("rgb", "depth")) == 4
    assert read(video)[0].shape == (48, 128, 3)
    save_cameras(CAMERAS, ("a", "b", "c"), tmp_path / "cameras.json")
    assert ilrm.render_video(gaussians, CAMERAS, tmp_path / "b.gif", path=str(tmp_path / "cameras.json")) == 3
    assert ilrm.render_video(gaussians, CAMERAS, tmp_path / "c.webp", path=CAMERAS[:2], fps=10) == 2
    assert ilrm.render_video(gaussians, CAMERAS, tmp_path / "d.gif", path=CameraPath(CAMERAS[:1])) == 1


def test_cameras_are_made_up_where_there_are_none(tmp_path: Path) -> None:
    assert ilrm.render_video(make_gaussians(60), None, tmp_path / "a.mp4", frames=2) == 2
    assert read(tmp_path / "a.mp4")[0].shape == (480, 640, 3)


def test_python_renders_what_the_command_renders(tmp_path: Path) -> None:
    save_ply(make_gaussians(60), tmp_path / "scene.ply")
    save_cameras(CAMERAS, ["a", "b", "c"], tmp_path / "cameras.json")
    gaussians, (cameras, _) = load_gaussians(tmp_path / "scene.ply"), load_cameras(tmp_path / "cameras.json")
    for name, flags, options in (
        ("a.mp4", ["--frames", "3"], {"frames": 3}),
        ("b.gif", ["--path", "input", "--what", "rgb", "depth"], {"path": "input", "what": ("rgb", "depth")}),
        ("c.mp4", ["--frames", "4", "--size", "33", "--stabilise"], {"frames": 4, "size": 33, "stabilised": True}),
    ):
        command, python = tmp_path / f"command_{name}", tmp_path / f"python_{name}"
        arguments = ["render", str(tmp_path / "scene.ply"), "-o", str(command), "--device", "cpu", *flags]
        assert main(arguments) == 0
        ilrm.render_video(gaussians, cameras, python, **options)
        if name.endswith(".gif"):
            assert python.read_bytes() == command.read_bytes(), name
        else:  # threads of the encoder divide its work as they find the machine
            ours, theirs = (np.stack(read(path)).astype(int) for path in (python, command))
            assert ours.shape == theirs.shape
            assert np.abs(ours - theirs).max() <= 8, name


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"path": "zigzag"}, ConfigError),
        ({"path": CAMERAS, "frames": 9}, ConfigError),
        ({"what": ("rgb", "heat")}, ConfigError),
        ({"what": ()}, ConfigError),
        ({"fps": 0.0}, ConfigError),
        ({"output": "a.avi"}, OutputError),
        ({"path": "nowhere.json"}, IlrmError),
        ({"gaussians": make_gaussians(5)[:0]}, GaussiansError),
        ({"gaussians": make_gaussians(5).map(lambda x: torch.stack([x, x]))}, GaussiansError),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(
    tmp_path: Path, change: dict[str, Any], error: type[IlrmError]
) -> None:
    arguments = {"gaussians": make_gaussians(5), "cameras": CAMERAS, "output": "a.mp4", **change}
    with pytest.raises(error):
        ilrm.render_video(**{**arguments, "output": tmp_path / arguments["output"]})
    assert list(tmp_path.iterdir()) == []


def test_specks_before_the_lens_are_not_drawn_away_from_the_photos(tmp_path: Path) -> None:
    """A wall at 4, and a black speck just before the second camera, which only a path comes near."""
    wall = make_gaussians(1)
    side = torch.linspace(-4, 4, 9)
    grid = torch.cartesian_prod(side, side, torch.tensor([4.0]))
    wall = ilrm.Gaussians(
        torch.cat([grid, torch.tensor([[0.0, 0.0, 0.3]])]),
        torch.cat([torch.full((81, 3), 0.6), torch.full((1, 3), 0.05)]),
        wall.quats.expand(82, 4),
        torch.ones(82),
        torch.cat([torch.full((81, 1, 3), 1.7), torch.full((1, 1, 3), -1.8)]),
    )
    c2w = torch.eye(4).repeat(2, 1, 1)
    c2w[:, 0, 3] = torch.tensor([-1.0, 1.0])
    K = torch.tensor([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]]).expand(2, 3, 3)
    between = replace(CAMERAS, c2w=torch.eye(4)[None], K=K[:1])
    for closed, darkest in ((False, (0, 60)), (True, (150, 255))):
        path = CameraPath(between, closed=closed)
        ilrm.render_video(wall, ilrm.Cameras(c2w, K, 64, 48), tmp_path / f"{closed}.mp4", path=path)
        assert darkest[0] <= read(tmp_path / f"{closed}.mp4")[0].min() <= darkest[1]
