"""The region in which a distortion model is invertible.

Distortion polynomials fold back at some radius: rays beyond it are projected into the photo again. Let q(p) be the
pixel of a point p on the plane at distance 1 in front of the camera. The model is valid around the optical axis as far
as det dq/dp > 0. Beyond, the formula still gives a pixel, but the photo shows something else there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# (N, 2) points of the plane to (N, 2) pixels; pixel centres at +0.5.
Projection = Callable[[np.ndarray], np.ndarray]

_ANGLES, _RADII = 96, 256
_CELLS = 160
_STEP = 1e-5
# At the fold the undistorted photo is stretched without bound in the radial direction. A pixel there counts as valid
# only if its radial scale is at least this share of the tangential one.
_LEAST_RADIAL = 0.1


@dataclass(frozen=True)
class Window:
    """A rectangle of the plane, and the share of the photo's pixels that lie in it."""

    left: float
    top: float
    right: float
    bottom: float
    share: float


def unfolded_window(
    project: Projection, size: tuple[int, int], focal: tuple[float, float], wanted: tuple[float, float, float, float]
) -> Window | None:
    """The window to show if the model folds back within the wanted one; None if it does not.

    It is the valid rectangle that contains most of the photo's pixels, at most twice the photo's size.

    Args:
        project: the lens.
        size: (width, height) of its photos.
        focal: (fx, fy) of the undistorted pinhole camera.
        wanted: left, top, right, bottom on the plane.
    """
    with np.errstate(all="ignore"):  # a model may overflow far outside, where it is not valid anyway
        return _unfolded_window(project, size, focal, wanted)


def _unfolded_window(
    project: Projection, size: tuple[int, int], focal: tuple[float, float], wanted: tuple[float, float, float, float]
) -> Window | None:
    width, height = size[0] / focal[0], size[1] / focal[1]
    reach = float(np.hypot(max(width, *np.abs(wanted[::2])), max(height, *np.abs(wanted[1::2]))))
    corners = np.array([(x, y) for x in wanted[::2] for y in wanted[1::2]])
    # The sides and diagonals of the wanted window: the valid region is star-shaped, so its inside need not be tested.
    edges = np.concatenate([np.linspace(a, b, 50) for a in corners for b in corners])
    if _inside(edges, _fold_radii(project, reach, 0.0), reach).all():
        return None
    fold_radii = _fold_radii(project, reach, _LEAST_RADIAL)
    x, y = (np.linspace(-min(half, fold_radii.max()), min(half, fold_radii.max()), _CELLS) for half in (width, height))
    points = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    pixels = project(points)
    valid = _inside(points, fold_radii, reach) & ((pixels >= 0) & (pixels <= size)).all(-1)
    area = np.where(valid, np.abs(_determinants(project, points)), 0.0) * (x[1] - x[0]) * (y[1] - y[0])
    if not valid.any():
        return Window(0.0, 0.0, 0.0, 0.0, 0.0)
    middle = np.where(valid, np.linalg.norm(pixels - np.array(size) / 2, axis=-1), np.inf).argmin()
    rows = _best_rectangle(valid.reshape(_CELLS, _CELLS), area.reshape(_CELLS, _CELLS), divmod(int(middle), _CELLS))
    top, bottom, left, right, covered = rows
    left, top, right, bottom = (float(value) for value in (x[left], y[top], x[right], y[bottom]))
    return Window(left, top, right, bottom, covered / (size[0] * size[1]))


def _determinants(project: Projection, points: np.ndarray) -> np.ndarray:
    """det dq/dp (N,) by central differences; NaN where the model is undefined."""
    columns = [(project(points + step) - project(points - step)) / (2 * _STEP) for step in _STEP * np.eye(2)]
    return columns[0][:, 0] * columns[1][:, 1] - columns[0][:, 1] * columns[1][:, 0]


def _fold_radii(project: Projection, reach: float, least_radial: float) -> np.ndarray:
    """The radius at which the model folds back, in _ANGLES directions; infinity where it does not within ``reach``."""
    angles = np.arange(_ANGLES) * (2 * np.pi / _ANGLES)
    radii = reach * (np.arange(_RADII) + 1.0) / _RADII
    points = (radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], -1)[:, None]).reshape(-1, 2)
    stretch = np.linalg.norm(project(points) - project(np.zeros((1, 2))), axis=-1) / np.linalg.norm(points, axis=-1)
    holds = _determinants(project, points) > least_radial * stretch**2  # false for NaN
    upright = np.logical_and.accumulate(holds.reshape(_ANGLES, _RADII), axis=1)
    return np.where(upright.all(1), np.inf, upright.sum(1) * (reach / _RADII))


def _inside(points: np.ndarray, fold_radii: np.ndarray, reach: float) -> np.ndarray:
    """Whether points are closer to the axis than the fold in both neighbouring directions."""
    place = np.arctan2(points[:, 1], points[:, 0]) * (_ANGLES / (2 * np.pi))
    before, after = fold_radii[np.floor(place).astype(int) % _ANGLES], fold_radii[np.ceil(place).astype(int) % _ANGLES]
    return np.linalg.norm(points, axis=-1) <= np.minimum(before, after)


def _best_rectangle(valid: np.ndarray, area: np.ndarray, middle: tuple[int, int]) -> tuple[int, int, int, int, float]:
    """First and last row, first and last column, and area of the largest all-valid rectangle that contains a cell.

    For each top row, the rectangle is widened to the left and right as far as all rows down to each bottom row allow;
    areas come from a summed-area table.
    """
    row, column = middle
    sums = np.pad(area, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    best = (row, row, column, column, 0.0)
    for top in range(row, -1, -1):
        if not valid[top, column]:
            break
        held = np.logical_and.accumulate(valid[top:], axis=0)[row - top :]
        held = held[held[:, column]]  # bottom rows, down to where the middle column becomes invalid
        bottoms = np.arange(row, row + len(held))
        lefts = column - _run(held[:, column::-1]) + 1
        rights = column + _run(held[:, column:]) - 1
        covered = sums[bottoms + 1, rights + 1] - sums[top, rights + 1] - sums[bottoms + 1, lefts] + sums[top, lefts]
        if len(covered) and covered.max() > best[-1]:
            k = int(covered.argmax())
            best = (top, int(bottoms[k]), int(lefts[k]), int(rights[k]), float(covered[k]))
    return best


def _run(held: np.ndarray) -> np.ndarray:
    """The number of leading true values in each row."""
    return np.where(held.all(1), held.shape[1], (~held).argmax(1))
