"""The page and the live viewer in Chromium: they draw what we render, log nothing, and their controls work."""

from __future__ import annotations

import io
import json
import math
import re
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest
import torch
import viser
from PIL import Image

from ilrm.core.cameras import Cameras
from ilrm.core.gaussians import Gaussians, quaternion_to_matrix
from ilrm.core.spherical_harmonics import C0
from ilrm.render import render
from ilrm.results import Result, load_result
from ilrm.splats import load_ply, save_ply
from ilrm.splats.cameras import save_cameras
from ilrm.view import controls, save_page
from ilrm.view.controls import FRAMES_PER_SECOND, add_controls
from ilrm.view.live import Viewer, pose_of
from ilrm.view.server import serve
from ilrm.view.splats import Pose, ViewLayout, arrange
from tests.conftest import PATIENCE_S, look_at, make_cameras, make_gaussians, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Locator, Page

# Software WebGL takes minutes on a busy machine.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

WIDTH, HEIGHT = 320, 240
LEAST_PSNR = 20.0
# Messages of viser 1.1.1 itself; no others are allowed.
TOLERATED = (
    "THREE.Clock: This module has been deprecated",
    # Chromium, where there is no GPU.
    "GPU stall due to ReadPixels",
    "Automatic fallback to software WebGL",
)
# Our and viser's panels and notices cover the picture.
BARE = "#ilrm-card, [class*=Notifications], [class*=Paper-root], [class*=dock] { visibility: hidden !important }"


class Watched:
    """A browser page with its console messages and requests."""

    def __init__(self, context: BrowserContext) -> None:
        self.page: Page = context.new_page()
        self.page.set_default_timeout(1000 * PATIENCE_S)
        self.said: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._listen)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def _listen(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.said.append(f"{message.text} {message.location['url']}")

    def complaints(self) -> list[str]:
        return [text for text in self.said if not any(known in text for known in TOLERATED)]

    def picture(self) -> np.ndarray:
        """(H, W, 3) in [0, 1], without panels."""
        style = self.page.add_style_tag(content=BARE)
        shot = self.page.screenshot()
        style.evaluate("element => element.remove()")
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")) / 255.0

    def at_rest(self) -> np.ndarray:
        """The picture once it shows something and no longer changes."""
        deadline, last, same = time.monotonic() + PATIENCE_S, self.picture(), 0
        while same < 3:
            assert time.monotonic() < deadline, "it never came to rest"
            drawn(self.page)
            now = self.picture()
            same = same + 1 if np.array_equal(now, last) and now.min() < 0.9 else 0
            last = now
        return last

    def psnr(self, expected: np.ndarray) -> float:
        """Of the picture once it no longer changes: the best value until the time is over."""
        deadline, best = time.monotonic() + PATIENCE_S, 0.0
        while best < LEAST_PSNR and time.monotonic() < deadline:
            best = max(best, -10 * np.log10(np.square(self.picture() - expected).mean()))
        return best


@pytest.fixture
def watched(browser: Browser) -> Iterator[Watched]:
    context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, accept_downloads=True)
    yield Watched(context)
    context.close()


def rendered(result: Result, layout: ViewLayout, pose: Pose) -> np.ndarray:
    seen = render(result.gaussians, pose.camera(WIDTH, HEIGHT), near=layout.near)
    return seen.rgb[0].clamp(0, 1).numpy()


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
    page.click("#ilrm-strip a:nth-child(3)")  # a control of the page: another input camera
    page.wait_for_url(re.compile("initialCameraPosition"))
    assert watched.psnr(rendered(capture, layout, layout.poses[2])) >= LEAST_PSNR
    assert watched.complaints() == []
    assert [url for url in watched.requests if not url.startswith(("file:", "blob:", "data:"))] == []


def test_notices_stand_aside(watched: Watched, tmp_path: Path) -> None:
    """viser reports a missing GPU in a small window over our controls; it must not take their clicks."""
    save_page(make_gaussians(50), tmp_path / "page.html", make_cameras(3, 64, 48))
    page = watched.page
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


@pytest.mark.parametrize("cameras", [ring(9), ring(60), walk(40)], ids=["ring", "dense ring", "walk"])
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


def test_frustums_do_not_cover_the_capture(capture: Result, watched: Watched, tmp_path: Path) -> None:
    save_page(capture.gaussians, tmp_path / "page.html", capture.cameras, capture.photos)
    watched.page.goto((tmp_path / "page.html").as_uri())
    assert hidden_by_key(watched) < 0.01


def hidden_by_key(watched: Watched) -> float:
    """The share of the picture's pixels that the key for the frustums changes."""
    page = watched.page
    page.wait_for_function("window.ilrmClient?.nodeRefFromName['/cameras/000']")
    before = watched.at_rest()
    page.keyboard.press("c")
    page.get_by_role("button", name="Show the cameras").wait_for()
    return float((np.abs(watched.at_rest() - before).max(axis=-1) > 0.03).mean())


@pytest.fixture
def viewer(capture: Result) -> Iterator[Viewer]:
    with serve() as server:
        viewer = Viewer(server, capture)
        add_controls(viewer)
        yield viewer
        viewer.close()


def test_the_live_viewer_draws_and_obeys(capture: Result, viewer: Viewer, watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    page.goto(f"http://127.0.0.1:{viewer.server.get_port()}")
    wait_until(viewer.server.get_clients)
    (client,) = viewer.server.get_clients().values()
    first, second = viewer.layout.poses[:2]
    # It starts in the first input camera.
    wait_until(lambda: np.allclose(client.camera.position, first.position, atol=1e-3))
    assert torch.allclose(pose_of(client.camera).c2w, first.c2w, atol=1e-3)
    assert watched.psnr(rendered(capture, viewer.layout, pose_of(client.camera))) >= LEAST_PSNR

    # A key hides the frustums and shows them again, like their control.
    page.get_by_role("button", name="Save video").wait_for(state="attached")
    drawn(page)
    for wanted in (False, True):
        page.keyboard.press("c")
        wait_until(lambda wanted=wanted: viewer.all_frustums is not None and viewer.all_frustums.visible == wanted)

    # Thresholds, set by keyboard in the panel, and the count that follows.
    page.set_viewport_size({"width": 800, "height": 600})
    thumb = page.locator("[role=slider]").first
    thumb.focus()
    thumb.press("End")
    steps = round(100 * capture.gaussians.opacities.median().item())
    for _ in range(100):  # repeatedly: of several key presses before the next redraw only one counts
        if hundredths(thumb) != steps:
            thumb.press("ArrowRight" if hundredths(thumb) < steps else "ArrowLeft")
    assert hundredths(thumb) == steps
    expected = int((capture.gaussians.opacities >= steps / 100).sum())
    page.get_by_text(f"{expected:,} of {len(capture.gaussians):,} Gaussians").wait_for()
    assert 0 < expected < len(capture.gaussians)
    wait_until(lambda: len(viewer._splats.buffer) == expected)

    # What is left arrives as a download.
    with page.expect_download() as download:
        page.get_by_role("button", name="Save PLY").click()
    download.value.save_as(tmp_path / "edited.ply")
    assert len(load_ply(tmp_path / "edited.ply")) == expected

    # A click on a frustum, seen from further back, flies there.
    c2w = first.c2w.clone()
    c2w[:3, 3] -= 2 * viewer.layout.scale * c2w[:3, 2]
    viewer.fly_along(client, [Pose(c2w, first.fov, first.distance)], 0)
    wait_until(lambda: np.allclose(client.camera.position, c2w[:3, 3], atol=1e-3))
    drawn(page)
    page.mouse.click(*on_screen(page, client.camera, plate(viewer.frustums[1])))
    wait_until(lambda: np.allclose(client.camera.position, second.position, atol=1e-3))
    assert torch.allclose(pose_of(client.camera).c2w, second.c2w, atol=1e-2)
    assert watched.complaints() == []


def hundredths(slider: Locator) -> int:
    return round(100 * float(slider.get_attribute("aria-valuenow") or "nan"))


def test_the_live_viewer_records_and_crops(
    capture: Result, viewer: Viewer, watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controls, "VIDEO_SIDE", 240)  # 640 shows no more, and each of 30 frames is rendered
    page = watched.page
    page.set_viewport_size({"width": 700, "height": 400})
    page.goto(f"http://127.0.0.1:{viewer.server.get_port()}")
    wait_until(viewer.server.get_clients)
    (client,) = viewer.server.get_clients().values()
    first = viewer.layout.poses[0]
    wait_until(lambda: np.allclose(client.camera.position, first.position, atol=1e-3))
    viewer.show_frustums(False)

    # What Screenshot saves is the picture without the panel.
    def screenshot() -> np.ndarray:
        with page.expect_download() as download:
            page.get_by_role("button", name="Screenshot").click()
        download.value.save_as(tmp_path / "view.png")
        return np.asarray(Image.open(tmp_path / "view.png").convert("RGB")) / 255.0

    deadline, best = time.monotonic() + PATIENCE_S, 0.0
    while best < LEAST_PSNR and time.monotonic() < deadline:
        shot = screenshot()
        camera = pose_of(client.camera).camera(shot.shape[1], shot.shape[0])
        seen = render(capture.gaussians, camera, near=viewer.layout.near).rgb[0].clamp(0, 1).numpy()
        best = max(best, -10 * np.log10(np.square(shot - seen).mean()))
    assert best >= LEAST_PSNR

    # Two keyframes become a video of as many seconds as the slider says.
    page.get_by_role("button", name="Add keyframe").click()
    page.get_by_text("1 keyframes").wait_for()
    viewer.fly_along(client, [viewer.layout.poses[1]], 0)
    wait_until(lambda: np.allclose(client.camera.position, viewer.layout.poses[1].position, atol=1e-3))
    page.get_by_role("button", name="Add keyframe").click()
    page.get_by_text("2 keyframes").wait_for()
    page.locator("[role=slider]").last.press("Home")  # one second
    with page.expect_download() as download:
        page.get_by_role("button", name="Save video").click()
    download.value.save_as(tmp_path / "flight.mp4")
    with av.open(tmp_path / "flight.mp4") as video:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])
    assert len(frames) == FRAMES_PER_SECOND
    expected = viewer.picture(first.camera(frames.shape[2], frames.shape[1])) / 255.0
    assert -10 * np.log10(np.square(frames[0] / 255.0 - expected).mean()) >= LEAST_PSNR

    # The crop box, and an arrow of its handles pulled by the mouse.
    page.get_by_text("Crop box").click()
    wait_until(lambda: viewer.session.edit.box is not None)
    box = viewer.session.edit.box
    assert box is not None
    left = int(viewer.session.keep().sum())
    assert left < len(capture.gaussians)
    page.get_by_text(f"{left:,} of").wait_for()
    reach = float(box.size.min()) / 3
    arrow = (box.centre + 0.8 * reach * box.rotation[:, 0]).numpy()
    further = (box.centre + 1.8 * reach * box.rotation[:, 0]).numpy()
    drawn(page)
    page.mouse.move(*on_screen(page, client.camera, arrow))
    drawn(page)
    page.mouse.down()
    for share in (0.5, 1.0):
        page.mouse.move(*on_screen(page, client.camera, arrow + share * (further - arrow)))
        drawn(page)
    page.mouse.up()
    wait_until(lambda: viewer.session.edit.box is not box)
    moved = viewer.session.edit.box
    assert moved is not None
    along, *across = ((moved.centre - box.centre) @ box.rotation / reach).tolist()
    assert 0.7 < along < 1.3
    assert max(map(abs, across)) < 1e-6
    assert watched.complaints() == []


def drawn(page: Page) -> None:
    """Wait until a requested change is on the screen: two frames."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def plate(frustum: Any) -> np.ndarray:
    """The middle of the photo on a frustum, which viser scales to a fixed volume."""
    half = math.tan(frustum.fov / 2)
    depth = frustum.scale / (half * half * frustum.aspect / 3) ** (1 / 3)
    forward = quaternion_to_matrix(torch.tensor(np.array(frustum.wxyz)))[:, 2].numpy()
    return np.array(frustum.position) + depth * forward


def on_screen(page: Page, camera: Any, point: np.ndarray) -> tuple[float, float]:
    """Where a point of the world is seen, in pixels of the page."""
    box = page.locator("canvas").last.bounding_box()
    assert box is not None
    pose = pose_of(camera)
    window = pose.camera(round(box["width"]), round(box["height"]))
    local = window.w2c[0].numpy() @ np.append(point, 1)
    x, y, z = window.K[0].numpy() @ local[:3]
    return box["x"] + x / z, box["y"] + y / z


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
