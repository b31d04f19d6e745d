"""Camera paths for videos: named paths, path files, and cameras for Gaussians without any."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from ilrm.core.cameras import Cameras, Similarity
from ilrm.core.errors import CameraError, ConfigError, warn
from ilrm.core.gaussians import Gaussians
from ilrm.core.poses import mean_pose
from ilrm.files.reading import read_json
from ilrm.pictures import trajectories
from ilrm.pictures.frames import surface_depths
from ilrm.splats.cameras import MALFORMED, image_size, in_words, load_cameras

PathName = Literal["auto", "orbit", "interpolate", "spiral", "wobble", "input"]
Up = Literal["x", "y", "z", "-x", "-y", "-z"]
PATH_NAMES: tuple[str, ...] = get_args(PathName)
DEFAULT_FRAMES = 120

_NERFSTUDIO = '{"camera_path": [{"camera_to_world": 16 numbers, "fov": degrees}], "render_width", "render_height"}'
# For generated cameras: the share of the opaque Gaussians in view, field of view, elevation, number, and image size.
_SEEN, _FOV_DEG, _ELEVATION_DEG, _AROUND, _SIZE = 0.7, 50.0, 20.0, 8, (640, 480)
_OPAQUE = 0.1


@dataclass(frozen=True, eq=False)
class CameraPath:
    """F cameras, one per frame.

    Attributes:
        cameras: F cameras.
        closed: whether the path is a loop, so that the first frame can follow the last one.
        names: of the frames, if they have any.
        fps: frames per second, if a path file gives it.
    """

    cameras: Cameras
    closed: bool = False
    names: tuple[str, ...] | None = None
    fps: float | None = None


def make_path(name: str, gaussians: Gaussians, cameras: Cameras, frames: int | None = None) -> CameraPath:
    """The camera path of a given name.

    "auto" is an orbit if the cameras surround something, and a spiral about the middle camera if they look at one side.
    "interpolate" goes through the cameras in order and back to the first; with two cameras it goes back and forth
    around the point that both look at. "input" is the cameras themselves.

    Args:
        gaussians: the scene, which determines how far away the surfaces are.
        cameras: V cameras of the photos.
        frames: 120 by default, 16 per camera for "interpolate"; not allowed for "input", which has one per camera.

    Raises:
        ConfigError: an unknown name, fewer than one frame, or ``frames`` for "input".
    """
    if name not in PATH_NAMES:
        raise ConfigError(
            f"There is no camera path {name!r}.", expected=f"{', '.join(PATH_NAMES)}, or a file that ends in .json"
        )
    if name == "input":
        if frames is not None:
            raise ConfigError(
                f"{frames} frames were requested along the input cameras.",
                expected=f"one frame for each of the {len(cameras)} cameras",
                fix="leave the number of frames out",
            )
        return CameraPath(cameras)
    frames_or_default = DEFAULT_FRAMES if frames is None else frames
    around = trajectories.looks_from_all_around(cameras)
    meeting = trajectories.focus_point(cameras)
    if name == "auto" and around:
        name = "orbit" if meeting is not None else "interpolate"  # cameras that look outwards have nothing to orbit
    if name == "auto":  # around the middle photo, where the reconstruction is best
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
    """(3,) the point that cameras on one side look at: where their axes meet, if surfaces are at that distance."""
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
    """For each camera of a path, the index of the one among ``cameras`` with the nearest pose.

    A translation by ``distance``, the distance of the surfaces, counts as much as a rotation by 60 degrees.
    """
    here, there = path.centers.double().cpu(), cameras.centers.double().cpu()
    here, there = here - there.mean(0), there - there.mean(0)  # cdist loses digits far from the origin
    step = torch.cdist(here, there) / distance
    turn = torch.cdist(path.forward.double().cpu(), cameras.forward.double().cpu())  # chord: 1 at 60 degrees
    return (step**2 + turn**2).argmin(1).tolist()


def load_path(path: Path | str) -> CameraPath:
    """Read a path file: nerfstudio's camera_path.json, or the layout of our cameras.json.

    nerfstudio's poses have OpenGL axes and are in the frame of its training.

    Raises:
        CameraError: not such a file, or invalid cameras.
    """
    path = Path(path)
    try:
        content = read_json(path, CameraError)
    except CameraError as error:
        raise CameraError(f"Not a camera path: {error.problem}", expected=_NERFSTUDIO, fix=error.fix) from error
    if isinstance(content, dict) and "camera_path" in content:
        return _nerfstudio(content, path)
    cameras, names = load_cameras(path)
    return CameraPath(cameras, names=names)


def _nerfstudio(content: dict, path: Path) -> CameraPath:
    if (kind := content.get("camera_type", "perspective")) != "perspective":
        raise CameraError(f"{path} has {kind!r} cameras.", expected="perspective cameras")
    try:
        width, height = image_size(content["render_width"], content["render_height"])
        frames = content["camera_path"]
        c2w = torch.tensor([f["camera_to_world"] for f in frames], dtype=torch.float64).reshape(len(frames), 4, 4)
        focal = [height / 2 / math.tan(math.radians(float(f["fov"])) / 2) for f in frames]  # fov is vertical
        K = torch.tensor([[[f, 0, width / 2], [0, f, height / 2], [0, 0, 1]] for f in focal], dtype=torch.float64)
        fps = float(content["fps"]) if "fps" in content else None
        if fps is not None and not 0 < fps < math.inf:
            raise ValueError(f"{fps} frames per second")
        c2w[:, :3, 1:3] *= -1  # from OpenGL axes
    except MALFORMED as error:
        raise CameraError(f"{path} is not a camera path: {in_words(error)}.", expected=_NERFSTUDIO) from error
    if len(frames) == 0:
        raise CameraError(f"{path} has a path of 0 frames.", expected="at least 1")
    if content.get("crop"):
        warn(f"{path} has a crop box, which is ignored: the whole scene is shown")
    names = tuple(f"frame {i}" for i in range(len(frames)))
    return CameraPath(Cameras(c2w, K, width, height).check(names), fps=fps)


def cameras_on_ring(gaussians: Gaussians, up: Up = "-y") -> Cameras:
    """Generate cameras for Gaussians without any: eight cameras of 640x480 on a ring that see most of the Gaussians.

    Args:
        up: the axis of the world that points up. In most splat files y points down.
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
