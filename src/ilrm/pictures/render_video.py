"""``render_video``: one call from Gaussians to a video; and the plan of frames that ``ilrm render`` shares with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from ilrm.core.cameras import Cameras
from ilrm.core.errors import ConfigError, GaussiansError
from ilrm.core.gaussians import Gaussians
from ilrm.pictures.camera_path import CameraPath, Up, cameras_on_ring, load_path, make_path
from ilrm.pictures.frames import Panel, Picture, clear_near_plane, path_depth_range, render_path
from ilrm.pictures.options import check_output, resized
from ilrm.pictures.trajectories import stabilise
from ilrm.pictures.video import check_video, save_video

DEFAULT_FPS = 30.0
_PANELS: tuple[Panel, ...] = get_args(Panel)

VideoPath = str | Path | Cameras | CameraPath
Size = str | int | tuple[int, int]


@dataclass(frozen=True, eq=False)
class FramePlan:
    """What to render for a video.

    Attributes:
        cameras: F cameras, one per frame.
        picture: the content of each frame.
        names: of the frames, if they have any.
        fps: frames per second.
    """

    cameras: Cameras
    picture: Picture
    names: tuple[str, ...] | None
    fps: float


def plan_frames(
    gaussians: Gaussians,
    seen_by: Cameras,
    path: VideoPath = "auto",
    *,
    names: tuple[str, ...] | None = None,
    frames: int | None = None,
    fps: float | None = None,
    size: Size | None = None,
    even: bool = True,
    what: Sequence[Panel] = ("rgb",),
    background: tuple[float, float, float] | None = None,
    near: float | None = None,
    stabilised: bool = False,
) -> FramePlan:
    """Choose cameras, near plane, depth range and frame rate of a video; see ``render_video`` for arguments and errors.

    Args:
        seen_by: V cameras of the photos.
        names: of these cameras, for the frames of the path "input".
        even: whether both sides of the frames have to be even, as for .mp4.
    """
    if not what or len({*what}) != len(what) or not {*what} <= {*_PANELS}:
        raise ConfigError(
            f"The panels {list(what)} were requested.", expected=f"one or more of {', '.join(_PANELS)}, each once"
        )
    taken = _camera_path(path, gaussians, seen_by, names, frames)
    cameras = stabilise(taken.cameras, closed=taken.closed) if stabilised else taken.cameras
    cameras = resized(cameras, size, even=even)
    nearest = seen_by.near_plane() if near is None else near
    if taken.closed:  # generated paths; all others are where the caller wants them
        nearest = clear_near_plane(gaussians, seen_by, nearest)
    limits = path_depth_range(gaussians, cameras, nearest) if "depth" in what else None
    picture = Picture(tuple(what), background, nearest, limits)
    return FramePlan(cameras, picture, taken.names, fps or taken.fps or DEFAULT_FPS)


def render_video(
    gaussians: Gaussians,
    cameras: Cameras | None,
    output: Path | str,
    *,
    path: VideoPath = "auto",
    frames: int | None = None,
    fps: float | None = None,
    size: Size | None = None,
    what: Sequence[Panel] = ("rgb",),
    background: tuple[float, float, float] | None = None,
    near: float | None = None,
    stabilised: bool = False,
    up: Up = "-y",
) -> int:
    """Render N Gaussians along a camera path to a video. The file is written atomically.

    On paths that leave the positions of the photos, the near plane is at half the depth of the nearest surface that
    ``cameras`` see.

    Args:
        gaussians: N Gaussians.
        cameras: V cameras of the photos, in the world of the Gaussians. None generates cameras around the opaque
            Gaussians.
        output: .mp4 (H.264), or a .webp or .gif, which repeat forever.
        path: a name ("auto", "orbit", "spiral", "wobble", "interpolate", "input"), a path file (.json), or F cameras,
            one per frame; see ``make_path`` and ``load_path``.
        frames: number of frames of a named path; 120 by default.
        fps: frames per second; 30 by default, or as in the path file.
        size: longer side of the frames in pixels, or (width, height), which crops; by default as the cameras. In an
            .mp4 the sides are rounded to even numbers.
        what: panels from left to right: "rgb", "depth", "normals", "opacity".
        background: red, green, blue in [0, 1]; by default that of the Gaussians, else white.
        near: near plane at the positions of the photos, in world units; by default 1 % of the cameras' extent.
        stabilised: smooth the path over 50 frames.
        up: axis of the world that points up, for generated cameras.

    Returns:
        the number of frames.

    Raises:
        GaussiansError: no Gaussians, or batched ones.
        ConfigError: an unknown path or panel, an invalid fps, size or number of frames.
        CameraError: an invalid path file.
        OutputError: an unknown extension, or a file that cannot be written.
    """
    output = Path(output)
    suffix = check_video(output, DEFAULT_FPS if fps is None else fps)
    if gaussians.batch_shape or len(gaussians) == 0:
        given = f"{tuple(gaussians.batch_shape)} batches of " if gaussians.batch_shape else ""
        raise GaussiansError(
            f"render_video was given {given}{gaussians.count} Gaussians.", expected="one set of at least one Gaussian"
        )
    plan = plan_frames(
        gaussians,
        cameras_on_ring(gaussians, up) if cameras is None else cameras,
        path,
        frames=frames,
        fps=fps,
        size=size,
        even=suffix == ".mp4",
        what=what,
        background=background,
        near=near,
        stabilised=stabilised,
    )
    check_output(output, len(plan.cameras), len(what) * plan.cameras.width, plan.cameras.height, plan.fps)
    return save_video(render_path(gaussians, plan.cameras, plan.picture), output, plan.fps)


def _camera_path(
    path: VideoPath, gaussians: Gaussians, cameras: Cameras, names: tuple[str, ...] | None, frames: int | None
) -> CameraPath:
    if isinstance(path, str) and not path.lower().endswith(".json"):
        made = make_path(path, gaussians, cameras, frames)
        return made if made.closed else replace(made, names=names)
    if frames is not None:
        given = f"{path} gives" if isinstance(path, str | Path) else "the path itself gives"
        raise ConfigError(f"{frames} frames were requested, but {given} their number.", fix="leave frames out")
    if isinstance(path, Cameras):
        return CameraPath(path)
    return path if isinstance(path, CameraPath) else load_path(path)
