"""Gaussians as arrays for viser, and the layout of a scene: up direction, scale and initial poses."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ilrm.core.cameras import Cameras, normalise
from ilrm.core.errors import GaussiansError
from ilrm.core.gaussians import Gaussians
from ilrm.core.spherical_harmonics import C0
from ilrm.pictures.trajectories import focus_point

Array = NDArray[Any]

# viser sends covariances in half precision, whose normal numbers are 6.1e-5 to 65504. Splats are therefore sent in a
# unit in which the largest standard deviation is 250. If the median would then be below 0.02, a smaller unit is chosen
# and the largest ones are clamped.
_LARGEST, _TYPICAL = 250.0, 0.02
_STEEP = 0.05  # if the cosine between world up and picture up is smaller, world up cannot be used
_NEAR, _FAR = 0.01, 1000.0  # of the scene's scale


@dataclass(frozen=True)
class SplatArrays:
    """N Gaussians for ``viser.SceneApi.add_gaussian_splats``; world position = origin + unit * local position.

    Attributes:
        origin: (3,) float64 in the world.
        unit: world length of the local unit.
        centers: (N, 3) float32, local.
        covariances: (N, 3, 3) float32, local.
        rgbs: (N, 3) uint8; the degree-0 part of the colour, because viser supports no other.
        opacities: (N, 1) uint8.
    """

    origin: Array
    unit: float
    centers: Array
    covariances: Array
    rgbs: Array
    opacities: Array

    def select(self, keep: Array) -> dict[str, Array]:
        """The arrays of some Gaussians (mask or indices), as keyword arguments for viser."""
        names = ("centers", "covariances", "rgbs", "opacities")
        return {name: getattr(self, name)[keep] for name in names}


def check_drawable(gaussians: Gaussians) -> None:
    """Refuse Gaussians that cannot be shown.

    Raises:
        GaussiansError: batched Gaussians, none at all, or values that are not finite.
    """
    if gaussians.means.ndim != 2 or len(gaussians) == 0:
        raise GaussiansError(
            f"Gaussians of shape {tuple(gaussians.means.shape[:-1])} cannot be shown.", expected="(N,) with N above 0"
        )
    if not (finite := gaussians.finite()).all():
        raise GaussiansError(
            f"{int((~finite).sum())} of {len(gaussians)} Gaussians hold NaN or infinite values.",
            fix="keep only gaussians[gaussians.finite()]",
        )


def background_image(gaussians: Gaussians) -> Array | None:
    """(2, 2, 3) uint8 of the colour behind the Gaussians, which a browser stretches; None if they say nothing."""
    if gaussians.background is None:
        return None
    return np.broadcast_to(np.round(255 * np.array(gaussians.background)).astype(np.uint8), (2, 2, 3)).copy()


def splat_arrays(gaussians: Gaussians) -> SplatArrays:
    """Convert N finite Gaussians."""
    g = gaussians.detach().to("cpu", torch.float32)
    largest, typical = g.scales.max().item(), g.scales.median().item()
    unit = max(min(largest / _LARGEST, typical / _TYPICAL), 1e-30)
    scales = (g.scales / unit).clamp_max(_LARGEST)
    local = replace(g, scales=scales)
    # Relative to the median, so that float32 keeps enough digits if the scene is far from the origin.
    origin = g.means.double().median(0).values
    return SplatArrays(
        origin=origin.numpy(),
        unit=unit,
        centers=((g.means.double() - origin) / unit).float().numpy(),
        covariances=local.covariances().numpy(),
        rgbs=_bytes(degree_zero_colours(g)),
        opacities=_bytes(g.opacities[:, None]),
    )


def _bytes(values: Tensor) -> Array:
    """Values in [0, 1] as bytes; rounded, because viser would truncate."""
    return values.mul(255).round().byte().numpy()


def degree_zero_colours(gaussians: Gaussians) -> Tensor:
    """(N, 3) colours in [0, 1] without view dependence."""
    return (C0 * gaussians.sh[:, 0] + 0.5).clamp(0, 1)


@dataclass(frozen=True)
class Pose:
    """The pose of a visitor's camera.

    Attributes:
        c2w: (4, 4) float64 camera-to-world, OpenCV axes.
        fov: vertical field of view in radians.
        distance: along the viewing axis to the point that the mouse rotates about.
    """

    c2w: Tensor
    fov: float
    distance: float

    @property
    def position(self) -> Array:
        """(3,)"""
        return self.c2w[:3, 3].numpy()

    @property
    def look_at(self) -> Array:
        """(3,)"""
        return (self.c2w[:3, 3] + self.distance * self.c2w[:3, 2]).numpy()

    def camera(self, width: int, height: int) -> Cameras:
        """The pinhole camera of a window of this size at this pose, with a centred principal point."""
        focal = 0.5 * height / math.tan(0.5 * self.fov)
        K = torch.tensor([[focal, 0, 0.5 * width], [0, focal, 0.5 * height], [0, 0, 1]], dtype=torch.float64)
        return Cameras(self.c2w[None], K[None], width, height)


@dataclass(frozen=True)
class ViewLayout:
    """How a scene is shown.

    Attributes:
        up: (3,) unit vector.
        scale: a typical length: the cameras' extent, or without cameras the Gaussians' spread.
        poses: one per camera, the first of which is the initial one; without cameras a single overview.
    """

    up: Tensor
    scale: float
    poses: tuple[Pose, ...]

    def up_at(self, pose: Pose) -> Array:
        """The up axis (3,) for rotating from a pose: as close to world up as possible without tilting the picture."""
        right = pose.c2w[:3, 0]
        upright = F.normalize(self.up - (self.up @ right) * right, dim=0)
        picture_up = -pose.c2w[:3, 1]
        return (upright if upright @ picture_up > _STEEP else picture_up).numpy()

    @property
    def near(self) -> float:
        """The near plane in world units, by the rule of ``ilrm render``."""
        return _NEAR * self.scale

    @property
    def far(self) -> float:
        """The far plane in world units."""
        return _FAR * self.scale


def arrange(gaussians: Gaussians, cameras: Cameras | None) -> ViewLayout:
    """Choose up direction, scale and poses. Without cameras, y points down and z forward, as usual in splat files."""
    means = gaussians.means.detach().double().cpu()
    middle = means.median(0).values
    if cameras is None or len(cameras) == 0:
        spread = max((means - middle).norm(dim=1).median().item(), 1e-9)
        c2w = torch.eye(4, dtype=torch.float64)
        c2w[:3, 3] = middle - torch.tensor([0, 0, 3.0 * spread], dtype=torch.float64)
        return ViewLayout(torch.tensor([0, -1.0, 0], dtype=torch.float64), spread, (Pose(c2w, 1.0, 3.0 * spread),))
    c2w = cameras.c2w.double().cpu()
    up = -c2w[:, :3, 1].mean(0)
    up = F.normalize(up, dim=0) if up.norm() > 1e-3 else -c2w[0, :3, 1]
    scale = normalise(cameras)[1].scale
    K = cameras.K.double().cpu()
    fovs = 2 * torch.atan(0.5 * cameras.height / K[:, 1, 1])
    focus = focus_point(cameras)
    distances = (((middle if focus is None else focus) - c2w[:, :3, 3]) * c2w[:, :3, 2]).sum(-1)
    return ViewLayout(
        up,
        scale,
        tuple(
            Pose(pose, fov, max(distance, 0.1 * scale))
            for pose, fov, distance in zip(c2w, fovs.tolist(), distances.tolist(), strict=True)
        ),
    )
