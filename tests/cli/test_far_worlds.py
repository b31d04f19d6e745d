"""UTM and ECEF coordinates, through whole commands: the results equal those at the world's origin."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ilrm.cli import main
from ilrm.core.cameras import Similarity
from ilrm.datasets.procedural import ProceduralConfig, make_scene
from ilrm.scenes import load_scene, save_scene
from ilrm.splats import load_gaussians, save_colmap
from ilrm.splats.cameras import load_cameras
from tests.conftest import make_gaussians

UTM, ECEF = (512345.0, 5432109.0, 250.0), (4027893.0, 306901.0, -4919499.0)


@dataclass(frozen=True)
class World:
    """One world: its capture, the result of a run, and its position."""

    capture: Path
    result: Path
    offset: torch.Tensor

    @property
    def metrics(self) -> dict:
        return json.loads((self.result / "metrics.json").read_text())


def make_world(folder: Path, weights: Path, offset: tuple[float, ...], form: str, scale: float = 1.0) -> World:
    made = make_scene(3, ProceduralConfig(views=6, width=64, height=48, points=50))
    there = Similarity(scale, torch.eye(3, dtype=torch.float64), torch.tensor(offset, dtype=torch.float64))
    scene = replace(made, cameras=made.cameras.to(dtype=torch.float64), depth=None, points=made.points.double())
    scene, capture = scene.transform(there), folder / "capture"
    if form == "colmap":
        save_colmap(scene, make_gaussians(20).at(there.translation), capture)
    else:
        save_scene(scene, capture, camera_file=form)  # pyright: ignore[reportArgumentType]
    options = ["--weights", str(weights), "--views", "4", "--holdout", "3", "--refine", "6", "--device", "cpu"]
    assert main(["reconstruct", str(capture), "-o", str(folder / "out"), *options, "--export", "html"]) == 0
    return World(capture, folder / "out", there.translation)


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> World:
    return make_world(tmp_path_factory.mktemp("near"), weights, (0, 0, 0), "transforms.json")


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> World:
    return make_world(tmp_path_factory.mktemp("far"), weights, UTM, "transforms.json")


def agreement(a: Path, b: Path) -> float:
    """The least PSNR between the PNG files of one name in two folders; 50 dB is about the rounding to 8 bits."""
    names = sorted(path.name for path in a.glob("*.png"))
    assert names
    images = [[np.asarray(Image.open(folder / name)) / 255 for name in names] for folder in (a, b)]
    return min(-10 * float(np.log10(np.square(x - y).mean() + 1e-9)) for x, y in zip(*images, strict=True))


def test_near_worlds_have_no_offset(near: World) -> None:
    assert near.metrics["world_offset"] == [0, 0, 0]
    assert "world_offset" not in (near.result / "cameras.json").read_text()
    assert b"world_offset" not in (near.result / "scene.ply").read_bytes()


def test_photos_far_away_give_the_same_scene(near: World, far: World) -> None:
    for name in ("psnr", "psnr_before_refine"):
        assert far.metrics[name] == pytest.approx(near.metrics[name], abs=0.02)
    assert agreement(near.result / "renders", far.result / "renders") > 50
    offset = far.metrics["world_offset"]
    splats = load_gaussians(far.result / "scene.ply")
    assert splats.origin.tolist() == offset == json.loads((far.result / "cameras.json").read_text())["world_offset"]
    assert splats.means.abs().max() < 1e3
    cameras, names = load_cameras(far.result / "cameras.json")
    scene = load_scene(far.capture)
    of_scene = scene.cameras[[scene.names.index(name) for name in names]]
    torch.testing.assert_close(cameras.c2w, of_scene.c2w, atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    ("offset", "form", "scale"),
    [
        (UTM, "colmap", 1.0),
        (ECEF, "opencv_cameras.json", 1.0),
        (UTM, "transforms.json", 0.01),
        ((0, 0, 0), "transforms.json", 1e-4),
        ((0, 0, 0), "transforms.json", 1e4),
    ],
)
def test_every_format_and_scale(
    near: World, weights: Path, tmp_path: Path, offset: tuple[float, ...], form: str, scale: float
) -> None:
    world = make_world(tmp_path, weights, offset, form, scale)
    for name in ("psnr", "psnr_before_refine"):
        assert world.metrics[name] == pytest.approx(near.metrics[name], abs=0.05)
    assert any(world.metrics["world_offset"]) == any(offset)


def test_pictures_of_the_written_files_are_the_same(near: World, far: World, tmp_path: Path) -> None:
    for path in ("input", "orbit", "auto", "wobble"):
        for name, world in (("near", near), ("far", far)):
            command = ["render", str(world.result), "-o", str(tmp_path / path / name), "--path", path]
            command += [] if path == "input" else ["--frames", "3", "--nearest-photos", str(world.capture)]
            assert main(command) == 0
        assert agreement(tmp_path / path / "near", tmp_path / path / "far") > 50, path


def test_refinement_of_the_written_files_is_the_same(
    near: World, far: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = []
    for world in (near, far):
        out = tmp_path / f"{world.offset[0]}.ply"
        splats, photos = str(world.result / "scene.ply"), str(world.capture)
        capsys.readouterr()
        assert main(["refine", splats, photos, "-o", str(out), "--steps", "5", "--holdout", "3", "--json"]) == 0
        reports.append(json.loads(capsys.readouterr().out))
        assert load_gaussians(out).origin.tolist() == world.metrics["world_offset"] == reports[-1]["world_offset"]
    assert reports[1]["psnr"] == pytest.approx(reports[0]["psnr"], abs=0.02)


def test_meshes_and_exports_stand_in_the_world(
    near: World, far: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trimesh = pytest.importorskip("trimesh", reason="the extra 'mesh' is not installed")
    meshes = []
    for name, world in (("near", near), ("far", far)):
        assert main(["mesh", str(world.result), "-o", str(tmp_path / f"{name}.ply"), "--voxel", "0.2"]) == 0
        meshes.append(trimesh.load(tmp_path / f"{name}.ply", process=False))
    assert len(meshes[1].vertices) == pytest.approx(len(meshes[0].vertices), rel=0.1)  # the lattice starts elsewhere
    middles = [mesh.vertices.mean(axis=0) for mesh in meshes]
    np.testing.assert_allclose(middles[1] - far.offset.numpy(), middles[0], atol=0.2)
    low, high = far.offset - 1.5, far.offset + 1.5
    counts = []
    for world, corners in ((near, [-1.5] * 3 + [1.5] * 3), (far, [*low.tolist(), *high.tolist()])):
        out = tmp_path / f"{world.offset[0]}.spz"
        capsys.readouterr()
        crop = [str(x) for x in corners]
        assert main(["export", str(world.result), "-o", str(out), "--crop", *crop, "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["outputs"][0]["world_offset"] == world.metrics["world_offset"]
        counts.append(report["num_gaussians"])
    assert 0 < counts[0] < near.metrics["num_gaussians"]
    assert counts[1] == pytest.approx(counts[0], abs=2)


def test_projects_for_other_trainers_stand_in_the_world(far: World, tmp_path: Path) -> None:
    command = ["export", str(far.result), "-o", str(tmp_path / "project"), "--format", "colmap"]
    assert main([*command, "--photos", str(far.capture)]) == 0
    back = load_scene(tmp_path / "project")
    splats = load_gaussians(far.result / "scene.ply")
    assert back.points is not None
    torch.testing.assert_close(back.points.sort(0).values, splats.world_means.sort(0).values, atol=1e-6, rtol=0)
    torch.testing.assert_close(back.cameras.centers, load_scene(far.capture).cameras.centers, atol=1e-8, rtol=0)


def test_data_sets_of_them(far: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(far.capture), "--json"]) == 0
    out = capsys.readouterr().out
    assert "far away" in out
    assert "same position" not in out
    assert main(["data", "convert", str(far.capture), "-o", str(tmp_path / "set")]) == 0
    report = (tmp_path / "set/report.json").read_text()
    assert "poses are relative to" in report
    steps = load_scene(tmp_path / "set/train").cameras.centers
    truth = load_scene(far.capture).cameras.centers
    torch.testing.assert_close(steps - steps[0], truth - truth[0], atol=1e-5, rtol=0)
