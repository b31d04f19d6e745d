"""The live viewer on a server without visitors: its controls change the session and what is drawn."""

from __future__ import annotations

import socket
import sys
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
import torch
import viser

from ilrm.core.cameras import Similarity
from ilrm.core.errors import ConfigError, GaussiansError, MissingExtraError, OutputError, SceneError
from ilrm.results import Result
from ilrm.splats import load_ply
from ilrm.view.client import patched_page
from ilrm.view.controls import add_controls, comparison, count_text, edited_ply, save_flight
from ilrm.view.live import Viewer
from ilrm.view.server import frustum_scale, serve
from ilrm.view.splats import arrange
from tests.conftest import PATIENCE_S, make_cameras, make_gaussians, wait_until


@pytest.fixture
def viewer() -> Iterator[Viewer]:
    g, cameras = make_gaussians(400, scale=0.05), make_cameras(3, 64, 48)
    photos = tuple(np.full((48, 64, 3), 90, np.uint8) for _ in range(3))
    result = Result(Path("made/scene.ply"), g, cameras, ("a", "b", "c"), photos)
    with serve() as server:
        viewer = Viewer(server, result, [("update layer 1", g[:100])])
        add_controls(viewer)
        yield viewer
        viewer.close()


def control(viewer: Viewer, label: str) -> Any:
    """A control of the panel by its label."""
    handles = viewer.server.gui._gui_input_handle_from_uuid.values()
    (found,) = [handle for handle in handles if getattr(handle, "label", None) == label]
    return found


def until(condition: Callable[[], bool], viewer: Viewer) -> None:
    """Callbacks run in viser's threads, drawing in ours."""
    wait_until(condition)
    assert viewer.work.wait(PATIENCE_S)


def test_thresholds_reach_the_scene(viewer: Viewer) -> None:
    g = viewer.result.gaussians
    control(viewer, "Min. opacity").value = 0.5
    expected = int((g.opacities >= 0.5).sum())
    until(lambda: len(viewer._splats.buffer) == expected, viewer)
    assert count_text(viewer.session) == f"**{expected}** of 400 Gaussians"
    control(viewer, "Size limit %").value = 50.0
    until(lambda: len(viewer._splats.buffer) < expected, viewer)
    control(viewer, "Min. opacity").value = 1.0
    until(lambda: not viewer._splats.visible, viewer)
    with pytest.raises(GaussiansError, match="no Gaussians"):
        edited_ply(viewer.session, viewer.origin)


def test_the_last_of_many_changes_holds(viewer: Viewer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes by a visitor arrive in several threads at once; here the earlier ones take longer."""
    slider, change, number = control(viewer, "Min. opacity"), viewer.session.change, iter(range(30))

    def slow(**values: Any) -> None:
        time.sleep(0.2 - 0.006 * next(number))
        change(**values)

    monkeypatch.setattr(viewer.session, "change", slow)
    with ThreadPoolExecutor(30) as threads:
        for i in range(1, 31):
            slider._impl.value = i / 50
            for callback in slider._impl.update_cb:
                threads.submit(callback, viser.GuiEvent(None, None, slider))
            time.sleep(0.002)
    assert viewer.session.edit.min_opacity == 0.6
    assert viewer.work.wait(PATIENCE_S)
    assert len(viewer._splats.buffer) == int((viewer.result.gaussians.opacities >= 0.6).sum())


def test_crop_states_and_saving(viewer: Viewer, tmp_path: Path) -> None:
    control(viewer, "Crop box").value = True
    until(lambda: viewer.session.edit.box is not None, viewer)
    for axis in ("x", "y", "up"):
        control(viewer, f"Box {axis}").value = 0.5
    until(lambda: len(viewer._splats.buffer) == int(viewer.session.keep().sum()) < 200, viewer)
    path = tmp_path / "edited.ply"
    path.write_bytes(edited_ply(viewer.session, viewer.origin))
    saved = load_ply(path)
    assert torch.allclose(saved.means, viewer.session.shown().means)
    assert len(saved) < 200
    control(viewer, "State").value = "update layer 1"
    until(lambda: viewer.session.name == "update layer 1", viewer)
    until(lambda: len(viewer._splats.buffer) == int(viewer.session.keep().sum()) < 100, viewer)


def test_a_world_far_away_is_shown_near_and_saved_where_it_is(viewer: Viewer, tmp_path: Path) -> None:
    origin = torch.tensor([512345.0, 5432109.0, 250.0], dtype=torch.float64)
    there = Similarity(1.0, torch.eye(3, dtype=torch.float64), origin)
    g, cameras = viewer.result.gaussians, viewer.result.cameras
    assert cameras is not None
    far = replace(
        viewer.result, gaussians=g.at(origin), cameras=cameras.to(dtype=torch.float64).transform(there), mesh=None
    )
    with serve() as server:
        # A state with another origin is drawn at the same place.
        other = Viewer(server, far, [("update layer 1", g[:100].at(origin).counted_from(origin + 5))])
        try:
            for here, at_home in zip(other.layout.poses, viewer.layout.poses, strict=True):
                assert np.abs(here.position - at_home.position).max() < 1e-6
            assert (comparison(other, 1)[1] or 0) == pytest.approx(comparison(viewer, 1)[1] or 0, abs=1e-3)
            (tmp_path / "edited.ply").write_bytes(edited_ply(other.session, other.origin))
            other.session.choose("update layer 1")
            assert (other.session.everything.means - g[:100].means).abs().max() < 1e-5
        finally:
            other.close()
    saved = load_ply(tmp_path / "edited.ply")
    assert saved.origin.tolist() == origin.tolist()
    assert torch.equal(saved.means, g.means)


def test_points_and_pictures(viewer: Viewer) -> None:
    control(viewer, "Show").value = "points"
    until(lambda: viewer._points is not None and not viewer._splats.visible, viewer)
    control(viewer, "Show").value = "depth"
    until(lambda: viewer._points is None, viewer)
    assert viewer.mode == "depth"
    control(viewer, "Show").value = "splats"
    until(lambda: viewer._splats.visible, viewer)
    assert "mesh" not in viewer.modes


def test_comparison(viewer: Viewer) -> None:
    pair, decibels = comparison(viewer, 1)
    assert pair.shape == (48, 128, 3)
    assert (pair[:, :64] == 90).all()
    assert decibels is not None
    assert 5 < decibels < 30
    viewer.result = replace(viewer.result, photos=())
    alone, nothing = comparison(viewer, 1)
    assert nothing is None
    assert np.array_equal(alone, pair[:, 64:])


def test_frustums_go_and_come_back(viewer: Viewer) -> None:
    everything = viewer.all_frustums
    assert everything is not None
    control(viewer, "Frustums").value = False
    until(lambda: not everything.visible, viewer)
    (command,) = viewer.server.gui._command_handle_from_uuid.values()
    assert command.hotkey == "C"
    for callback in command._impl.trigger_cb:
        callback(viser.CommandEvent(None, None, command))  # type: ignore[arg-type]
    until(lambda: everything.visible, viewer)
    assert control(viewer, "Frustums").value


def test_frustums_are_small() -> None:
    """Beside the scene, and beside the distance from one camera to the next; cameras at one place count once."""
    cameras = make_cameras(2, 64, 48)
    apart = (cameras.centers[0] - cameras.centers[1]).norm().item()
    assert frustum_scale(arrange(make_gaussians(9), cameras)) <= 0.25 * apart
    twice = frustum_scale(arrange(make_gaussians(9), cameras[[0, 1, 0, 1]]))
    assert 0 < twice <= 0.25 * apart
    alone = arrange(make_gaussians(9), cameras[:1])
    assert frustum_scale(alone) == pytest.approx(0.05 * alone.scale)


def test_a_flight_becomes_a_video(viewer: Viewer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer is replaced: this test only looks at its input."""
    written: dict[str, Any] = {}
    writer = types.ModuleType("ilrm.pictures.video")
    writer.save_video = lambda frames, path, fps: written.update(frames=list(frames), path=path, fps=fps)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ilrm.pictures.video", writer)
    with pytest.raises(ConfigError, match="0 keyframes"):
        save_flight(viewer, tmp_path / "a.mp4", 4, 1.5)
    viewer.keyframes = list(viewer.layout.poses)
    shares: list[float] = []
    save_flight(viewer, tmp_path / "a.mp4", 4, 1.5, shares.append)
    assert [frame.shape for frame in written["frames"]] == [(426, 640, 3)] * 4
    assert shares == [0.25, 0.5, 0.75, 1.0]
    first = viewer.picture(viewer.layout.poses[0].camera(640, 426))
    assert np.abs(written["frames"][0].astype(float) - first).mean() < 0.1


def test_a_mesh_beside_the_splats(viewer: Viewer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mesh.glb").write_bytes(b"glTF")
    other = Viewer(viewer.server, replace(viewer.result, mesh=tmp_path / "mesh.glb"))
    assert other.modes[2] == "mesh"
    assert not other._mesh.visible
    other.show("mesh")
    assert other.work.wait(PATIENCE_S)
    assert other._mesh.visible
    assert not other._splats.visible
    other.close()
    monkeypatch.setitem(sys.modules, "trimesh", None)
    with pytest.raises(MissingExtraError, match="trimesh"):
        Viewer(viewer.server, replace(viewer.result, mesh=tmp_path / "mesh.ply"))


def test_a_mesh_of_a_stranger(viewer: Viewer, tmp_path: Path) -> None:
    """It is read alone: no other file that it names is opened, and damage is reported."""
    pytest.importorskip("trimesh")
    (tmp_path / "secret.png").write_bytes(b"no picture, and not to be opened")
    header = "ply\nformat ascii 1.0\ncomment TextureFile secret.png\nelement vertex 3\n"
    properties = "".join(f"property float {name}\n" for name in ("x", "y", "z", "s", "t"))
    faces = "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    vertices = "0 0 0 0 0\n1 0 0 1 0\n0 1 0 0 1\n3 0 1 2\n"
    (tmp_path / "mesh.ply").write_text(header + properties + faces + vertices)
    Viewer(viewer.server, replace(viewer.result, mesh=tmp_path / "mesh.ply")).close()
    (tmp_path / "mesh.ply").write_text(header + properties + faces.replace("face 1", "face 9") + "nonsense")
    with pytest.raises(SceneError, match=r"mesh\.ply"):
        Viewer(viewer.server, replace(viewer.result, mesh=tmp_path / "mesh.ply"))


def test_a_port_in_use_is_an_error_not_another_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OutputError, match="in use") as caught, serve(port=taken.getsockname()[1]):
            pass
    assert "--port 0" in caught.value.fix


def test_a_port_taken_at_the_last_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """viser would silently move to the next one."""
    monkeypatch.setattr("ilrm.view.server._check_address", lambda *_: None)
    with serve() as first, pytest.raises(OutputError, match="in use"), serve(port=first.get_port()):
        pass


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("127.0.0.1", 70000),
        ("203.0.113.7", 0),
        ("no.such.host.invalid", 0),
        ("a" * 300, 0),
        ("a..b", 0),
        ("\ud800", 0),
        ("a\0b", 0),
        ("", 0),
        (" ", 0),
    ],
)
def test_impossible_addresses(host: str, port: int) -> None:
    with pytest.raises(OutputError, match="cannot listen") as caught, serve(host, port):
        pass
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable() or "\n" in str(caught.value)


def test_the_server_sends_the_repaired_client() -> None:
    own = (Path(viser.__file__).parent / "client" / "build" / "index.html").read_text("utf-8")
    with serve() as server:
        page = urlopen(f"http://127.0.0.1:{server.get_port()}/").read().decode()
    assert page == patched_page(own)
    assert page.index("TextDecoder.prototype.decode") < page.index("<script data-p=")
    assert patched_page("<title>Another</title>") == "<title>Another</title>"
    other = viser.ViserServer(host="127.0.0.1", port=0, verbose=False)  # other servers are not changed
    assert urlopen(f"http://127.0.0.1:{other.get_port()}/").read().decode() == own
    other.stop()


def test_only_this_machine_by_default() -> None:
    with serve() as server:
        assert isinstance(server, viser.ViserServer)
        assert server.get_host() == "127.0.0.1"
