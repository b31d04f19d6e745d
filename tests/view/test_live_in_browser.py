"""The live viewer in Chromium: it draws what we render, logs nothing, and its controls work."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from ilrm.core.gaussians import quaternion_to_matrix
from ilrm.render import render
from ilrm.results import Result
from ilrm.splats import load_ply
from ilrm.view import controls
from ilrm.view.live import Viewer, pose_of
from ilrm.view.splats import Pose
from tests.conftest import PATIENCE_S, wait_until
from tests.view.watched import LEAST_PSNR, Watched, drawn, rendered

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

# Software WebGL takes minutes on a busy machine.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


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
    # Full size shows no more, and each frame is rendered.
    monkeypatch.setattr(controls, "VIDEO_SIDE", 240)
    monkeypatch.setattr(controls, "FRAMES_PER_SECOND", 8)
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
    assert len(frames) == 8
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
