"""COLMAP's camera models, and undistorting photos to pinhole images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ilrm.core.errors import SceneError
from ilrm.scenes.lenses.fold import unfolded_window
from ilrm.scenes.lenses.signals import sigterm_kept

if TYPE_CHECKING:
    import pycolmap

# A photo of which less can be undistorted is refused: the calibration is probably wrong.
_LEAST_SHARE = 0.5
# As a share of the photo's side. A shorter focal length would show almost a half space in one pixel: an error.
_SHORTEST_FOCAL = 1e-6


@dataclass(frozen=True)
class Lens:
    """A COLMAP camera model; pixel centres are at +0.5, as everywhere in this package.

    Attributes:
        model: COLMAP's name of the model, for instance "PINHOLE" or "OPENCV".
        params: its parameters in COLMAP's order ("PINHOLE": fx, fy, cx, cy), in pixels.
        width, height: size of the images that the parameters refer to.
    """

    model: str
    params: tuple[float, ...]
    width: int
    height: int

    @staticmethod
    def pinhole(fx: float, fy: float, cx: float, cy: float, width: int, height: int) -> Lens:
        """A lens without distortion."""
        return Lens("PINHOLE", (fx, fy, cx, cy), width, height)

    @property
    def distorted(self) -> bool:
        return self.model != "PINHOLE"

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.width, self.height

    def matrix(self) -> np.ndarray:
        """(3, 3) float64 intrinsics of a pinhole lens."""
        assert not self.distorted, self.model
        fx, fy, cx, cy = self.params
        return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])

    def resize(self, width: int, height: int) -> Lens:
        """The lens for the same photo resized to width x height."""
        if self.size == (width, height):
            return self
        if self.distorted:
            camera = _colmap_camera(self)
            camera.rescale(width, height)
            return replace(self, params=tuple(camera.params), width=width, height=height)
        x, y = width / self.width, height / self.height
        fx, fy, cx, cy = self.params
        return Lens.pinhole(fx * x, fy * y, cx * x, cy * y, width, height)

    def undistorted(self, label: str) -> Lens:
        """The pinhole lens of the undistorted photo: same focal length, cropped so that no border is empty.

        If the distortion folds back inside the photo, it is cropped to the part inside the fold.

        Raises:
            SceneError: a model that no pinhole can represent (spherical), implausible parameters, or distortion that
                folds back so early that less than half of the photo's pixels would remain.
        """
        if not self.distorted:
            return self
        straight, share = _undistorted(self)
        if straight is None:
            raise SceneError(
                f"{label} was taken through {self}, which no pinhole camera can represent.",
                expected="a perspective or fisheye lens with plausible distortion",
                fix="calibrate the camera again; cut panoramas into perspective views first",
            )
        if share < _LEAST_SHARE:
            raise SceneError(
                f"{label} was taken through {self}, whose distortion folds back inside the photo; a pinhole camera can "
                f"show {share:.0%} of its pixels.",
                expected=f"distortion that grows outwards over at least {_LEAST_SHARE:.0%} of the photo",
                fix="calibrate again, wide lenses with more coefficients or as a fisheye; or undistort the photos",
            )
        return straight

    def kept_share(self) -> float:
        """The share of the photo's pixels that ``undistorted`` keeps inside the fold; 1 if there is no fold."""
        return _undistorted(self)[1] if self.distorted else 1.0

    def __str__(self) -> str:
        return f"the lens {self.model} ({', '.join(f'{value:g}' for value in self.params)})"


def remap(pixels: Tensor, lens: Lens, pinhole: Lens, *, nearest: bool = False) -> Tensor:
    """Undistort a photo (H, W, C) of ``lens`` to (pinhole.height, pinhole.width, C) of ``pinhole``.

    The photo may have any resolution with the lens's aspect. The result is float; bilinear unless ``nearest``.
    """
    grid = _remap_grid(lens, pinhole)
    moved = F.grid_sample(
        pixels.permute(2, 0, 1)[None].float(),
        grid[None],
        mode="nearest" if nearest else "bilinear",
        padding_mode="border",
        align_corners=False,
    )
    return moved[0].permute(1, 2, 0)


@lru_cache(maxsize=1024)
def _undistorted(lens: Lens) -> tuple[Lens | None, float]:
    """The pinhole lens (None if there is none), and the share of the photo's pixels it keeps at a fold (else 1)."""
    with sigterm_kept():
        import pycolmap

    camera = _colmap_camera(lens)
    if getattr(camera, "is_spherical", lambda: False)():  # panoramas exist since pycolmap 4
        return None, 1.0
    straight = pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), camera)
    K = straight.calibration_matrix()
    fx, fy, cx, cy = float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2])
    sides = (straight.width, straight.height)
    if not np.isfinite(K).all() or min(sides) < 2 or min(fx, fy) < _SHORTEST_FOCAL * max(sides):
        return None, 1.0
    wanted = (-cx / fx, -cy / fy, (straight.width - cx) / fx, (straight.height - cy) / fy)
    window = unfolded_window(lambda points: _project(camera, points), lens.size, (fx, fy), wanted)
    if window is None:
        return Lens.pinhole(fx, fy, cx, cy, straight.width, straight.height), 1.0
    width, height = (window.right - window.left) * fx, (window.bottom - window.top) * fy
    if min(width, height) < 2:
        return None, 0.0
    # The window is cut to whole pixels, evenly on both sides; the principal point follows.
    x, y = -window.left * fx - width % 1 / 2, -window.top * fy - height % 1 / 2
    return Lens.pinhole(fx, fy, x, y, int(width), int(height)), window.share


def _project(camera: pycolmap.Camera, points: np.ndarray) -> np.ndarray:
    """Pixels (N, 2) of points (N, 2) on the plane at distance 1."""
    return np.asarray(camera.img_from_cam(np.column_stack([points, np.ones(len(points))])))


# Only a few grids are cached: most scenes have one lens, and a grid takes 8 bytes per pixel.
@lru_cache(maxsize=4)
def _remap_grid(lens: Lens, pinhole: Lens) -> Tensor:
    """(H, W, 2) position in the photo of each undistorted pixel's centre, in [-1, 1] from corner to corner."""
    fx, fy, cx, cy = pinhole.params
    x = (np.arange(pinhole.width) + 0.5 - cx) / fx
    y = (np.arange(pinhole.height) + 0.5 - cy) / fy
    points = _project(_colmap_camera(lens), np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2))
    grid = points / [lens.width, lens.height] * 2.0 - 1.0
    return torch.from_numpy(grid.reshape(pinhole.height, pinhole.width, 2)).float()


def _colmap_camera(lens: Lens) -> pycolmap.Camera:
    with sigterm_kept():
        import pycolmap

    return pycolmap.Camera(model=lens.model, width=lens.width, height=lens.height, params=list(lens.params))
