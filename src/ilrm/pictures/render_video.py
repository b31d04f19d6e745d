"""One call from Gaussians to a video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from ilrm.core.cameras import Cameras
from ilrm.core.errors import ConfigError, GaussiansError
from ilrm.core.gaussians import Gaussians
from ilrm.pictures.camera_path import CameraPath, cameras_around, load_path, make_path
from ilrm.pictures.frames import Panel, Picture, clear_near_plane, render_path
from ilrm.pictures.options import check_output
from ilrm.pictures.video import check_video, save_video

_FPS = 30.0
_PANELS: tuple[Panel, ...] = get_args(Panel)


def render_video(
    gaussians: Gaussians,
    cameras: Cameras | None,
    output: Path | str,
    *,
    path: str | Path | Cameras | CameraPath = "auto",
    frames: int | None = None,
    fps: float | None = None,
    what: Sequence[Panel] = ("rgb",),
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
    near: float | None = None,
) -> int:
    """Render N Gaussians along a camera path into a video, which appears when it is whole.

    Away from the photos' own places, nothing nearer than half of the nearest surface that ``cameras`` see is drawn.

    Args:
        gaussians: of any scene.
        cameras: V cameras of the photos, in the world of the Gaussians; the frames have their size. None makes some
            up around the opaque Gaussians, with -y up.
        output: .mp4 (H.264), or a .webp or .gif that repeats forever.
        path: a name ("auto", "orbit", "spiral", "wobble", "interpolate", "input"), a path file (.json), or F cameras, a
            frame each; see ``make_path`` and ``load_path``.
        frames: for a path with a name; 120 by default.
        fps: frames a second; 30 by default, or what a path file says.
        what: panels from left to right: "rgb", "depth", "normals", "opacity".
        background: red, green, blue in [0, 1].
        near: nearest z that is drawn at the photos' own places, in world units; by default 1 % of the cameras' extent.

    Returns:
        the number of frames.

    Raises:
        GaussiansError: no Gaussians, or batched ones.
        ConfigError: an unknown path or panel, an impossible fps or number of frames.
        CameraError: a path file that is none.
        OutputError: an unknown extension, or a file that cannot be written.
    """
    output = Path(output)
    check_video(output, _FPS if fps is None else fps)
    if gaussians.batch_shape or len(gaussians) == 0:
        given = f"{tuple(gaussians.batch_shape)} batches of " if gaussians.batch_shape else ""
        raise GaussiansError(f"render_video was given {given}{gaussians.count} Gaussians.", expected="one set of some")
    if not what or not {*what} <= {*_PANELS}:
        raise ConfigError(f"The panels {list(what)} were asked for.", expected=f"some of {', '.join(_PANELS)}")
    seen = cameras_around(gaussians) if cameras is None else cameras
    taken = _path(path, gaussians, seen, frames)
    rate = fps or taken.fps or _FPS
    size = (len(what) * taken.cameras.width, taken.cameras.height)
    check_output(output, len(taken.cameras), *size, rate)
    nearest = seen.near_plane() if near is None else near
    if taken.closed:  # paths that are made; the others say themselves where they are
        nearest = clear_near_plane(gaussians, seen, nearest)
    picture = Picture(panels=tuple(what), background=background, near=nearest)
    return save_video(render_path(gaussians, taken.cameras, picture), output, rate)


def _path(
    path: str | Path | Cameras | CameraPath, gaussians: Gaussians, cameras: Cameras, frames: int | None
) -> CameraPath:
    if isinstance(path, str) and not path.lower().endswith(".json"):
        return make_path(path, gaussians, cameras, frames)
    if frames is not None:
        raise ConfigError(f"{frames} frames were asked for, but the path has as many as it has.", fix="leave it out")
    if isinstance(path, Cameras):
        return CameraPath(path)
    return path if isinstance(path, CameraPath) else load_path(path)
