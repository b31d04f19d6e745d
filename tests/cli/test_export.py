"""``ilrm export``: formats, filters, frames, COLMAP projects; clear messages for mistakes, nothing half-written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from ilrm.cli import main
from ilrm.core.gaussians import Gaussians
from ilrm.pipeline.exporting import ExportOptions, export_file
from ilrm.scenes import load_scene
from ilrm.splats import load_gaussians, save_ply
from ilrm.splats.cameras import load_cameras
from tests.cli.conftest import tree
from tests.conftest import make_gaussians
from tests.splats.compare import differences
from tests.view.test_page import embedded


@pytest.fixture
def splats(tmp_path: Path) -> Path:
    save_ply(make_gaussians(60, 1), tmp_path / "in" / "scene.ply")
    return tmp_path / "in" / "scene.ply"


def exported(splats: Path, *options: str, name: str = "out.ply") -> Gaussians:
    output = splats.parents[1] / name
    assert main(["export", str(splats), "-o", str(output), "--overwrite", *options]) == 0
    return load_gaussians(output)


def test_several_formats_at_once(splats: Path, tmp_path: Path, capsys) -> None:
    names = ["a.spz", "b.glb", "c.splat", "d.compressed.ply", "e.ply"]
    outputs = [word for name in names for word in ("-o", str(tmp_path / name))]
    assert main(["export", str(splats), *outputs, "--json"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert (report["num_gaussians_before"], report["num_gaussians"], report["sh_degree"]) == (60, 60, 1)
    assert [(Path(o["path"]).name, o["bytes"]) for o in report["outputs"]] == [
        (name, (tmp_path / name).stat().st_size) for name in names
    ]
    assert "c.splat has no view-dependent colour" in captured.err
    assert all(len(load_gaussians(tmp_path / name)) == 60 for name in names)


def test_python_writes_what_the_command_writes(splats: Path, tmp_path: Path) -> None:
    names = ["a.spz", "b.glb", "c.ply", "d.html"]
    command, python = ([tmp_path / folder / name for name in names] for folder in ("command", "python"))
    flags = ["--top", "30", "--frame", "y-up", "--scale", "2", "--sh-degree", "0"]
    assert main(["export", str(splats), *(word for path in command for word in ("-o", str(path))), *flags]) == 0
    report = export_file(splats, python, ExportOptions(top=30, frame="y-up", scale=2.0, sh_degree=0))
    assert [entry["path"] for entry in report["outputs"]] == [str(path) for path in python]
    for theirs, ours in zip(command, python, strict=True):
        assert ours.read_bytes() == theirs.read_bytes(), ours.name


def test_people_see_counts_and_sizes(splats: Path, tmp_path: Path, capsys) -> None:
    assert main(["export", str(splats), "-o", str(tmp_path / "a.spz"), "--top", "7"]) == 0
    out = capsys.readouterr().out
    assert "7 of 60" in out
    assert "a.spz" in out
    assert "MB" in out


def test_filters(splats: Path) -> None:
    g = make_gaussians(60, 1)
    assert (exported(splats, "--min-opacity", "0.5").opacities >= 0.5).all()
    box = exported(splats, "--crop", "-1", "-1", "-1", "1", "1", "1")
    assert len(box) == (g.means.abs() <= 1).all(dim=1).sum()
    assert exported(splats, "--max-scale", "0.1").scales.max() <= 0.1 + 1e-6
    assert exported(splats, "--sh-degree", "0").sh_degree == 0
    both = exported(splats, "--min-opacity", "0.3", "--top", "5")
    assert len(both) == 5
    assert (both.opacities >= 0.3).all()


@pytest.mark.parametrize("extension", [".ply", ".glb"])
@pytest.mark.parametrize("frame", ["world", "opengl"])
def test_frames_are_about_the_numbers_in_the_file(splats: Path, frame: str, extension: str) -> None:
    """ "opengl" gives y up whatever the format's own axes are; "world" leaves them to the format."""
    back = exported(splats, "--frame", frame, name=f"out{extension}")
    x, y, z = make_gaussians(60, 1).means.unbind(1)
    in_file = {".ply": back.means, ".glb": back.means * torch.tensor([-1.0, -1, 1])}[extension]
    wanted = {
        ("world", ".ply"): (x, y, z),
        ("opengl", ".ply"): (x, -y, -z),
        ("world", ".glb"): (-x, -y, z),
        ("opengl", ".glb"): (x, -y, -z),
    }[frame, extension]
    torch.testing.assert_close(in_file, torch.stack(wanted, dim=1), atol=1e-5, rtol=0)


def test_upright_by_the_cameras_of_a_result(result: Path, tmp_path: Path) -> None:
    assert main(["export", str(result), "-o", str(tmp_path / "a.ply"), "--frame", "z-up", "--scale", "2"]) == 0
    before, after = load_gaussians(result / "scene.ply"), load_gaussians(tmp_path / "a.ply")
    torch.testing.assert_close(after.scales, 2 * before.scales, rtol=1e-4, atol=1e-7)
    up = -load_cameras(result / "cameras.json")[0].c2w[:, :3, 1].mean(0).float()
    heights = 2 * before.means @ torch.nn.functional.normalize(up, dim=0)
    torch.testing.assert_close(after.means[:, 2], heights, rtol=1e-4, atol=1e-4 * heights.abs().max().item())


def test_colmap_project_of_a_result(result: Path, scene_folder: Path, tmp_path: Path, capsys) -> None:
    project = tmp_path / "project"
    options = ["--format", "colmap", "--photos", str(scene_folder), "--json"]
    assert main(["export", str(result), "-o", str(project), *options, "--min-opacity", "0.01"]) == 0
    report = json.loads(capsys.readouterr().out)
    scene, back = load_scene(scene_folder), load_scene(project)
    assert report["outputs"][0]["num_images"] == len(back) == len(scene)
    torch.testing.assert_close(back.cameras.c2w, scene.cameras.c2w, atol=1e-5, rtol=0)
    torch.testing.assert_close(back.cameras.K, scene.cameras.K, atol=1e-5, rtol=0)
    assert back.points is not None
    assert len(back.points) == report["num_gaussians"]
    assert torch.equal(back.images[:], scene.images[:])


def test_colmap_project_in_another_frame(result: Path, scene_folder: Path, tmp_path: Path) -> None:
    """Cameras and points move together: the points lie where they were, seen from a camera."""
    options = ["--format", "colmap", "--photos", str(scene_folder)]
    assert main(["export", str(result), "-o", str(tmp_path / "a"), *options]) == 0
    assert main(["export", str(result), "-o", str(tmp_path / "b"), *options, "--frame", "y-up", "--scale", "3"]) == 0
    seen = []
    for name in ("a", "b"):
        scene = load_scene(tmp_path / name)
        assert scene.points is not None
        camera = torch.linalg.inv(scene.cameras.c2w[0])
        seen.append(scene.points @ camera[:3, :3].T + camera[:3, 3])
    distance = torch.cdist(3 * seen[0], seen[1]).min(dim=1).values
    assert distance.max() < 1e-4 * seen[1].norm(dim=1).max()


def test_the_page_of_a_result(result: Path, tmp_path: Path) -> None:
    """The same as `ilrm view --html` writes, byte for byte except for what differs between any two writes."""
    page = tmp_path / "page.html"
    assert main(["export", str(result), "-o", str(page), "-o", str(tmp_path / "a.ply")]) == 0
    assert main(["view", str(result), "--html", str(tmp_path / "view.html")]) == 0
    ours, other = parts(page), parts(tmp_path / "view.html")
    assert ours == other
    assert f"<title>{result.name}</title>" in ours[0]
    assert "held-out PSNR" in ours[0]
    assert ours[0].count('<img alt="camera') == len(load_cameras(result / "cameras.json")[1])
    assert load_gaussians(tmp_path / "a.ply").means.shape == load_gaussians(result / "scene.ply").means.shape


def test_the_page_is_filtered_and_turned(result: Path, tmp_path: Path) -> None:
    """Cameras move along with the splats."""
    names = ("plain.html", "turned.html")
    assert main(["export", str(result), "-o", str(tmp_path / names[0]), "--top", "9"]) == 0
    options = ["--top", "9", "--frame", "z-up", "--scale", "2"]
    assert main(["export", str(result), "-o", str(tmp_path / names[1]), *options]) == 0
    plain, turned = (parts(tmp_path / name) for name in names)
    assert "<td>Gaussians</td><td>9</td>" in plain[0]
    before, after = (
        torch.tensor([m["position"] for m in page[1] if m["name"] != "/splats"]) for page in (plain, turned)
    )
    assert len(before) == len(load_cameras(result / "cameras.json")[1])
    torch.testing.assert_close(torch.cdist(after, after), 2 * torch.cdist(before, before), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(after, 2 * before, atol=1e-2)
    splats = [next(m for m in page[1] if m["name"] == "/splats")["position"] for page in (plain, turned)]
    first = [torch.dist(torch.tensor(splats[0]), before[0]), torch.dist(torch.tensor(splats[1]), after[0])]
    # The middle of the splats, a median along each axis, depends a little on the axes.
    assert 0.5 < first[1] / (2 * first[0]) < 2


def parts(page: Path) -> tuple[str, list[dict]]:
    """The text of a page without the scene, and the positions of the scene's nodes."""
    text = page.read_text()
    scene = [m for m in embedded(text)[0] if m["type"] == "SetPositionMessage" and m["name"]]
    return re.sub(r'__VISER_EMBED_DATA__="[^"]*"', "", text), scene


def test_a_page_in_the_way_stays(splats: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "page.html").write_text("mine")
    fails(["export", str(splats), "-o", str(tmp_path / "page.html")], ["exists already", "--overwrite"], capsys)
    assert (tmp_path / "page.html").read_text() == "mine"
    assert main(["export", str(splats), "-o", str(tmp_path / "page.html"), "--overwrite"]) == 0
    assert "<title>in</title>" in (tmp_path / "page.html").read_text()


def fails(arguments: list[str], words: list[str], capsys) -> None:
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    for word in words:
        assert word in captured.err, captured.err


BAD_ARGUMENTS: dict[str, tuple[list[str], list[str]]] = {
    "no output": ([], ["-o"]),
    "unknown extension": (["-o", "{out}/a.obj"], ["a.obj", ".spz"]),
    "second output unknown": (["-o", "{out}/a.ply", "-o", "{out}/b.xyz"], ["b.xyz"]),
    "a folder": (["-o", "{out}/a"], ["no extension"]),
    "read-only folder": (["-o", "/proc/a.spz"], ["Cannot write /proc/a.spz"]),
    "opacity": (["-o", "{out}/a.ply", "--min-opacity", "1.5"], ["--min-opacity 1.5", "0 to 1"]),
    "negative scale": (["-o", "{out}/a.ply", "--scale", "-1"], ["--scale -1"]),
    "NaN scale": (["-o", "{out}/a.ply", "--max-scale", "nan"], ["--max-scale nan"]),
    "top none": (["-o", "{out}/a.ply", "--top", "0"], ["--top 0"]),
    "box inside out": (["-o", "{out}/a.ply", "--crop", "1", "0", "0", "0", "1", "1"], ["--crop 1 0 0 0 1 1"]),
    "nothing left": (["-o", "{out}/a.ply", "--max-scale", "1e-9"], ["--max-scale leaves none of 60"]),
    "colmap without photos": (["-o", "{out}/a", "--format", "colmap"], ["--photos"]),
    "photos of nowhere": (["-o", "{out}/a", "--format", "colmap", "--photos", "{out}/none"], ["none"]),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments(name: str, splats: Path, tmp_path: Path, capsys) -> None:
    extra, words = BAD_ARGUMENTS[name]
    before = tree(tmp_path)
    fails(["export", str(splats), *(word.replace("{out}", str(tmp_path)) for word in extra)], words, capsys)
    assert tree(tmp_path) == before


BAD_INPUTS: dict[str, tuple[str, bytes, str]] = {
    "absent": ("a.ply", b"", "there is no such file"),
    "empty": ("a.spz", b"", "cut off"),
    "a picture": ("a.glb", b"\x89PNG\r\n\x1a\n", "not a .glb"),
    "not 32 bytes": ("a.splat", bytes(33), "33 bytes"),
    "unknown": ("a.obj", b"v 0 0 0", "no extension"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_inputs(name: str, tmp_path: Path, capsys) -> None:
    file, content, words = BAD_INPUTS[name]
    if name != "absent":
        (tmp_path / file).write_bytes(content)
    before = tree(tmp_path)
    fails(["export", str(tmp_path / file), "-o", str(tmp_path / "out.ply")], [file, words], capsys)
    assert tree(tmp_path) == before


def test_photos_of_another_scene(result: Path, scene_folder: Path, tmp_path: Path, capsys) -> None:
    from ilrm.datasets.procedural import ProceduralConfig, make_scene
    from ilrm.scenes import save_scene

    save_scene(make_scene(4, ProceduralConfig(views=6, width=64, height=48)), tmp_path / "other")
    options = ["--format", "colmap", "--photos", str(tmp_path / "other")]
    fails(["export", str(result), "-o", str(tmp_path / "a"), *options], ["other", "cameras.json"], capsys)
    assert not (tmp_path / "a").exists()


def test_there_and_back_through_every_format(splats: Path) -> None:
    """One after the other, in one world all the way."""
    last = splats
    for name in ("a.glb", "b.spz", "c.ply"):
        assert main(["export", str(last), "-o", str(splats.with_name(name))]) == 0
        last = splats.with_name(name)
    errors = differences(load_gaussians(last), make_gaussians(60, 1))
    assert errors["means"] < 1e-5
    assert errors["shape"] < 0.08
