"""Starting a viser server on exactly the requested address, and adding splats and cameras to it."""

from __future__ import annotations

import contextlib
import errno
import io
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ilrm.core.cameras import Cameras
from ilrm.core.errors import OutputError
from ilrm.core.gaussians import matrix_to_quaternion
from ilrm.view.client import patched_servers
from ilrm.view.splats import Array, SplatArrays, ViewLayout

if TYPE_CHECKING:
    import viser

CAMERAS = "/cameras"  # the node of the scene that holds all frustums
# Limits on the size of a frustum, as shares of the scene's scale and of the distance to the nearest camera.
_OF_SCALE, _OF_DISTANCE = 0.05, 0.25
_FRUSTUM_COLOUR = (205, 170, 140)
_THUMBNAIL_SIDE = 128
_PALE = 0.35  # share of white in a frustum's photo; transparency would not help, as it still hides splats behind it
_LONGEST_HOST = 80  # characters in a message
_FIXES = {
    errno.EADDRINUSE: "choose another port with --port, or --port 0 for any free one",
    errno.EACCES: "choose a port above 1023 with --port",
    errno.EADDRNOTAVAIL: "give an address of this machine with --host",
}


@contextlib.contextmanager
def serve(host: str = "127.0.0.1", port: int = 0, label: str = "ilrm") -> Iterator[viser.ViserServer]:
    """Run a viser server during the body.

    It answers only its own pages at the address that it listens on (see ``ilrm.view.gate``).

    Args:
        host: address to listen on. Unless it is a loopback address, everybody who can reach this machine has access.
        port: 0 chooses any free one. viser itself would silently use the next port if this one is in use.

    Raises:
        OutputError: the server cannot listen on the address.
    """
    _check_address(host, port)
    import viser
    from viser._messages import Message

    from ilrm.view.gate import Gate
    from ilrm.view.inbox import Inbox

    inbox = Inbox(Message)
    with tempfile.TemporaryDirectory(prefix="ilrm-view-") as folder:
        # viser prints a banner with its address; the caller announces it instead.
        with contextlib.redirect_stdout(io.StringIO()), patched_servers(Path(folder), Gate(host), inbox) as guarded:
            server = viser.ViserServer(host=host, port=port, label=label, verbose=False)
        inbox.controls = server.gui._gui_input_handle_from_uuid
        try:
            if not guarded.is_set():
                raise OutputError(
                    f"The viewer cannot protect a server of viser {viser.__version__} against other web pages.",
                    fix="install viser 1.1.1",
                )
            if port not in (0, server.get_port()):  # another process took the port after the check
                raise _address_error(host, port, OSError(errno.EADDRINUSE, "address already in use"))
            yield server
        finally:
            with contextlib.redirect_stdout(io.StringIO()):  # viser prints a message; stdout is for results only
                server.stop()


def browser_address(host: str, port: int) -> str:
    """The URL of a server on ``host``; one that listens on all addresses is opened at the loopback address."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _check_address(host: str, port: int) -> None:
    try:
        if not 0 <= port <= 65535:  # some systems accept it and wrap around
            raise OverflowError("there is no such port")
        if not host.strip():  # some functions take it to mean all addresses
            raise ValueError("the address is empty")
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        with socket.socket(family, kind) as probe:
            if sys.platform != "win32":  # on Windows it would allow a second listener
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except (OSError, OverflowError, ValueError) as error:  # impossible domain names raise UnicodeError, a ValueError
        raise _address_error(host, port, error) from error


def _address_error(host: str, port: int, error: Exception) -> OutputError:
    code = error.errno if isinstance(error, OSError) else None
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    shown = host if len(host) <= _LONGEST_HOST else f"{host[:_LONGEST_HOST]}... ({len(host)} characters)"
    return OutputError(
        f"The viewer cannot listen on {shown!r}, port {port}: {reason[:1].lower()}{reason[1:]}.",
        expected="a name or address of this machine, and a free port from 0 to 65535",
        fix=_FIXES.get(code or 0, "choose other values for --host and --port"),
    )


def show_layout(server: viser.ViserServer, layout: ViewLayout) -> None:
    """Set the up direction, clipping planes and initial camera."""
    server.scene.set_up_direction(layout.up.numpy())
    server.scene.world_axes.visible = False
    first, start = layout.poses[0], server.initial_camera
    start.position, start.look_at, start.up = first.position, first.look_at, layout.up_at(first)
    start.fov, start.near, start.far = first.fov, layout.near, layout.far


def show_splats(server: viser.ViserServer, arrays: SplatArrays) -> viser.GaussianSplatHandle:
    """Add all Gaussians as /splats."""
    return server.scene.add_gaussian_splats(
        "/splats",
        arrays.centers,
        arrays.covariances,
        arrays.rgbs,
        arrays.opacities,
        scale=arrays.unit,
        position=arrays.origin,
    )


def show_cameras(
    server: viser.ViserServer, cameras: Cameras, layout: ViewLayout, photos: Sequence[Array | None]
) -> tuple[viser.FrameHandle, list[viser.CameraFrustumHandle]]:
    """Add a small, pale frustum per camera, with its photo (H, W, 3) uint8 if there is one.

    The client shrinks frustums near the visitor (see ``ilrm.view.client``).

    Returns:
        the parent node ``CAMERAS`` and the frustums.
    """
    wxyz = matrix_to_quaternion(cameras.c2w[:, :3, :3].double().cpu()).numpy()
    scale = frustum_scale(layout)
    return server.scene.add_frame(CAMERAS, show_axes=False), [
        server.scene.add_camera_frustum(
            f"{CAMERAS}/{i:03d}",
            fov=pose.fov,
            aspect=cameras.width / cameras.height,
            scale=scale,
            thickness=1.0,
            thickness_units="screen",  # lines scaled with the frustum would fill a small one
            color=_FRUSTUM_COLOUR,
            image=None if (photo := photos[i]) is None else _pale(thumbnail(photo)),
            jpeg_quality=80,
            wxyz=wxyz[i],
            position=pose.position,
            cast_shadow=False,
            receive_shadow=False,
        )
        for i, pose in enumerate(layout.poses)
    ]


def frustum_scale(layout: ViewLayout) -> float:
    """viser's scale for all frustums: small relative to the scene and to the distance between cameras."""
    centres = np.stack([pose.position for pose in layout.poses])
    nearest = []
    for centre in centres:
        distances = np.linalg.norm(centres - centre, axis=1)
        others = distances[distances > 1e-6 * layout.scale]  # without itself and cameras at the same position
        nearest.append(others.min(initial=np.inf))
    return min(_OF_SCALE * layout.scale, _OF_DISTANCE * float(np.median(nearest)))


def _pale(photo: Array) -> Array:
    """A photo (H, W, 3) uint8 with white mixed in."""
    return (photo * (1 - _PALE) + 255 * _PALE).round().astype(np.uint8)


def thumbnail(photo: Array, side: int = _THUMBNAIL_SIDE) -> Array:
    """A photo (H, W, 3) uint8 reduced to a longer side of at most ``side`` pixels."""
    from PIL import Image

    image = Image.fromarray(photo)
    image.thumbnail((side, side))
    return np.asarray(image)
