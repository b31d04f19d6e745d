"""The panel of the live viewer. Each function adds one folder; the controls call ``live`` and ``edit``."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ilrm.core.errors import ConfigError, IlrmError, OutputError
from ilrm.core.gaussians import quaternion_to_matrix
from ilrm.view.edit import Box, Session
from ilrm.view.flight import fly
from ilrm.view.live import PICTURES, Viewer, box_pose, pose_of
from ilrm.view.splats import Array

if TYPE_CHECKING:
    import viser
    from torch import Tensor

VIDEO_SIDE, FRAMES_PER_SECOND = 640, 30
_PICTURE_WITHIN_S = 300  # browsers without a GPU are slow


def add_controls(viewer: Viewer) -> None:
    """Build the whole panel."""
    gui, session = viewer.server.gui, viewer.session
    gui.configure_theme(show_logo=False, show_share_button=False)
    gui.set_panel_label(viewer.result.title)
    gui.main_panel.dock_right()  # so that it does not cover the scene
    count = gui.add_markdown(count_text(session))

    def changed() -> None:
        count.content = count_text(session)
        viewer.refresh()

    shown = gui.add_dropdown("Show", viewer.modes, initial_value=viewer.mode)

    @shown.on_update
    def _(_: object) -> None:
        with viewer.state_lock:
            viewer.show(shown.value)

    if len(session.names) > 1:
        state = gui.add_dropdown("State", session.names, initial_value=session.name)

        @state.on_update
        def _(_: object) -> None:
            with viewer.state_lock:
                session.choose(state.value)
                changed()

    _add_edit(viewer, changed)
    if viewer.frustums:
        _add_inputs(viewer)
    _add_record(viewer)
    if viewer.result.numbers:
        with gui.add_folder("Numbers", expand_by_default=False):
            for name, value in viewer.result.numbers.items():
                gui.add_text(name, value, disabled=True)  # not markdown, because the values may come from any file


def count_text(session: Session) -> str:
    """The number of Gaussians that remain, as markdown."""
    left, total = int(session.keep().sum()), len(session.everything)
    return f"**{left:,}** of {total:,} Gaussians"


def _with_errors_shown(
    viewer: Viewer, action: Callable[[viser.ClientHandle], None]
) -> Callable[[viser.GuiEvent[Any]], None]:
    """A callback that shows a user's error to the visitor who caused it."""

    def callback(event: viser.GuiEvent[Any]) -> None:
        if event.client is None:
            return
        try:
            action(event.client)
        except IlrmError as error:
            viewer.notify(event.client, "This did not work", str(error))

    return callback


def _add_edit(viewer: Viewer, changed: Callable[[], None]) -> None:
    gui, session = viewer.server.gui, viewer.session
    with gui.add_folder("Edit"):
        opacity = gui.add_slider("Min. opacity", 0.0, 1.0, 0.01, 0.0, hint="Hide Gaussians below this opacity")
        size = gui.add_slider("Size limit %", 50.0, 100.0, 0.1, 100.0, hint="Keep this share, the smallest ones")
        crop = gui.add_checkbox("Crop box", False, hint="Move and rotate it with the handles in the scene")
        edges = [gui.add_slider(f"Box {axis}", 0.02, 2.0, 0.02, 1.0, visible=False) for axis in ("x", "y", "up")]
        reset = gui.add_button("Reset")
        save = gui.add_button("Save PLY")
    start = Box.around(session.everything.means, viewer.layout.up)
    gizmo, outline = _add_gizmo(viewer, start)

    def current() -> Box:
        share = torch.tensor([edge.value for edge in edges], dtype=torch.float64)
        rotation = quaternion_to_matrix(torch.as_tensor(np.array(gizmo.wxyz), dtype=torch.float64))
        return Box(torch.as_tensor(np.array(gizmo.position), dtype=torch.float64), rotation, start.size * share)

    def update(_: object = None) -> None:
        with viewer.state_lock:
            gizmo.visible = outline.visible = crop.value
            for edge in edges:
                edge.visible = crop.value
            box = current()
            outline.dimensions = tuple(box.size.tolist())
            limit = session.scale_quantile(size.value / 100)
            session.change(min_opacity=opacity.value, max_scale=limit, box=box if crop.value else None)
            changed()

    for control in (opacity, size, crop, *edges):
        control.on_update(update)
    gizmo.on_update(lambda event: update() if event.phase == "end" else None)

    @reset.on_click
    def _(_: object) -> None:
        gizmo.wxyz, gizmo.position = box_pose(start)
        opacity.value, size.value, crop.value = 0.0, 100.0, False
        for edge in edges:
            edge.value = 1.0
        update()

    save.on_click(
        _with_errors_shown(viewer, lambda client: _send(client, "edited.ply", edited_ply(session, viewer.origin)))
    )


def _send(client: viser.ClientHandle, name: str, content: bytes) -> None:
    """Send a file to the visitor's downloads. Visitors may view the scene, but never write files on this machine."""
    client.send_file_download(name, content, save_immediately=True)


def edited_ply(session: Session, origin: Tensor) -> bytes:
    """The remaining Gaussians as the content of a splat PLY; ``origin`` (3,) is the session's origin in the world.

    Raises:
        GaussiansError: no Gaussians remain.
    """
    from ilrm.splats import save_ply

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "edited.ply"
        save_ply(session.shown().at(origin), path)
        return path.read_bytes()


def _add_gizmo(viewer: Viewer, box: Box) -> tuple[viser.TransformControlsHandle, viser.BoxHandle]:
    scene = viewer.server.scene
    wxyz, position = box_pose(box)
    reach = 1e3 * viewer.layout.scale
    limit = (-reach, reach)
    gizmo = scene.add_transform_controls(
        "/crop",
        scale=float(box.size.min()) / 3,
        wxyz=wxyz,
        position=position,
        translation_limits=(limit, limit, limit),
        depth_test=False,
        visible=False,
    )
    outline = scene.add_box(
        "/crop/box", color=(40, 90, 200), dimensions=tuple(box.size.tolist()), wireframe=True, visible=False
    )
    return gizmo, outline


def _add_inputs(viewer: Viewer) -> None:
    gui, result = viewer.server.gui, viewer.result
    names = result.labels
    with gui.add_folder("Input cameras"):
        wanted = gui.add_checkbox("Frustums", True, hint="Click one to fly there. The key C hides and shows them")
        which = gui.add_dropdown("Camera", names, initial_value=names[0])
        go = gui.add_button("Fly there")
        score = gui.add_markdown("Photo | rendering" if result.photos else "Rendering (no photos found: see --photos)")
        beside = gui.add_image(comparison(viewer, 0)[0])

    def compare() -> None:
        image, decibels = comparison(viewer, names.index(which.value))
        if not np.array_equal(image, beside.image):
            beside.image = image
        if decibels is not None:
            score.content = f"Photo | rendering: **{decibels:.2f} dB**"

    @wanted.on_update
    def _(_: object) -> None:
        with viewer.state_lock:
            viewer.show_frustums(wanted.value)

    command = gui.add_command("Hide or show the frustums", hotkey="C")

    @command.on_trigger
    def _(_: object) -> None:
        with viewer.state_lock:
            wanted.value = not wanted.value

    which.on_update(lambda _: viewer.work.submit("comparison", compare))
    go.on_click(
        _with_errors_shown(viewer, lambda client: viewer.fly_to(client, viewer.layout.poses[names.index(which.value)]))
    )
    viewer.listeners["comparison"] = compare


def comparison(viewer: Viewer, view: int) -> tuple[Array, float | None]:
    """The photo of an input camera beside its rendering (H, 2 W, 3) uint8, and the PSNR in dB; without a photo only the
    rendering and None."""
    from ilrm.evaluate import psnr

    cameras = viewer.result.cameras
    assert cameras is not None
    rendering = viewer.picture(cameras[view])
    photo = viewer.result.photos[view] if viewer.result.photos else None
    if photo is None:
        return rendering, None
    pair = [torch.from_numpy(np.array(image))[None].float() / 255 for image in (rendering, photo)]
    return np.concatenate([photo, rendering], axis=1), psnr(*pair).item()


def _add_record(viewer: Viewer) -> None:
    gui = viewer.server.gui
    with gui.add_folder("Record"):
        screenshot = gui.add_button("Screenshot")
        add = gui.add_button("Add keyframe", hint="The current camera")
        clear = gui.add_button("Remove keyframes")
        count_label = gui.add_markdown("No keyframes")
        seconds = gui.add_slider("Seconds", 1.0, 60.0, 1.0, 6.0)
        preview = gui.add_button("Fly along")
        save = gui.add_button("Save video")
        progress = gui.add_progress_bar(0.0, visible=False)

    def keep(client: viser.ClientHandle | None) -> None:
        with viewer.state_lock:
            viewer.keyframes = [] if client is None else [*viewer.keyframes, pose_of(client.camera)]
            count_label.content = f"{len(viewer.keyframes)} keyframes" if viewer.keyframes else "No keyframes"

    def film(client: viser.ClientHandle) -> None:
        progress.visible, save.disabled = True, True
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "flight.mp4"
                frames = round(seconds.value * FRAMES_PER_SECOND)
                wide, high = client.camera.image_width, client.camera.image_height
                save_flight(viewer, path, frames, wide / max(high, 1), lambda share: setattr(progress, "value", share))
                _send(client, "flight.mp4", path.read_bytes())
        finally:
            progress.visible, save.disabled = False, False

    screenshot.on_click(_with_errors_shown(viewer, lambda client: _send(client, "view.png", screenshot_png(client))))
    add.on_click(_with_errors_shown(viewer, keep))
    clear.on_click(lambda _: keep(None))
    preview.on_click(
        _with_errors_shown(
            viewer, lambda client: viewer.fly_along(client, _keyframe_path(viewer, round(seconds.value * 20)), 0.05)
        )
    )
    save.on_click(_with_errors_shown(viewer, film))


def screenshot_png(client: viser.ClientHandle) -> bytes:
    """The visitor's view on white, without the panel, as PNG. Raises OutputError if the browser sends no picture."""
    from PIL import Image

    size = client.camera.image_height, client.camera.image_width
    try:
        seen = client.get_render(*size, transport_format="png", timeout=_PICTURE_WITHIN_S)
    except (RuntimeError, OSError, ValueError) as error:  # gone, too late, or no PNG
        raise OutputError("The browser sent no picture.", fix="try again with the viewer in a visible tab") from error
    image = Image.fromarray(seen)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _keyframe_path(viewer: Viewer, frames: int) -> list[Any]:
    if len(viewer.keyframes) < 2:
        raise ConfigError(
            f"The path has {len(viewer.keyframes)} keyframes.",
            expected="2 or more",
            fix="move the camera, then press Add keyframe",
        )
    return fly(viewer.keyframes, frames)


def save_flight(
    viewer: Viewer, path: Path, frames: int, aspect: float, progress: Callable[[float], None] = lambda _: None
) -> None:
    """Render the path through the keyframes with our own renderer and write it as a video.

    Args:
        path: .mp4 to write.
        frames: length of the video.
        aspect: width / height; sizes are rounded to even numbers for H.264.
        progress: called with the finished share.

    Raises:
        ConfigError: fewer than two keyframes.
    """
    from ilrm.pictures.video import save_video

    width, height = (VIDEO_SIDE, VIDEO_SIDE / aspect) if aspect >= 1 else (VIDEO_SIDE * aspect, VIDEO_SIDE)
    width, height = 2 * round(width / 2), 2 * max(round(height / 2), 1)
    kind = PICTURES.get(viewer.mode, "colour")
    way = _keyframe_path(viewer, frames)

    def pictures() -> Iterator[Array]:
        for i, pose in enumerate(way):
            yield viewer.picture(pose.camera(width, height), kind)
            progress((i + 1) / len(way))

    save_video(pictures(), path, FRAMES_PER_SECOND)
