"""Where a video of a scene is taken from: paths by name and path files, with cameras or from the Gaussians alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from ilrm.core.cameras import Cameras, Similarity, mean_pose
from ilrm.core.errors import CameraError, ConfigError, warn
from ilrm.core.gaussians import Gaussians
from ilrm.files.reading import read_json
from ilrm.pictures import trajectories
from ilrm.pictures.frames import surface_depths
from ilrm.splats.cameras import MALFORMED, image_size, in_words, load_cameras

PathName = Literal["auto", "orbit", "interpolate", "spiral", "wobble", "input"]
Up = Literal["x", "y", "z", "-x", "-y", "-z"]
PATH_NAMES: tuple[str, ...] = get_args(PathName)
DEFAULT_FRAMES = 120

_NERFSTUDIO = '{"camera_path": [{"camera_to_world": 16 numbers, "fov": degrees}], "render_width", "render_height"}'
# Cameras that are made up see this share of the opaque Gaussians whole, at this angle, from this far above.
_SEEN, _FOV_DEG, _ELEVATION_DEG, _AROUND, _SIZE = 0.7, 50.0, 20.0, 8, (640, 480)
_OPAQUE = 0.1


@dataclass(frozen=True, eq=False)
class CameraPath:
    """F cameras, one a frame.

    Attributes:
        cameras: F cameras.
        closed: the first frame follows the last one.
        names: of the frames, where they have any.
        fps: frames a second, where a file says so.
    """

    cameras: Cameras
    closed: bool = False
    names: tuple[str, ...] | None = None
    fps: float | None = None


def make_path(name: str, gaussians: Gaussians, cameras: Cameras, frames: int | None = None) -> CameraPath:
    """The path of a name through a scene.

    "auto" is an orbit where the cameras stand around something, and a spiral about the middle camera where they see one
    side. "interpolate"
    goes through the cameras in order and back to the first; two cameras are joined, there and back, around what both
    look at. "input" is the cameras themselves.

    Args:
        gaussians: the scene; tells how far away things are.
        cameras: V cameras that have seen it.
        frames: 120 by default, 16 a camera for "interpolate"; "input" has as many as there are cameras.

    Raises:
        ConfigError: an unknown name, fewer than one frame, or a number of frames where it is given already.
    """
    if name not in PATH_NAMES:
        raise ConfigError(
            f"There is no camera path {name!r}.", expected=f"{', '.join(PATH_NAMES)}, or a file that ends in .json"
        )
    if name == "input":
        if frames is not None:
            raise ConfigError("The input cameras are as many as they are.", fix="leave the number of frames out")
        return CameraPath(cameras)
    frames_or_default = DEFAULT_FRAMES if frames is None else frames
    around = trajectories.looks_from_all_around(cameras)
    meeting = trajectories.focus_point(cameras)
    if name == "auto" and around:
        name = "orbit" if meeting is not None else "interpolate"  # outward from one place, there is no way round
    if name == "auto":  # framed like the photo in the middle, where the reconstruction is at its best
        base = trajectories.middle_view(cameras)
        focus = _focus(None, gaussians, cameras[base])
        return CameraPath(trajectories.spiral(cameras, frames_or_default, focus, base), closed=True)
    if name == "interpolate":
        return CameraPath(_interpolate(cameras, frames), closed=True)
    focus = meeting if around and meeting is not None else _focus(meeting, gaussians, cameras)
    make = {"orbit": trajectories.orbit, "spiral": trajectories.spiral, "wobble": trajectories.wobble_about}[name]
    return CameraPath(make(cameras, frames_or_default, focus), closed=True)


def _interpolate(cameras: Cameras, frames: int | None) -> Cameras:
    if len(cameras) == 2:
        count = 2 * 16 if frames is None else frames
        there_and_back = 1 - (2 * torch.arange(count).double() / max(count, 1) - 1).abs()
        return trajectories.interpolate_pair(cameras, trajectories.smooth_time(there_and_back))
    return trajectories.interpolate(cameras) if frames is None else trajectories.interpolate_evenly(cameras, frames)


def _focus(meeting: Tensor | None, gaussians: Gaussians, cameras: Cameras) -> Tensor:
    """(3,) what cameras on one side look at: where their axes meet, unless nothing is seen at that distance."""
    rotation, centre = (x.cpu() for x in mean_pose(cameras.c2w))
    depths = surface_depths(gaussians, cameras, cameras.near_plane())
    if depths.numel() == 0:
        return centre + rotation[:, 2] if meeting is None else meeting
    near, middle, far = torch.quantile(depths[:: max(1, depths.numel() // 10_000)].double(), _QUARTILES).tolist()
    if meeting is not None and near <= (meeting - centre) @ rotation[:, 2] <= far:
        return meeting
    return centre + middle * rotation[:, 2]


_QUARTILES = torch.tensor([0.02, 0.5, 0.98], dtype=torch.float64)


def nearest_views(path: Cameras, cameras: Cameras, distance: float) -> list[int]:
    """For each camera of a path, the index of the one among ``cameras`` whose pose is nearest.

    A step of ``distance``, that of what is looked at, counts as much as a turn by 60 degrees.
    """
    here, there = path.centers.double().cpu(), cameras.centers.double().cpu()
    here, there = here - there.mean(0), there - there.mean(0)  # torch takes differences of squares
    step = torch.cdist(here, there) / distance
    turn = torch.cdist(path.forward.double().cpu(), cameras.forward.double().cpu())  # chord: 1 at 60 degrees
    return (step**2 + turn**2).argmin(1).tolist()


def load_path(path: Path | str) -> CameraPath:
    """Read a path file: nerfstudio's camera_path.json, or the layout of our cameras.json.

    nerfstudio's poses have OpenGL axes, in the frame that its own training used.

    Raises:
        CameraError: not such a file, or impossible cameras.
    """
    path = Path(path)
    try:
        content = read_json(path, CameraError)
    except CameraError as error:
        raise CameraError(f"No camera path: {error.problem}", expected=_NERFSTUDIO, fix=error.fix) from error
    if isinstance(content, dict) and "camera_path" in content:
        return _nerfstudio(content, path)
    cameras, names = load_cameras(path)
    return CameraPath(cameras, names=names)


def _nerfstudio(content: dict, path: Path) -> CameraPath:
    if (kind := content.get("camera_type", "perspective")) != "perspective":
        raise CameraError(f"{path} asks for {kind!r} cameras.", expected="perspective ones")
    try:
        width, height = image_size(content["render_width"], content["render_height"])
        frames = content["camera_path"]
        c2w = torch.tensor([f["camera_to_world"] for f in frames], dtype=torch.float64).reshape(len(frames), 4, 4)
        focal = [height / 2 / math.tan(math.radians(float(f["fov"])) / 2) for f in frames]  # fov is the vertical one
        K = torch.tensor([[[f, 0, width / 2], [0, f, height / 2], [0, 0, 1]] for f in focal], dtype=torch.float64)
        fps = float(content["fps"]) if "fps" in content else None
        if fps is not None and not 0 < fps < math.inf:
            raise ValueError(f"{fps} frames a second")
        c2w[:, :3, 1:3] *= -1  # from OpenGL axes
    except MALFORMED as error:
        raise CameraError(f"{path} is no camera path: {in_words(error)}.", expected=_NERFSTUDIO) from error
    if len(frames) == 0:
        raise CameraError(f"{path} holds a path of 0 frames.", expected="at least 1")
    if content.get("crop"):
        warn(f"{path} asks for a crop; it is not applied, the whole scene is shown")
    names = tuple(f"frame {i}" for i in range(len(frames)))
    return CameraPath(Cameras(c2w, K, width, height).check(names), fps=fps)


def cameras_around(gaussians: Gaussians, up: Up = "-y") -> Cameras:
    """Cameras for Gaussians of which nothing else is known: eight on a ring that sees most of them, 640x480.

    Args:
        up: the axis of the world that points up. Splat files usually come with y down.
    """
    opaque = gaussians.opacities > _OPAQUE
    means = (gaussians[opaque] if opaque.any() else gaussians).detach().world_means.cpu()
    centre = means.median(0).values
    distance = (means - centre).norm(dim=-1)
    radius = torch.quantile(distance[:: max(1, len(distance) // 100_000)], _SEEN).clamp_min(1e-6).item()
    away = radius / math.sin(math.radians(_FOV_DEG) / 2)
    axis = torch.zeros(3, dtype=torch.float64)
    axis["xyz".index(up[-1])] = -1.0 if up[0] == "-" else 1.0
    side = axis.roll(1).abs()
    turned = torch.stack([side, axis, torch.linalg.cross(side, axis, dim=-1)], dim=1)
    c2w = Similarity(1.0, turned, centre).apply_c2w(trajectories.spin(_AROUND, away, _ELEVATION_DEG))
    width, height = _SIZE
    focal = height / 2 / math.tan(math.radians(_FOV_DEG) / 2)
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float64)
    return Cameras(c2w, K.expand(_AROUND, 3, 3), width, height)
