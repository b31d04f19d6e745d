"""``ilrm mesh``: from a folder of results, from a splat file alone, and what can go wrong."""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import ilrm
from ilrm.cli import main
from ilrm.mesh import make_mesh
from ilrm.pictures.viewpoints import cameras_from_all_sides
from ilrm.splats import save_ply
from ilrm.splats.cameras import save_cameras
from tests.cli.conftest import tree
from tests.mesh.solids import cameras_on_sphere, sphere

trimesh = pytest.importorskip("trimesh", reason="the extra 'mesh' is not installed")
pytest.importorskip("skimage", reason="the extra 'mesh' is not installed")


@pytest.fixture(scope="module")
def ball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like that of ``ilrm reconstruct``, with a sphere in it."""
    folder = tmp_path_factory.mktemp("ball")
    cameras = cameras_on_sphere(12, pixels=120)
    save_ply(sphere(), folder / "scene.ply")
    save_cameras(cameras, [f"{i}.png" for i in range(12)], folder / "cameras.json")
    return folder


@pytest.mark.parametrize("suffix", ["glb", "ply", "obj"])
def test_a_folder_becomes_a_mesh(suffix: str, ball: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / f"ball.{suffix}"
    assert main(["mesh", str(ball), "-o", str(output), "--voxel", "0.08", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    mesh = trimesh.load(output, process=False, force="mesh")
    assert (len(mesh.vertices), len(mesh.faces)) == (report["vertices"], report["faces"])
    assert report["watertight"] is mesh.is_watertight is True
    assert report["extent"] == pytest.approx(mesh.extents.tolist(), rel=1e-4)
    assert (report["views"], report["voxel"], report["num_gaussians"]) == (12, 0.08, 3000)
    assert report["bytes"] == output.stat().st_size
    assert np.linalg.norm(mesh.vertices, axis=1) == pytest.approx(1.0, abs=0.04)  # the pixels are coarse
    assert [p.name for p in tmp_path.iterdir()] == [output.name]


def test_a_splat_file_alone_becomes_a_mesh(ball: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Seen from all sides, here by smaller cameras."""
    monkeypatch.setattr(make_mesh, "cameras_from_all_sides", partial(cameras_from_all_sides, size=96))
    shutil.copy(ball / "scene.ply", tmp_path / "alone.ply")
    arguments = ["mesh", str(tmp_path / "alone.ply"), "-o", str(tmp_path / "mesh.ply"), "--voxel", "0.08"]
    assert main(arguments) == 0
    told = capsys.readouterr()
    assert "watertight  yes" in " ".join(told.out.split(" "))
    assert "32 views" in told.err
    assert trimesh.load(tmp_path / "mesh.ply").is_watertight
    # Python makes the same.
    ilrm.save_surface(ilrm.mesh_gaussians(ilrm.load_result(ball).gaussians, voxel=0.08), tmp_path / "python.ply")
    assert (tmp_path / "python.ply").read_bytes() == (tmp_path / "mesh.ply").read_bytes()


def test_python_makes_the_mesh_that_the_command_makes(ball: Path, tmp_path: Path) -> None:
    result = ilrm.load_result(ball)
    command, python = tmp_path / "command.ply", tmp_path / "python.ply"
    assert main(["mesh", str(ball), "-o", str(command), "--device", "cpu"]) == 0
    ilrm.save_surface(ilrm.mesh_gaussians(result.gaussians, result.cameras), python)
    assert python.read_bytes() == command.read_bytes()


def test_given_cameras_replace_those_beside(ball: Path, tmp_path: Path, capsys) -> None:
    save_cameras(cameras_on_sphere(3, pixels=64), list("abc"), tmp_path / "cameras.json")
    output = ["-o", str(tmp_path / "m.ply"), "--voxel", "0.1", "--json"]
    assert main(["mesh", str(ball / "scene.ply"), "--cameras", str(tmp_path / "cameras.json"), *output]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["views"] == 3
    assert report["watertight"] is False


def test_a_small_textured_mesh(ball: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("xatlas", reason="the extra 'mesh' is not installed")
    pytest.importorskip("fast_simplification", reason="the extra 'mesh' is not installed")
    output = tmp_path / "m.glb"
    options = ["--voxel", "0.08", "--faces", "500", "--texture", "128", "--json"]
    assert main(["mesh", str(ball), "-o", str(output), *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["faces"] == pytest.approx(500, rel=0.05)
    mesh = trimesh.load(output, process=False, force="mesh")
    assert len(mesh.faces) == report["faces"]
    assert mesh.visual.material.baseColorTexture.size == (128, 128)


def look_away(folder: Path) -> None:
    cameras = cameras_on_sphere(2, pixels=64)
    cameras.c2w[:, :3, 3] *= -1
    save_cameras(cameras, ["a", "b"], folder / "cameras.json")


def no_gaussians(folder: Path) -> None:
    content = (folder / "scene.ply").read_bytes()
    end = content.index(b"end_header\n") + len(b"end_header\n")
    (folder / "scene.ply").write_bytes(content[:end].replace(b"vertex 3000", b"vertex 0"))


def no_scene(folder: Path) -> None:
    (folder / "scene.ply").unlink()


BAD = {
    "unknown extension": (None, ["-o", "{out}/m.stl"], ["m.stl", "'.stl'", ".glb"]),
    "texture in a PLY": (None, ["-o", "{out}/m.ply", "--texture", "256"], ["m.ply", "texture", ".glb"]),
    "cameras look away": (look_away, ["-o", "{out}/m.ply"], ["No surface was found", "cameras"]),
    "no Gaussians": (no_gaussians, ["-o", "{out}/m.ply"], ["scene.ply", "no Gaussians"]),
    "no scene": (no_scene, ["-o", "{out}/m.ply"], ["scene.ply", "ilrm reconstruct"]),
    "voxel of nothing": (None, ["-o", "{out}/m.ply", "--voxel", "0"], ["--voxel 0", "above 0"]),
    "voxel too small": (None, ["-o", "{out}/m.ply", "--voxel", "1e-3"], ["0.001", "million voxels", "raise it"]),
    "all is small": (None, ["-o", "{out}/m.ply", "--min-piece", "1.5"], ["--min-piece 1.5", "0 to 1"]),
    "no faces": (None, ["-o", "{out}/m.ply", "--faces", "0"], ["--faces 0", "4 or more"]),
    "tiny texture": (None, ["-o", "{out}/m.glb", "--texture", "1"], ["--texture 1", "64 to 8192"]),
    "folder that nobody may write": (None, ["-o", "/proc/m.ply"], ["/proc/m.ply", "Cannot write"]),
}


@pytest.mark.parametrize("name", BAD)
def test_what_goes_wrong_is_told(name: str, ball: Path, tmp_path: Path, capsys) -> None:
    spoil, options, words = BAD[name]
    folder, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(ball, folder)
    out.mkdir()
    if spoil is not None:
        spoil(folder)
    before = tree(tmp_path)
    status = main(["mesh", str(folder), *(option.replace("{out}", str(out)) for option in options)])
    captured = capsys.readouterr()
    assert status == 1, captured.err
    assert captured.out == ""
    for word in words:
        assert word in captured.err
    assert "Traceback" not in captured.err
    assert tree(tmp_path) == before


@pytest.mark.parametrize("package", ["skimage", "trimesh", "fast_simplification", "xatlas"])
def test_missing_packages_name_the_extra(package: str, ball: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "m.glb").write_bytes(b"earlier")
    options = ["--voxel", "0.2", "--faces", "100", "--texture", "64"]
    assert main(["mesh", str(ball), "-o", str(tmp_path / "m.glb"), *options]) == 1
    assert "pip install 'ilrm[mesh]'" in capsys.readouterr().err
    assert tree(tmp_path) == {"m.glb": b"earlier"}
