"""The page in Chromium: it draws what we render, logs nothing, and its controls work.

Neither it nor the live viewer runs or fetches what strangers have put into a result.
"""

from __future__ import annotations

import json
import math
import re
import socket
import struct
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import viser

from ilrm.core.cameras import Cameras
from ilrm.core.gaussians import Gaussians
from ilrm.core.spherical_harmonics import C0
from ilrm.results import Result, load_result
from ilrm.splats import save_ply
from ilrm.splats.cameras import save_cameras
from ilrm.view import save_page
from ilrm.view.controls import add_controls
from ilrm.view.live import Viewer
from ilrm.view.server import serve
from ilrm.view.splats import arrange
from tests.conftest import PATIENCE_S, look_at, make_cameras, make_gaussians, wait_until
from tests.view.watched import HEIGHT, LEAST_PSNR, WIDTH, Watched, rendered

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Software WebGL takes minutes on a busy machine.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_the_page_draws_the_scene_offline(capture: Result, watched: Watched, tmp_path: Path) -> None:
    path = tmp_path / "a page.html"
    save_page(capture.gaussians, path, capture.cameras, capture.photos, capture.title, capture.numbers)
    layout = arrange(capture.gaussians, capture.cameras)
    page = watched.page
    page.context.set_offline(True)
    page.goto(path.as_uri())
    assert page.title() == capture.title
    assert capture.numbers["held-out PSNR"] in page.inner_text("#ilrm-card")
    assert watched.psnr(rendered(capture, layout, layout.poses[0])) >= LEAST_PSNR
    assert hidden_by_key(watched) < 0.01, "the frustums cover the first view"
    page.click("#ilrm-strip a:nth-child(3)")  # a control of the page: another input camera
    page.wait_for_url(re.compile("initialCameraPosition"))
    assert watched.psnr(rendered(capture, layout, layout.poses[2])) >= LEAST_PSNR
    assert watched.complaints() == []
    assert [url for url in watched.requests if not url.startswith(("file:", "blob:", "data:"))] == []


def test_notices_stand_aside(watched: Watched, tmp_path: Path) -> None:
    """viser reports a missing GPU in a small window over our controls; it must not take their clicks."""
    save_page(make_gaussians(50), tmp_path / "page.html", make_cameras(3, 64, 48))
    page = watched.page
    page.clock.install()
    page.goto((tmp_path / "page.html").as_uri())
    close = page.locator(".mantine-Notifications-root button")
    close.wait_for()
    assert page.evaluate(
        """() => {
        const box = document.querySelector(".mantine-Notification-root").getBoundingClientRect();
        const hit = document.elementFromPoint(box.x + 20, box.y + box.height / 2);
        return hit.closest(".mantine-Notifications-root") === null;
    }"""
    )
    close.click(trial=True)  # it can still be closed by hand
    page.mouse.move(0, 0)  # it stays as long as the mouse is there
    page.clock.fast_forward(30_000)
    close.wait_for(state="detached")  # and closes by itself


@pytest.mark.parametrize("nearest_first", [False, True])
def test_the_page_draws_far_before_near(nearest_first: bool, watched: Watched, tmp_path: Path) -> None:
    """viser's sorter must run in a page opened from a file: one of the two stored orders is wrong."""
    red, blue = (torch.tensor([[[0.5 / C0 if i == channel else -0.5 / C0 for i in range(3)]]]) for channel in (0, 2))
    turn = math.pi / 12  # viser does not draw what is aligned with the picture's axes exactly
    parts = [
        Gaussians(
            means=torch.tensor([[0.0, 0, depth]]),
            scales=torch.tensor([[0.4, 0.3, 0.2]]),
            quats=torch.tensor([[math.cos(turn), 0, 0, math.sin(turn)]]),
            opacities=torch.tensor([0.99]),
            sh=sh,
        )
        for depth, sh in ((3.0, red), (4.0, blue))
    ]
    camera = Cameras(torch.eye(4)[None], torch.tensor([[[200.0, 0, 160], [0, 200, 120], [0, 0, 1]]]), WIDTH, HEIGHT)
    save_page(Gaussians.cat(parts if nearest_first else parts[::-1]), tmp_path / "page.html", camera)
    watched.page.goto((tmp_path / "page.html").as_uri())
    deadline = time.monotonic() + PATIENCE_S
    while (pixel := watched.picture()[HEIGHT // 2 - 8, WIDTH // 2 + 8]).min() > 0.9:  # still empty
        assert time.monotonic() < deadline
    while not (pixel[0] > 0.8 > 0.2 > pixel[2]):
        assert time.monotonic() < deadline, f"the far one is in front: {pixel}"
        pixel = watched.picture()[HEIGHT // 2 - 8, WIDTH // 2 + 8]


def ring(views: int) -> Cameras:
    """Around the origin, looking at it: half of them in the view of each."""
    angles = 2 * math.pi * torch.arange(views) / views
    centres = 4 * torch.stack([angles.sin(), torch.full((views,), -0.2), -angles.cos()], dim=1)
    return Cameras(torch.stack([look_at(centre, torch.zeros(3)) for centre in centres]), lens(views), WIDTH, HEIGHT)


def walk(views: int) -> Cameras:
    """One behind the other, looking the way they go: all others lie in the view of the first."""
    c2w = torch.eye(4).repeat(views, 1, 1)
    c2w[:, :3, 3] = torch.arange(views)[:, None] * torch.tensor([0.02, 0.01, 0.1]) - torch.tensor([0, 0, 6.0])
    return Cameras(c2w, lens(views), WIDTH, HEIGHT)


def lens(views: int) -> torch.Tensor:
    return torch.tensor([[300.0, 0, WIDTH / 2], [0, 300, HEIGHT / 2], [0, 0, 1]]).repeat(views, 1, 1)


@pytest.mark.parametrize(
    "cameras",
    [
        pytest.param(ring(9), id="ring", marks=pytest.mark.full),
        pytest.param(ring(60), id="dense ring"),
        pytest.param(walk(40), id="walk"),
    ],
)
def test_frustums_cover_nothing_and_a_key_hides_them(cameras: Cameras, watched: Watched, tmp_path: Path) -> None:
    photos = [np.zeros((HEIGHT, WIDTH, 3), np.uint8)] * len(cameras)
    small = make_gaussians(50)  # in the middle of the picture, so that nothing hides the frustums
    save_page(replace(small, means=0.1 * small.means), tmp_path / "page.html", cameras, photos)
    page = watched.page
    page.goto((tmp_path / "page.html").as_uri())
    assert 0 < hidden_by_key(watched) < 0.01
    page.keyboard.press("c")
    page.get_by_role("button", name="Hide the cameras").wait_for()
    page.goto((tmp_path / "page.html").as_uri() + (page.get_attribute("#ilrm-strip a:nth-child(4)", "href") or ""))
    assert hidden_by_key(watched) < 0.01
    assert watched.complaints() == []


def hidden_by_key(watched: Watched) -> float:
    """The share of the picture's pixels that the key for the frustums changes."""
    page = watched.page
    page.wait_for_function("window.ilrmClient?.nodeRefFromName['/cameras/000']")
    before = watched.at_rest()
    page.keyboard.press("c")
    page.get_by_role("button", name="Show the cameras").wait_for()
    return float((np.abs(watched.at_rest() - before).max(axis=-1) > 0.03).mean())


HOSTILE = (
    "<img src='http://{host}/i' onerror='window.RAN=1'><script>window.RAN=1</script>![](http://{host}/m) {{1}} **b**"
)
FRAME = '<iframe srcdoc="<script>parent.RAN=1</script>"></iframe>'


def hostile_result(folder: Path, host: str) -> Path:
    """An untrusted folder: markup in every text, and a mesh with a picture from elsewhere."""
    markup = HOSTILE.format(host=host)
    (out := folder / FRAME.replace("/", "\u2215")).mkdir()
    save_ply(make_gaussians(50), out / "scene.ply")
    save_cameras(make_cameras(3, 64, 48), [markup, FRAME, FRAME], out / "cameras.json")
    metrics = {"psnr": markup, "ssim": FRAME, "weights": markup, "refine_steps_done": FRAME, "num_gaussians": markup}
    (out / "metrics.json").write_text(json.dumps(metrics))
    triangle = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32).tobytes()
    gltf = {
        "asset": {"version": "2.0"},
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "material": 0}]}],
        "materials": [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}],
        "textures": [{"source": 0}],
        "images": [{"uri": f"http://{host}/texture.png"}],
        "buffers": [{"byteLength": len(triangle)}],
        "bufferViews": [{"buffer": 0, "byteLength": len(triangle)}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3", "min": [0, 0, 0], "max": [1, 1, 0]}
        ],
    }
    text = json.dumps(gltf).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(triangle), b"BIN\0") + triangle
    (out / "mesh.glb").write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)
    return out


def test_a_result_of_a_stranger_runs_and_fetches_nothing(watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    page.set_viewport_size({"width": 600, "height": 700})
    with socket.socket() as stranger, serve() as server:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        stranger.setblocking(False)
        result = load_result(hostile_result(tmp_path, f"127.0.0.1:{stranger.getsockname()[1]}"))
        viewer = Viewer(server, result)
        add_controls(viewer)
        address = f"http://127.0.0.1:{server.get_port()}"
        page.goto(address)
        page.get_by_text("Numbers").click()
        page.locator("input:disabled").last.wait_for()
        assert page.locator("input:disabled").last.input_value() == result.numbers["weights"]
        viewer.notify(None, result.title, HOSTILE, color="blue")
        page.locator(".mantine-Notification-root").get_by_text("window.RAN=1").wait_for()
        wait_until(lambda: any("texture.png" in text for text in watched.said))  # the mesh has been tried
        save_page(result.gaussians, tmp_path / "page.html", result.cameras, None, result.title, result.numbers)
        viewer.close()
        assert page.evaluate("window.RAN") is None
        assert [frame.url for frame in page.frames] == [f"{address}/"]
        page.goto((tmp_path / "page.html").as_uri())
        page.get_by_text(result.numbers["weights"]).wait_for()
        assert page.evaluate("window.RAN") is None
        with pytest.raises(BlockingIOError):
            stranger.accept()
    held = ("psnr", "held-out PSNR", "held-out SSIM", "refinement steps")
    assert not set(held) & set(result.numbers)


def test_another_page_sees_nothing(browser: Browser, viewer: Viewer, tmp_path: Path) -> None:
    """A page of another origin, in the same browser, may neither open the websocket nor frame the viewer."""
    port = viewer.server.get_port()
    (tmp_path / "page.html").write_text(f"<iframe src='http://127.0.0.1:{port}/'></iframe>")
    context = browser.new_context()
    page = context.new_page()
    with page.expect_console_message(lambda message: "frame-ancestors" in message.text):
        page.goto((tmp_path / "page.html").as_uri())
    opened = page.evaluate(
        """([port, version]) => new Promise((resolve) => {
            const line = new WebSocket(`ws://127.0.0.1:${port}/`, [version]);
            line.onmessage = () => resolve(true);
            line.onerror = () => resolve(false);
        })""",
        [port, f"viser-v{viser.__version__}"],
    )
    assert not opened
    assert not viewer.server.get_clients()
    context.close()
