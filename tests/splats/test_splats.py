"""All formats: found by extension, complete or absent, and only our own errors for broken files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ilrm.core.errors import GaussiansError, IlrmError, OutputError
from ilrm.splats import load_gaussians, save_gaussians
from ilrm.splats.cameras import save_cameras
from ilrm.splats.formats import FORMATS
from tests.conftest import make_cameras, make_gaussians

OURS = [extension for extension in FORMATS if extension != ".sog"]  # which an external program reads and writes


@pytest.mark.parametrize("extension", [*OURS, ".PLY", ".Compressed.ply", ".GLB"])
def test_the_extension_decides(tmp_path: Path, extension: str) -> None:
    gaussians = make_gaussians(40)
    path = tmp_path / f"scene.v2{extension}"
    save_gaussians(gaussians, path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    back = load_gaussians(str(path))
    assert torch.allclose(back.means.sort(dim=0).values, gaussians.means.sort(dim=0).values, atol=0.005)
    start = path.read_bytes()[:3]
    assert start[:3] == {".glb": b"glT", ".spz": b"\x1f\x8b\x08"}.get(extension.lower(), start)
    assert (b"packed_position" in path.read_bytes()) == ("compressed" in extension.lower())


@pytest.mark.parametrize("extension", OURS)
def test_far_from_the_origin_files_say_where_or_there_is_a_warning(tmp_path: Path, extension: str) -> None:
    near = make_gaussians(40)
    origin = torch.tensor([512345.5, 5432109.3, 250.0], dtype=torch.float64)
    path = tmp_path / f"scene{extension}"
    if extension.endswith(".ply"):
        save_gaussians(near.at(origin), path)
    else:
        with pytest.warns(UserWarning, match=r"relative to the point 512345\.5 5432109\.3 250\.0"):
            save_gaussians(near.at(origin), path)
        assert not load_gaussians(path).origin.any()
        save_cameras(make_cameras(2, 8, 8), ("a", "b"), tmp_path / "cameras.json", origin)
    back = load_gaussians(path)
    assert back.origin.tolist() == origin.tolist()
    save_gaussians(near, tmp_path / f"near{extension}")
    (tmp_path / "cameras.json").unlink(missing_ok=True)
    torch.testing.assert_close(back.means, load_gaussians(tmp_path / f"near{extension}").means, atol=0, rtol=0)


@pytest.mark.parametrize("content", ["[]", "{", '{"world_offset": [1, 2]}', '{"world_offset": ["a", "b", "c"]}'])
def test_a_foreign_camera_file_beside_changes_nothing(tmp_path: Path, content: str) -> None:
    save_gaussians(make_gaussians(4), tmp_path / "scene.splat")
    (tmp_path / "cameras.json").write_text(content)
    assert not load_gaussians(tmp_path / "scene.splat").origin.any()


@pytest.mark.parametrize("name", ["scene.obj", "scene", "scene.ply.gz", "splat"])
def test_unknown_extensions(tmp_path: Path, name: str) -> None:
    for call in (lambda p: save_gaussians(make_gaussians(2), p), load_gaussians):
        with pytest.raises(GaussiansError, match=r"\.spz") as caught:
            call(tmp_path / name)
        assert name in str(caught.value)


@pytest.mark.parametrize("extension", FORMATS)
def test_what_cannot_be_saved(tmp_path: Path, extension: str) -> None:
    gaussians = make_gaussians(4)
    path = tmp_path / f"a{extension}"
    with pytest.raises(GaussiansError, match="no Gaussians"):
        save_gaussians(gaussians[:0], path)
    with pytest.raises(GaussiansError, match="flatten"):
        save_gaussians(gaussians.map(lambda x: x[None]), path)
    gaussians.sh[2, 0, 1] = float("nan")
    with pytest.raises(GaussiansError, match="1 of 4"):
        save_gaussians(gaussians, path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("extension", OURS)
def test_folders_that_cannot_be_written(extension: str) -> None:
    with pytest.raises(OutputError, match="Cannot write /proc/out"):
        save_gaussians(make_gaussians(2), f"/proc/out{extension}")


@pytest.mark.parametrize("extension", OURS)
@pytest.mark.parametrize("path", ["absent", "folder"])
def test_unreadable_paths(tmp_path: Path, extension: str, path: str) -> None:
    (tmp_path / f"folder{extension}").mkdir()
    with pytest.raises(GaussiansError, match="Cannot read"):
        load_gaussians(tmp_path / f"{path}{extension}")


@pytest.mark.parametrize("extension", OURS)
def test_every_beginning_of_a_file_is_refused(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a{extension}"
    save_gaussians(make_gaussians(20, 1), path)
    content = path.read_bytes()
    for length in [*range(40), *range(40, len(content) - 1, max(len(content) // 50, 1)), len(content) - 1]:
        if extension == ".splat" and length and length % 32 == 0:
            continue  # fewer Gaussians; the format cannot show that some are missing
        path.write_bytes(content[:length])
        with pytest.raises(GaussiansError, match=r"a\."):
            load_gaussians(path)


@pytest.mark.parametrize("extension", OURS)
def test_damaged_files_never_end_in_a_traceback(tmp_path: Path, extension: str) -> None:
    """They load if the damage hit a number, or are refused with our own error."""
    path = tmp_path / f"a{extension}"
    save_gaussians(make_gaussians(20, 1), path)
    content = np.frombuffer(path.read_bytes(), np.uint8)
    draw = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        damaged = content.copy()
        # Half of the damage in the first bytes, where the headers are.
        reach = len(content) if draw.random() < 0.5 else min(len(content), 400)
        damaged[draw.integers(0, reach, 3)] = draw.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes())
        try:
            assert load_gaussians(path).finite().all()
        except IlrmError:
            refused += 1
    assert refused < 60
    assert refused > 0 or extension == ".splat"  # which has no header: only rows can be damaged
