"""The live viewer: draws the session and follows the visitors' cameras."""

from __future__ import annotations

import io
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ilrm.core.cameras import Cameras
from ilrm.core.errors import IlrmError, MissingExtraError, SceneError
from ilrm.core.gaussians import Gaussians, matrix_to_quaternion, quaternion_to_matrix
from ilrm.results.result import Result
from ilrm.view.edit import Box, Session
from ilrm.view.flight import fly
from ilrm.view.pictures import Kind, picture
from ilrm.view.server import show_cameras, show_layout, show_splats
from ilrm.view.splats import Array, Pose, SplatArrays, arrange, background_image, check_drawable, splat_arrays
from ilrm.view.worker import LatestWorker

if TYPE_CHECKING:
    import viser

PICTURES: dict[str, Kind] = {"exact colours": "colour", "depth": "depth", "normals": "normals", "opacity": "opacity"}
_PICTURE_SIDE = {"cpu": 480, "cuda": 1280}  # pixels of the longer side of our own renderings
_FLIGHT_STEPS, _FLIGHT_STEP_S = 12, 0.03
_FROM_GLTF = (0.0, 0.0, 0.0, 1.0)  # half a turn about z, the inverse of splats.axes.GLTF, as a quaternion wxyz


class Viewer:
    """A result on a viser server.

    Args:
        server: the viser server.
        result: the result to show.
        layers: earlier states to choose from, (name, Gaussians) in order, e.g. after each update layer.
        device: device of our own renderer.
    """

    def __init__(
        self,
        server: viser.ViserServer,
        result: Result,
        layers: Sequence[tuple[str, Gaussians]] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        # Browsers compute in single precision, so everything here is relative to the origin of the Gaussians.
        self.origin = result.gaussians.origin
        layers = [(name, gaussians.counted_from(self.origin).local()) for name, gaussians in layers]
        result = result.local()
        states = [*layers, ("result", result.gaussians)]
        for _, gaussians in states:
            check_drawable(gaussians)
        self.server, self.result, self.device = server, result, torch.device(device)
        self.session = Session([(name, gaussians.detach().to("cpu")) for name, gaussians in states])
        self.layout = arrange(result.gaussians, result.cameras)
        self.mode = "splats"
        self.keyframes: list[Pose] = []
        self.work = LatestWorker(self._failed)
        # viser calls back from several threads in any order. Callbacks that change state take this lock and read the
        # controls while they hold it, so that the last one applies the current values of all controls.
        self.state_lock = threading.RLock()
        self.listeners: dict[str, Callable[[], None]] = {}  # further functions to call on a redraw, by name
        self._arrays: tuple[str, SplatArrays] | None = None
        show_layout(server, self.layout)
        server.scene.set_background_image(background_image(result.gaussians), format="png")
        self._splats = show_splats(server, self.arrays)
        self._points: viser.PointCloudHandle | None = None
        self._mesh = _show_mesh(server, result.mesh, self.origin)
        self.all_frustums: viser.FrameHandle | None = None
        self.frustums: list[viser.CameraFrustumHandle] = []
        if result.cameras is not None:
            photos = result.photos or [None] * len(result.cameras)
            self.all_frustums, self.frustums = show_cameras(server, result.cameras, self.layout, photos)
        for i, frustum in enumerate(self.frustums):
            frustum.on_click(lambda event, i=i: self.fly_to(event.client, self.layout.poses[i]))
        server.on_client_connect(self._on_connect)

    @property
    def modes(self) -> list[str]:
        """The available modes."""
        return ["splats", "points", *(["mesh"] if self._mesh is not None else []), *PICTURES]

    @property
    def arrays(self) -> SplatArrays:
        """The session's selected state, unedited, as arrays for viser; cached."""
        if self._arrays is None or self._arrays[0] != self.session.name:
            self._arrays = (self.session.name, splat_arrays(self.session.everything))
        return self._arrays[1]

    def close(self) -> None:
        """Stop all computations."""
        self.work.close()

    def refresh(self) -> None:
        """Request a redraw of the session in the background."""
        self.work.submit("scene", self._draw_scene)
        for client in self.server.get_clients().values():
            self.work.submit(f"picture {client.client_id}", lambda client=client: self._draw_picture(client))
        for name, draw in self.listeners.items():
            self.work.submit(name, draw)

    def show(self, mode: str) -> None:
        """Select one of ``modes``."""
        self.mode = mode
        self.refresh()

    def _draw_scene(self) -> None:
        with self.state_lock:
            keep, arrays, mode = self.session.keep().numpy(), self.arrays, self.mode
        any_left = bool(keep.any())
        self._splats.visible = mode == "splats" and any_left
        if any_left and mode == "splats":
            self._splats.set_gaussians(**arrays.select(keep))
            self._splats.position, self._splats.scale = arrays.origin, arrays.unit
        if self._points is not None:
            self._points.remove()
            self._points = None
        if mode == "points" and any_left:
            self._points = self.server.scene.add_point_cloud(
                "/points",
                arrays.centers[keep],
                arrays.rgbs[keep],
                point_size=self.session.everything.scales.median().item() / arrays.unit,  # about their spacing
                point_shape="circle",
                precision="float32",
                scale=arrays.unit,
                position=arrays.origin,
            )
        if self._mesh is not None:
            self._mesh.visible = mode == "mesh"

    def _draw_picture(self, client: viser.ClientHandle) -> None:
        """Show our own rendering as the background of one visitor, if the mode has one."""
        kind = PICTURES.get(self.mode)
        if kind is None:
            client.scene.set_background_image(background_image(self.result.gaussians), format="png")
            return
        pose, side = pose_of(client.camera), _PICTURE_SIDE[self.device.type]
        wide, high = max(client.camera.image_width, 1), max(client.camera.image_height, 1)
        factor = min(side / max(wide, high), 1.0)
        camera = pose.camera(max(round(wide * factor), 1), max(round(high * factor), 1))
        client.scene.set_background_image(self.picture(camera, kind), format="jpeg", jpeg_quality=90)

    def picture(self, camera: Cameras, kind: Kind = "colour") -> Array:
        """The session rendered by our own renderer, (H, W, 3) uint8."""
        return picture(self.session.shown().to(self.device), camera, kind, self.layout.near)

    def _on_connect(self, client: viser.ClientHandle) -> None:
        client.camera.on_update(lambda _: self._moved(client))
        self.work.submit(f"picture {client.client_id}", lambda: self._draw_picture(client))

    def _moved(self, client: viser.ClientHandle) -> None:
        """Update our own rendering after a visitor's camera has moved, if the mode has one."""
        with self.state_lock:
            if self.mode in PICTURES:
                self.work.submit(f"picture {client.client_id}", lambda: self._draw_picture(client))

    def show_frustums(self, wanted: bool) -> None:
        """Show the frustums of the input cameras, or hide them."""
        if self.all_frustums is not None:
            self.all_frustums.visible = wanted

    def fly_to(self, client: viser.ClientHandle, pose: Pose) -> None:
        """Move one visitor to a pose."""
        self.fly_along(client, fly([pose_of(client.camera), pose], _FLIGHT_STEPS), _FLIGHT_STEP_S)

    def fly_along(self, client: viser.ClientHandle, poses: Sequence[Pose], seconds_apart: float) -> None:
        """Move one visitor along poses."""
        for pose in poses:
            with client.atomic():
                client.camera.position = pose.position
                client.camera.look_at = pose.look_at
                client.camera.up_direction = self.layout.up_at(pose)
                client.camera.fov = pose.fov
            time.sleep(seconds_apart)

    def notify(self, client: viser.ClientHandle | None, title: str, body: str, color: Any = "red") -> None:
        """Show a notification to one visitor, or to all."""
        for each in [client] if client is not None else self.server.get_clients().values():
            each.add_notification(title, body, color=color, auto_close_seconds=None if color == "red" else 5)

    def _failed(self, error: Exception) -> None:
        if isinstance(error, IlrmError):
            self.notify(None, "This did not work", str(error))
        else:
            traceback.print_exception(error)  # a bug


def pose_of(camera: viser.CameraHandle) -> Pose:
    """The pose of a visitor's camera."""
    c2w = torch.eye(4, dtype=torch.float64)
    c2w[:3, :3] = quaternion_to_matrix(torch.as_tensor(np.array(camera.wxyz), dtype=torch.float64))
    c2w[:3, 3] = torch.as_tensor(np.array(camera.position), dtype=torch.float64)
    return Pose(c2w, float(camera.fov), max(float(np.linalg.norm(camera.look_at - camera.position)), 1e-9))


def box_pose(box: Box) -> tuple[Array, Array]:
    """Quaternion wxyz (4,) and centre (3,) of a box."""
    return matrix_to_quaternion(box.rotation).numpy(), box.centre.numpy()


def _show_mesh(server: viser.ViserServer, path: Path | None, origin: torch.Tensor) -> Any:
    """Add the mesh of a result as /mesh, hidden; None without a file. A .ply is in world coordinates."""
    if path is None:
        return None
    try:
        if path.suffix == ".glb":
            return server.scene.add_glb("/mesh", path.read_bytes(), wxyz=_FROM_GLTF, visible=False)
        try:
            import trimesh
        except ImportError as error:
            raise MissingExtraError("trimesh", "mesh", f"Showing {path.name}") from error
        # Loaded from its content: given a path, trimesh would open texture files anywhere that the file names.
        surface = trimesh.load_mesh(io.BytesIO(path.read_bytes()), file_type="ply")
        return server.scene.add_mesh_trimesh("/mesh", surface.apply_translation(-origin.numpy()), visible=False)
    except IlrmError:
        raise
    except Exception as error:  # trimesh raises anything on malformed files
        raise SceneError(
            f"Cannot read the mesh {path}: {error!r}.", fix="write it again, or remove that file"
        ) from error
