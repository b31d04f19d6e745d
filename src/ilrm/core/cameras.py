"""Pinhole cameras, rays and the world normalisation.

Conventions (asserted in ``tests/project/test_conventions.py``, explained in ``docs/conventions.md``):
camera-to-world 4x4 matrices with OpenCV axes (+x right, +y down, +z forward), intrinsics in pixels of
the image, and the centre of the pixel in row i, column j at (j + 0.5, i + 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ilrm.core.errors import CameraError
from ilrm.core.poses import mean_pose

NormalisationRule = Literal["transformed", "raw"]

# Camera centres that differ by less than this share of their distance to the origin count as one point. It is a few
# hundred float64 roundings; a capture of a 1 cm object in UTM or ECEF coordinates is still 10,000 times wider.
_COINCIDENT_CENTRES = 1e-13
_NEAR = 0.01
# Up to this many extents from the world's origin, float32 resolves 6e-5 of the extent or better: less than a pixel.
_FARTHEST_ORIGIN = 1e3


@dataclass(frozen=True, eq=False)
class Similarity:
    """The map x -> scale * rotation @ x + translation between two world frames.

    Attributes:
        scale: positive factor.
        rotation: (3, 3), orthonormal with determinant 1, float64.
        translation: (3,), in units of the target frame, float64.
    """

    scale: float
    rotation: Tensor
    translation: Tensor

    @staticmethod
    def identity() -> Similarity:
        """The identity map."""
        return Similarity(1.0, torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))

    def inverse(self) -> Similarity:
        """The inverse map."""
        rotation = self.rotation.T
        return Similarity(1.0 / self.scale, rotation, -(rotation @ self.translation) / self.scale)

    def compose(self, first: Similarity) -> Similarity:
        """The map that applies ``first`` and then this one."""
        return Similarity(
            self.scale * first.scale,
            self.rotation @ first.rotation,
            self.scale * self.rotation @ first.translation + self.translation,
        )

    def apply_points(self, points: Tensor) -> Tensor:
        """Map points (..., 3); keeps dtype and device."""
        rotation = self.rotation.to(points)
        return self.scale * points @ rotation.T + self.translation.to(points)

    def apply_c2w(self, c2w: Tensor) -> Tensor:
        """Move camera-to-world matrices (..., 4, 4); the rotations stay orthonormal, centres are scaled."""
        moved = c2w.clone()
        moved[..., :3, :3] = self.rotation.to(c2w) @ c2w[..., :3, :3]
        moved[..., :3, 3] = self.apply_points(c2w[..., :3, 3])
        return moved

    def matrix(self) -> Tensor:
        """The same map as a (4, 4) float64 matrix on homogeneous points."""
        out = torch.eye(4, dtype=torch.float64)
        out[:3, :3] = self.scale * self.rotation
        out[:3, 3] = self.translation
        return out


class NoSuchCamera(CameraError, IndexError):
    """An index out of range; as an IndexError it ends iteration by index."""


@dataclass(frozen=True, eq=False)
class Cameras:
    """V pinhole cameras that share one image size, optionally with leading batch dimensions.

    Like a tensor, ``Cameras`` are indexed along their first dimension, and ``len`` is its size: views, or batch
    elements if there are batch dimensions.

    Attributes:
        c2w: (..., V, 4, 4) camera-to-world, OpenCV axes: columns right, down, forward, centre.
        K: (..., V, 3, 3) intrinsics in pixels.
        width, height: image size in pixels.
    """

    c2w: Tensor
    K: Tensor
    width: int
    height: int

    def __post_init__(self) -> None:
        shape = tuple(self.c2w.shape[:-2])
        if not shape or tuple(self.c2w.shape[-2:]) != (4, 4) or tuple(self.K.shape) != (*shape, 3, 3):
            raise CameraError(
                f"Cameras were given c2w {tuple(self.c2w.shape)} and K {tuple(self.K.shape)}.",
                expected="c2w (..., V, 4, 4) and K (..., V, 3, 3) with the same V and batch dimensions",
            )
        if not all(isinstance(side, int | np.integer) for side in (self.width, self.height)):
            raise CameraError(f"Image size {self.width!r} x {self.height!r}.", expected="whole numbers of pixels")
        if self.width < 1 or self.height < 1:
            raise CameraError(f"Image size {self.width}x{self.height} is empty.", expected="at least 1x1 pixel")

    def __len__(self) -> int:
        return self.c2w.shape[0]

    def __iter__(self) -> Iterator[Cameras]:
        return (self[index] for index in range(len(self)))

    @property
    def batch_shape(self) -> torch.Size:
        """The leading dimensions; empty for the cameras of one scene."""
        return self.c2w.shape[:-3]

    @property
    def views(self) -> int:
        """V, the number of cameras (of one batch element)."""
        return self.c2w.shape[-3]

    @property
    def device(self) -> torch.device:
        return self.c2w.device

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Cameras:
        """Select along the first dimension. An integer keeps one view as ``Cameras`` of length one, but selects one
        element of a batch."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise NoSuchCamera(f"There is no camera {index} among {len(self)}.")
            if self.batch_shape:
                return replace(self, c2w=self.c2w[index], K=self.K[index])
            index = [index]
        if not isinstance(index, slice | Tensor):
            index = torch.as_tensor(list(index), dtype=torch.long, device=self.c2w.device)
        return replace(self, c2w=self.c2w[index], K=self.K[index])

    @property
    def centers(self) -> Tensor:
        """(..., V, 3) camera centres in the world."""
        return self.c2w[..., :3, 3]

    @property
    def forward(self) -> Tensor:
        """(..., V, 3) unit viewing directions in the world."""
        return self.c2w[..., :3, 2]

    @property
    def w2c(self) -> Tensor:
        """(..., V, 4, 4) world-to-camera matrices."""
        return torch.linalg.inv(self.c2w)

    @staticmethod
    def from_w2c(w2c: Tensor | NDArray[Any], K: Tensor | NDArray[Any], width: int, height: int) -> Cameras:
        """Cameras from world-to-camera matrices with OpenCV axes, the convention of COLMAP, gsplat and VGGT.

        Args:
            w2c: (..., V, 4, 4), or (..., V, 3, 4) without the last row.
            K: (..., V, 3, 3) intrinsics in pixels, or one (3, 3) for all.
            width, height: image size in pixels.

        Raises:
            CameraError: shapes that do not fit, or a matrix that cannot be inverted.
        """
        w2c, K = torch.as_tensor(w2c), torch.as_tensor(K)
        if w2c.ndim < 3 or tuple(w2c.shape[-2:]) not in ((3, 4), (4, 4)) or not w2c.is_floating_point():
            raise CameraError(
                f"Cameras.from_w2c was given w2c {tuple(w2c.shape)} of {w2c.dtype}.",
                expected="(..., V, 4, 4) or (..., V, 3, 4) in floating point",
            )
        if w2c.shape[-2] == 3:
            last = w2c.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*w2c.shape[:-2], 1, 4)
            w2c = torch.cat([w2c, last], dim=-2)
        try:
            c2w = torch.linalg.inv(w2c.double()).to(w2c.dtype)
        except RuntimeError as error:
            raise CameraError(
                "Cameras.from_w2c was given a matrix that cannot be inverted.",
                expected="a rotation and a translation in each",
            ) from error
        return Cameras(c2w, K.expand(*w2c.shape[:-2], 3, 3) if K.shape == (3, 3) else K, width, height)

    @staticmethod
    def stack(parts: Sequence[Cameras]) -> Cameras:
        """A batch of cameras of the same number and image size. Raises CameraError."""
        if len({(part.c2w.shape, part.width, part.height) for part in parts}) != 1:
            given = [f"{tuple(part.c2w.shape)} of {part.width}x{part.height}" for part in parts]
            raise CameraError(
                f"Cameras of several shapes cannot form a batch: {', '.join(given)}.", expected="one shape"
            )
        c2w, K = (torch.stack([getattr(part, name) for part in parts]) for name in ("c2w", "K"))
        return replace(parts[0], c2w=c2w, K=K)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Cameras:
        """The same cameras on another device or in another precision."""
        return replace(self, c2w=self.c2w.to(device, dtype), K=self.K.to(device, dtype))

    def check(self, names: Sequence[str] | None = None) -> Cameras:
        """Return the cameras unchanged if every pose and every intrinsic matrix is valid.

        Raises:
            CameraError: NaN or infinite values, a rotation that is not orthonormal (tolerance 1e-3) or mirrored,
                a focal length that is not positive. The message names the view.
        """
        label = list(names) if names is not None else [f"view {i}" for i in range(self.views)]
        if self.batch_shape:
            for one in self:
                one.check(names)
            return self
        c2w, K = self.c2w.double().cpu(), self.K.double().cpu()
        rotation = c2w[:, :3, :3]
        gram_error = (rotation.mT @ rotation - torch.eye(3, dtype=torch.float64)).abs().amax((1, 2))
        determinant = torch.linalg.det(rotation.nan_to_num(0.0, 0.0, 0.0))
        for i, name in enumerate(label):
            if not torch.isfinite(c2w[i]).all():
                raise CameraError(
                    f"The pose of {name} holds NaN or infinite values.",
                    expected="a finite 4x4 camera-to-world matrix",
                    fix="remove the view from the scene, or estimate its pose again",
                )
            if gram_error[i] > 1e-3:
                raise CameraError(
                    f"The rotation of {name} is not orthonormal (error {gram_error[i]:.3g}).",
                    expected="three orthogonal unit columns; scale belongs into the translations",
                    fix="divide the rotation by its scale or estimate the pose again",
                )
            if determinant[i] < 0:
                raise CameraError(
                    f"The rotation of {name} is a mirror image (determinant {determinant[i]:.3f}).",
                    expected="determinant +1",
                    fix="flip two axes when converting conventions, not one",
                )
            focal = K[i, [0, 1], [0, 1]]
            if not torch.isfinite(K[i]).all() or (focal <= 0).any():
                raise CameraError(
                    f"The intrinsics of {name} are impossible: fx = {focal[0]:.6g}, fy = {focal[1]:.6g}, "
                    f"cx = {K[i, 0, 2]:.6g}, cy = {K[i, 1, 2]:.6g}.",
                    expected="finite values and positive focal lengths in pixels",
                    fix="correct fl_x / fl_y / camera_angle_x of that view",
                )
        return self

    def transform(self, similarity: Similarity) -> Cameras:
        """The same cameras in another world frame."""
        return replace(self, c2w=similarity.apply_c2w(self.c2w))

    def coincide(self) -> bool:
        """Whether all centres are the same point, up to float64 rounding."""
        centres = self.centers.double()
        return _is_rounding((centres - centres.mean(0)).abs().max().item(), centres.abs().max().item())

    def local_origin(self) -> Tensor:
        """(3,) float64 point that positions around these cameras are relative to, see ``local_origin``."""
        to_world = normalise(self)[1]
        return local_origin(to_world.translation, to_world.scale)

    def near_plane(self) -> float:
        """The near plane in world units: 1 % of the cameras' extent, as in the released network's unit frame."""
        return _NEAR * normalise(self)[1].scale

    def relative_to(self, origin: Tensor) -> Cameras:
        """The same cameras with positions relative to the world point ``origin`` (3,), subtracted in float64.

        Zeros return the cameras unchanged; otherwise the result is float64. This gives cameras the frame of
        ``Gaussians.means``.
        """
        if not origin.any():
            return self
        c2w = self.c2w.double().clone()
        c2w[..., :3, 3] -= origin.to(c2w)
        return replace(self, c2w=c2w)

    def resize(self, width: int, height: int) -> Cameras:
        """Cameras of the images stretched to width x height; the principal point moves along."""
        # Numbers, not a tensor, which would have to be copied to the device; in single precision on any.
        across, down = (float(np.float32(x)) for x in (width / self.width, height / self.height))
        K = torch.stack([self.K[..., 0, :] * across, self.K[..., 1, :] * down, self.K[..., 2, :]], dim=-2)
        return replace(self, K=K, width=width, height=height)

    def crop(self, left: int, top: int, width: int, height: int) -> Cameras:
        """Cameras of the images cut to the box that starts at (left, top); the principal point moves along."""
        K = self.K.clone()
        K[..., 0, 2] -= left
        K[..., 1, 2] -= top
        return replace(self, K=K, width=width, height=height)

    def rays(self) -> tuple[Tensor, Tensor]:
        """Origins and unit directions of the rays through all pixel centres, each (..., V, H, W, 3), in the world."""
        return rays(self.c2w, self.K, self.width, self.height)

    def plucker(self) -> Tensor:
        """(..., V, H, W, 6) Pluecker coordinates: moment o x d, then direction d."""
        origins, directions = self.rays()
        return torch.cat([torch.linalg.cross(origins, directions, dim=-1), directions], dim=-1)


def rigid_inverse(c2w: Tensor) -> Tensor:
    """World-to-camera matrices of camera-to-world matrices (..., 4, 4)."""
    rotation = c2w[..., :3, :3].mT
    w2c = torch.eye(4, dtype=c2w.dtype, device=c2w.device).repeat(*c2w.shape[:-2], 1, 1)
    w2c[..., :3, :3] = rotation
    w2c[..., :3, 3:] = -rotation @ c2w[..., :3, 3:]
    return w2c


def camera_points(depth: Tensor, pixels: Tensor, K: Tensor) -> Tensor:
    """Points (..., L, 3) in camera axes at z-depths (..., L) behind the image positions (..., L, 2) of cameras (...).

    Args:
        pixels: (x, y) with the centre of the first pixel at (0.5, 0.5).
        K: (..., 3, 3) intrinsics in pixels; skew is ignored.
    """
    focal = torch.stack([K[..., 0, 0], K[..., 1, 1]], dim=-1)[..., None, :]
    xy = (pixels - K[..., None, :2, 2]) / focal
    return torch.cat([xy, torch.ones_like(xy[..., :1])], dim=-1) * depth[..., None]


def points_at_depth(depth: Tensor, pixels: Tensor, c2w: Tensor, K: Tensor) -> Tensor:
    """The points of ``camera_points`` (..., L, 3) in the world, for camera-to-world matrices (..., 4, 4)."""
    return camera_points(depth, pixels, K) @ c2w[..., :3, :3].mT + c2w[..., None, :3, 3]


def pixel_centres(width: int, height: int, like: Tensor) -> Tensor:
    """(H, W, 2) image coordinates (x, y) = (j + 0.5, i + 0.5), dtype and device of ``like``."""
    y = torch.arange(height, dtype=like.dtype, device=like.device) + 0.5
    x = torch.arange(width, dtype=like.dtype, device=like.device) + 0.5
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def rays(c2w: Tensor, K: Tensor, width: int, height: int, offsets: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """World rays through the pixels of a width x height grid.

    Args:
        c2w: (..., 4, 4) camera-to-world.
        K: (..., 3, 3) intrinsics in pixels of that grid.
        offsets: optional (..., H, W, 2), (dx, dy) in pixels from each pixel's centre. Gradients flow through it.

    Returns:
        origins (..., H, W, 3) and unit directions (..., H, W, 3).
    """
    points = pixel_centres(width, height, K)  # (H, W, 2)
    if offsets is not None:
        points = points + offsets
    focal = torch.stack([K[..., 0, 0], K[..., 1, 1]], -1)[..., None, None, :]
    centre = K[..., None, None, :2, 2]
    x, y = ((points - centre) / focal).split(1, dim=-1)  # (..., H, W, 1)
    # Column by column: a matrix-vector product for each pixel is slow on a GPU, and inexact where TF32 is allowed.
    right, down, forward = c2w[..., None, None, :3, :3].unbind(-1)  # (..., 1, 1, 3)
    directions = F.normalize(torch.addcmul(torch.addcmul(forward, x, right), y, down), dim=-1)
    return c2w[..., None, None, :3, 3].expand_as(directions), directions


def _is_rounding(extent: float, largest: float) -> bool:
    """Whether coordinates of magnitude ``largest`` that differ by ``extent`` differ by rounding only."""
    return extent <= _COINCIDENT_CENTRES * max(largest, 1e-12)


def local_origin(centre: Tensor, extent: float) -> Tensor:
    """(3,) float64 point relative to which float32 can hold the positions of a scene.

    Zeros, the world's own origin, if that is within 1000 extents of the scene. Otherwise the scene's centre, rounded to
    the decimal place of the extent so that the offset has few digits.

    Args:
        centre: (3,) of the scene in the world.
        extent: radius of the scene.
    """
    at = centre.detach().double().cpu()
    if not (0 < _FARTHEST_ORIGIN * extent < at.norm().item() < math.inf):
        return torch.zeros(3, dtype=torch.float64)
    places = -math.floor(math.log10(extent))
    return torch.tensor([round(value, places) for value in at.tolist()], dtype=torch.float64)


def local_origin_of(points: Tensor) -> Tensor:
    """``local_origin`` of points (N, 3), by the median of their positions and of their distances from it."""
    points = points.detach().double().cpu()
    points = points[torch.isfinite(points).all(-1)]
    if len(points) == 0:
        return torch.zeros(3, dtype=torch.float64)
    middle = points.median(0).values
    distances = (points - middle).norm(dim=-1)
    return local_origin(middle, distances.median().item() or distances.max().item() or 1.0)


def normalise(
    cameras: Cameras,
    inputs: Sequence[int] | slice | None = None,
    rule: NormalisationRule = "transformed",
    scene_scale: float = 1.0,
) -> tuple[Cameras, Similarity]:
    """Move all cameras into the unit frame of the input cameras (the frame the network works in).

    Args:
        cameras: V cameras in any world frame.
        inputs: the views that define the frame; all by default.
        rule: how the scale is measured. "transformed" is the largest absolute coordinate of an input centre after the
            rigid move: inputs are then in [-1, 1]^3, and the result does not depend on the world frame. "raw" is the
            largest absolute coordinate before it, the rule of the released two-view weights, which depends on the
            world's origin. With "transformed", coincident cameras (a single view, or a pure rotation) keep the scale of
            the world.
        scene_scale: factor on the measured scale.

    Returns:
        the cameras in the normalised frame, and the similarity that maps that frame back to the world.

    Raises:
        CameraError: no inputs; or, with "raw", all input centres are at the origin, so that there is no scale.
    """
    chosen = cameras.c2w if inputs is None else cameras.c2w[inputs]
    if chosen.shape[0] == 0:
        raise CameraError("No input camera was given to normalise by.", expected="at least one input view")
    rotation, centre = mean_pose(chosen)
    raw_extent = chosen[:, :3, 3].double().abs().max().item()
    if rule == "raw":
        extent = raw_extent
        if extent == 0.0:
            raise CameraError(
                "All input cameras lie at the world's origin, where the rule 'raw' finds no scale.",
                expected="an input centre away from the origin",
                fix="use the rule 'transformed', or move the world",
            )
    else:
        moved = (chosen[:, :3, 3].double() - centre) @ rotation
        extent = moved.abs().max().item()
        if _is_rounding(extent, raw_extent):
            extent = 1.0
    extent *= scene_scale
    to_world = Similarity(extent, rotation, centre)
    unit = to_world.inverse().apply_c2w(cameras.c2w.double()).to(cameras.c2w.dtype)
    return replace(cameras, c2w=unit), to_world
