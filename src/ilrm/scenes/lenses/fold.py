"""Where a lens model holds: distortion polynomials turn back at some radius; rays beyond land on the picture again.

A point p of the plane at distance 1 in front of the camera goes to the pixel q(p). The model holds around the axis as
far as det dq/dp > 0; beyond, the photo has nothing to show, although the formula gives a place in it.
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
# Near the turn the photo is stretched without bound: a pixel's radial size has to be so much of its tangential one.
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
    """The part of the plane to be shown instead, where the model turns back within the wanted one; None if it holds.

    It is the rectangle with most of the photo's pixels, at most twice the photo's size.

    Args:
        project: the lens.
        size: (width, height) of its photos.
        focal: (fx, fy) of the pinhole to be.
        wanted: left, top, right, bottom.
    """
    with np.errstate(all="ignore"):  # a model may overflow far outside; it does not hold there
        return _unfolded_window(project, size, focal, wanted)


def _unfolded_window(
    project: Projection, size: tuple[int, int], focal: tuple[float, float], wanted: tuple[float, float, float, float]
) -> Window | None:
    width, height = size[0] / focal[0], size[1] / focal[1]
    reach = float(np.hypot(max(width, *np.abs(wanted[::2])), max(height, *np.abs(wanted[1::2]))))
    corners = np.array([(x, y) for x in wanted[::2] for y in wanted[1::2]])
    edges = np.concatenate([np.linspace(a, b, 50) for a in corners for b in corners])
    if _inside(edges, _turning_radii(project, reach, 0.0), reach).all():
        return None
    turns = _turning_radii(project, reach, _LEAST_RADIAL)
    x, y = (np.linspace(-min(half, turns.max()), min(half, turns.max()), _CELLS) for half in (width, height))
    points = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    pixels = project(points)
    valid = _inside(points, turns, reach) & ((pixels >= 0) & (pixels <= size)).all(-1)
    area = np.where(valid, np.abs(_determinants(project, points)), 0.0) * (x[1] - x[0]) * (y[1] - y[0])
    if not valid.any():
        return Window(0.0, 0.0, 0.0, 0.0, 0.0)
    middle = np.where(valid, np.linalg.norm(pixels - np.array(size) / 2, axis=-1), np.inf).argmin()
    rows = _best_rectangle(valid.reshape(_CELLS, _CELLS), area.reshape(_CELLS, _CELLS), divmod(int(middle), _CELLS))
    top, bottom, left, right, covered = rows
    left, top, right, bottom = (float(value) for value in (x[left], y[top], x[right], y[bottom]))
    return Window(left, top, right, bottom, covered / (size[0] * size[1]))


def _determinants(project: Projection, points: np.ndarray) -> np.ndarray:
    """det dq/dp (N,) by central differences; NaN where the model has no answer."""
    columns = [(project(points + step) - project(points - step)) / (2 * _STEP) for step in _STEP * np.eye(2)]
    return columns[0][:, 0] * columns[1][:, 1] - columns[0][:, 1] * columns[1][:, 0]


def _turning_radii(project: Projection, reach: float, least_radial: float) -> np.ndarray:
    """The radius at which the model turns back, for directions all around (_ANGLES,); ``reach`` where it does not."""
    angles = np.arange(_ANGLES) * (2 * np.pi / _ANGLES)
    radii = reach * (np.arange(_RADII) + 1.0) / _RADII
    points = (radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], -1)[:, None]).reshape(-1, 2)
    stretch = np.linalg.norm(project(points) - project(np.zeros((1, 2))), axis=-1) / np.linalg.norm(points, axis=-1)
    holds = _determinants(project, points) > least_radial * stretch**2  # NaN does not
    upright = np.logical_and.accumulate(holds.reshape(_ANGLES, _RADII), axis=1)
    return np.where(upright.all(1), np.inf, upright.sum(1) * (reach / _RADII))


def _inside(points: np.ndarray, turns: np.ndarray, reach: float) -> np.ndarray:
    """Whether points lie nearer to the axis than the turn in both neighbouring directions."""
    place = np.arctan2(points[:, 1], points[:, 0]) * (_ANGLES / (2 * np.pi))
    before, after = turns[np.floor(place).astype(int) % _ANGLES], turns[np.ceil(place).astype(int) % _ANGLES]
    return np.linalg.norm(points, axis=-1) <= np.minimum(before, after)


def _best_rectangle(valid: np.ndarray, area: np.ndarray, middle: tuple[int, int]) -> tuple[int, int, int, int, float]:
    """First and last row, first and last column, and area of the all-valid rectangle around a cell with most area."""
    row, column = middle
    sums = np.pad(area, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    best = (row, row, column, column, 0.0)
    for top in range(row, -1, -1):
        if not valid[top, column]:
            break
        held = np.logical_and.accumulate(valid[top:], axis=0)[row - top :]
        held = held[held[:, column]]  # last rows row ... as far as the column goes
        bottoms = np.arange(row, row + len(held))
        lefts = column - _run(held[:, column::-1]) + 1
        rights = column + _run(held[:, column:]) - 1
        covered = sums[bottoms + 1, rights + 1] - sums[top, rights + 1] - sums[bottoms + 1, lefts] + sums[top, lefts]
        if len(covered) and covered.max() > best[-1]:
            k = int(covered.argmax())
            best = (top, int(bottoms[k]), int(lefts[k]), int(rights[k]), float(covered[k]))
    return best


def _run(held: np.ndarray) -> np.ndarray:
    """How many leading values of each row are true."""
    return np.where(held.all(1), held.shape[1], (~held).argmax(1))
