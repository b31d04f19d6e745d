"""The standalone page: its content, its size, and what it refuses. ``test_browser`` opens it in a browser."""

from __future__ import annotations

import base64
import re
import struct
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
import zstandard

from ilrm.core.cameras import Similarity
from ilrm.core.errors import GaussiansError, OutputError
from ilrm.splats import save_ply
from ilrm.view import save_page
from ilrm.view.splats import degree_zero_colours
from tests.conftest import make_cameras, make_gaussians


def embedded(page: str) -> tuple[list[dict], list[bytes]]:
    """The messages of the scene in a page and their arrays, decoded from viser's description of its format."""
    found = re.search(r'__VISER_EMBED_DATA__="([^"]+)"', page)
    assert found
    packed = base64.b64decode(found[1])
    inner = zstandard.ZstdDecompressor().decompress(packed[8:], max_output_size=struct.unpack("<Q", packed[:8])[0])
    length = struct.unpack("<Q", inner[:8])[0]
    content, place, arrays = msgspec.msgpack.decode(inner[8 : 8 + length]), 8 + length, []
    for size in content["binaryBufferLengths"]:
        place += -place % 8
        arrays.append(inner[place : place + size])
        place += size
    return [message for _, message in content["messages"]], arrays


def test_the_page_holds_the_scene(tmp_path: Path) -> None:
    g, cameras = make_gaussians(700, scale=0.02), make_cameras(3, 64, 48)
    photos = [np.full((48, 64, 3), 40 * i, np.uint8) for i in range(3)]
    save_page(g, tmp_path / "page.html", cameras, photos, title="A & B <i>", numbers={"PSNR <dB>": 31.5})
    page = (tmp_path / "page.html").read_text()
    assert "<title>A &amp; B &lt;i&gt;</title>" in page
    assert "<td>PSNR &lt;dB&gt;</td><td>31.5</td>" in page
    assert page.count("data:image/jpeg;base64,") == 3
    messages, arrays = embedded(page)
    (splats,) = [m for m in messages if m["type"] == "GaussianSplatsMessage"]
    table = np.frombuffer(arrays[splats["props"]["buffer"]["__binary_index"]], np.uint32).reshape(700, 8)
    (pose,) = [m for m in messages if m["type"] == "SetPositionMessage" and m["name"] == "/splats"]
    centres = np.array(pose["position"]) + splats["props"]["scale"] * table[:, :3].copy().view(np.float32)
    assert np.abs(centres - g.means.numpy()).max() < 1e-5
    rgba = table[:, 7:8].copy().view(np.uint8)
    colours = torch.cat([degree_zero_colours(g), g.opacities[:, None]], dim=1)
    assert np.abs(rgba / 255 - colours.numpy()).max() <= 0.5 / 255 + 1e-6
    frustums = [m for m in messages if m["type"] == "CameraFrustumMessage"]
    assert [m["props"]["_image_data"] is None for m in frustums] == [False, False, False]
    (start,) = [m for m in messages if m["type"] == "SetCameraPositionMessage"]
    assert np.allclose(start["position"], cameras.centers[0])
    assert start["initial"]


def test_it_is_smaller_than_the_ply(tmp_path: Path) -> None:
    """Random numbers compress worst. viser's client is a fixed part of about 0.8 MB."""
    g = make_gaussians(40_000)
    save_ply(g, tmp_path / "scene.ply")
    save_page(g, tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 1.3 * (tmp_path / "scene.ply").stat().st_size


def test_nothing_is_fetched(tmp_path: Path) -> None:
    save_page(make_gaussians(20), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert not re.search(r'(src|href)="?https?:', page)


def test_stdout_stays_clean(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_page(make_gaussians(20), tmp_path / "page.html")
    assert capfd.readouterr().out == ""


def test_bad_input(tmp_path: Path) -> None:
    g = make_gaussians(10)
    with pytest.raises(GaussiansError, match="N above 0"):
        save_page(g[:0], tmp_path / "page.html")
    with pytest.raises(GaussiansError, match="1 thumbnails"):
        save_page(g, tmp_path / "page.html", make_cameras(2, 8, 8), [None])
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        save_page(g, tmp_path / "file" / "page.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_world_far_away_gives_the_same_page(tmp_path: Path) -> None:
    """A browser computes in single precision; the page is in the frame of the Gaussians."""
    g, cameras = make_gaussians(50, scale=0.02), make_cameras(3, 64, 48).to(dtype=torch.float64)
    origin = torch.tensor([512345.0, 5432109.0, 250.0], dtype=torch.float64)
    there = Similarity(1.0, torch.eye(3, dtype=torch.float64), origin)
    save_page(g, tmp_path / "near.html", cameras)
    save_page(g.at(origin), tmp_path / "far.html", cameras.transform(there))
    poses = []
    for name in ("near.html", "far.html"):
        messages, _ = embedded((tmp_path / name).read_text())
        poses.append([m["position"] for m in messages if "Position" in m["type"]])
    assert np.abs(np.array(poses[0]) - np.array(poses[1])).max() < 1e-6
