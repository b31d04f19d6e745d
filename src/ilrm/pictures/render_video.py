"""``render_video``: one call from Gaussians to a video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from ilrm.core.cameras import Cameras
from ilrm.core.errors import ConfigError, GaussiansError
from ilrm.core.gaussians import Gaussians
from ilrm.pictures.camera_path import CameraPath, cameras_on_ring, load_path, make_path
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
    """Render N Gaussians along a camera path to a video. The file is written atomically.

    On paths that leave the positions of the photos, the near plane is at half the depth of the nearest surface that
    ``cameras`` see.

    Args:
        gaussians: N Gaussians.
        cameras: V cameras of the photos, in the world of the Gaussians; frames have their size. None generates cameras
            around the opaque Gaussians, with -y up.
        output: .mp4 (H.264), or a .webp or .gif, which repeat forever.
        path: a name ("auto", "orbit", "spiral", "wobble", "interpolate", "input"), a path file (.json), or F cameras,
            one per frame; see ``make_path`` and ``load_path``.
        frames: number of frames of a named path; 120 by default.
        fps: frames per second; 30 by default, or as in the path file.
        what: panels from left to right: "rgb", "depth", "normals", "opacity".
        background: red, green, blue in [0, 1].
        near: near plane at the positions of the photos, in world units; by default 1 % of the cameras' extent.

    Returns:
        the number of frames.

    Raises:
        GaussiansError: no Gaussians, or batched ones.
        ConfigError: an unknown path or panel, an invalid fps or number of frames.
        CameraError: an invalid path file.
        OutputError: an unknown extension, or a file that cannot be written.
    """
    output = Path(output)
    check_video(output, _FPS if fps is None else fps)
    if gaussians.batch_shape or len(gaussians) == 0:
        given = f"{tuple(gaussians.batch_shape)} batches of " if gaussians.batch_shape else ""
        raise GaussiansError(
            f"render_video was given {given}{gaussians.count} Gaussians.", expected="one set of at least one Gaussian"
        )
    if not what or not {*what} <= {*_PANELS}:
        raise ConfigError(f"The panels {list(what)} were requested.", expected=f"one or more of {', '.join(_PANELS)}")
    seen = cameras_on_ring(gaussians) if cameras is None else cameras
    taken = _path(path, gaussians, seen, frames)
    rate = fps or taken.fps or _FPS
    size = (len(what) * taken.cameras.width, taken.cameras.height)
    check_output(output, len(taken.cameras), *size, rate)
    nearest = seen.near_plane() if near is None else near
    if taken.closed:  # generated paths; all others are where the caller wants them
        nearest = clear_near_plane(gaussians, seen, nearest)
    picture = Picture(panels=tuple(what), background=background, near=nearest)
    return save_video(render_path(gaussians, taken.cameras, picture), output, rate)


def _path(
    path: str | Path | Cameras | CameraPath, gaussians: Gaussians, cameras: Cameras, frames: int | None
) -> CameraPath:
    if isinstance(path, str) and not path.lower().endswith(".json"):
        return make_path(path, gaussians, cameras, frames)
    if frames is not None:
        raise ConfigError(
            f"{frames} frames were requested, but the path itself gives their number.", fix="leave frames out"
        )
    if isinstance(path, Cameras):
        return CameraPath(path)
    return path if isinstance(path, CameraPath) else load_path(path)
