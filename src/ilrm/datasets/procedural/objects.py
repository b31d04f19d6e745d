"""Primitives and the objects composed of them (z up, standing on the floor)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ilrm.datasets.procedural.materials import rotation

Array = NDArray[np.float64]
ELLIPSOID, BOX, CYLINDER = range(3)
_UP = np.array([0.0, 0.0, 1.0])
_THINNEST = 0.008


@dataclass(frozen=True)
class Primitive:
    """One ellipsoid, box or z-cylinder: centre (3,), axes (3, 3) as columns, half extents (3,)."""

    shape: int
    centre: Array
    axes: Array
    half: Array

    def distance(self, points: Array) -> Array:
        """(V,) distance of outside points (V, 3) to the surface; for ellipsoids a lower bound."""
        local = np.abs((points - self.centre) @ self.axes)
        if self.shape == BOX:
            return np.linalg.norm(np.maximum(local - self.half, 0.0), axis=1)
        if self.shape == CYLINDER:
            radial = np.hypot(local[:, 0], local[:, 1]) - self.half[0]
            return np.hypot(np.maximum(radial, 0.0), np.maximum(local[:, 2] - self.half[2], 0.0))
        to_ball = np.linalg.norm(local, axis=1) - self.half.max()
        return np.maximum(to_ball, (np.linalg.norm(local / self.half, axis=1) - 1.0) * self.half.min())


def ellipsoid(centre: Array, axes: Array, half: Array) -> Primitive:
    return Primitive(ELLIPSOID, centre, axes, np.maximum(half, _THINNEST))


def box(centre: Array, axes: Array, half: Array) -> Primitive:
    return Primitive(BOX, centre, axes, np.maximum(half, _THINNEST))


def cylinder(centre: Array, axes: Array, radius: float, half_length: float) -> Primitive:
    return Primitive(CYLINDER, centre, axes, np.maximum([radius, radius, half_length], _THINNEST))


def rod(start: Array, end: Array, radius: float) -> Primitive:
    """A thin cylinder between two points."""
    return cylinder((start + end) / 2, along(end - start), radius, float(np.linalg.norm(end - start)) / 2)


def yaw(angle: float) -> Array:
    """(3, 3) rotation about the vertical axis."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def along(direction: Array) -> Array:
    """(3, 3) axes (columns), the third of which is along ``direction``."""
    z = direction / np.linalg.norm(direction)
    x = np.cross(z, _UP if abs(z[2]) < 0.9 else np.array([1.0, 0.0, 0.0]))
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z], axis=1)


Maker = Callable[[np.random.Generator, Array, Array, float], list[Primitive]]


def _egg(rng: np.random.Generator, at: Array, axes: Array, size: float) -> list[Primitive]:
    half = size * rng.uniform(0.25, 0.6, 3)
    return [ellipsoid(at + _UP * half[2] * rng.uniform(0.75, 1.0), axes, half)]


def _bumpy(rng: np.random.Generator, at: Array, axes: Array, size: float) -> list[Primitive]:
    """A body with bumps on its surface."""
    half = size * rng.uniform(0.25, 0.6, 3)
    centre = at + _UP * half[2]
    round_body = rng.random() < 0.6
    made = [ellipsoid(centre, axes, half) if round_body else box(centre, axes, half)]
    for _ in range(rng.integers(2, 5)):
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction) if round_body else np.abs(direction).max()
        made.append(ellipsoid(centre + axes @ (half * direction), axes, half * rng.uniform(0.12, 0.45)))
    return made


def _block(rng: np.random.Generator, at: Array, axes: Array, size: float) -> list[Primitive]:
    half = size * rng.uniform(0.25, 0.6, 3)
    return [box(at + _UP * half[2], axes, half)]


def _stack(rng: np.random.Generator, at: Array, axes: Array, size: float) -> list[Primitive]:
    half = size * rng.uniform(0.2, 0.5, 3) * np.array([1.0, 1.0, 0.6])
    made = []
    for _ in range(rng.integers(2, 4)):
        made.append(box(at + _UP * half[2], yaw(rng.uniform(0, 2 * np.pi)), half))
        at = at + _UP * 2 * half[2] + 0.1 * half[0] * np.array([*rng.normal(size=2), 0.0])
        half = half * rng.uniform(0.5, 0.95, 3)
    top = half.min() * rng.uniform(0.6, 1.0)
    return [*made, ellipsoid(at + _UP * top, axes, np.full(3, top))] if rng.random() < 0.5 else made


def _pillar(rng: np.random.Generator, at: Array, axes: Array, size: float) -> list[Primitive]:
    radius, half_height = size * rng.uniform(0.15, 0.5), size * rng.uniform(0.25, 0.9)
    return [cylinder(at + _UP * half_height, axes, radius, half_height)]


def _log(rng: np.random.Generator, at: Array, axes: Array, size: float) -> list[Primitive]:
    radius = size * rng.uniform(0.1, 0.3)
    return [cylinder(at + _UP * radius, along(axes[:, 0]), radius, size * rng.uniform(0.4, 1.0))]


def _table(rng: np.random.Generator, at: Array, axes: Array, size: float) -> list[Primitive]:
    """A board on four legs, often with an object on it, or with a back like a chair."""
    high, half = size * rng.uniform(0.5, 1.0), size * rng.uniform(0.35, 0.8, 2)
    board = np.array([*half, 0.02 + 0.03 * size])
    made = [box(at + _UP * high, axes, board)]
    for sx, sy in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        foot = at + axes @ np.array([sx * half[0] * 0.88, sy * half[1] * 0.88, 0.0])
        made.append(rod(foot, foot + _UP * high, 0.03 * size + 0.01))
    top = at + _UP * (high + board[2])
    if rng.random() < 0.4:
        back = np.array([half[0], 0.03 * size, 0.4 * size])
        made.append(box(top + axes @ np.array([0.0, half[1], 0.0]) + _UP * back[2], axes, back))
    elif rng.random() < 0.7:
        thing = (_egg, _block, _pillar)[int(rng.choice(3))]
        made += thing(rng, top + axes @ np.array([*(0.4 * half * rng.uniform(-1, 1, 2)), 0.0]), axes, 0.5 * size)
    return made


def _rods(rng: np.random.Generator, at: Array, axes: Array, size: float) -> list[Primitive]:
    made = []
    for _ in range(rng.integers(2, 5)):
        foot = at + np.array([*rng.normal(0, 0.3 * size, 2), 0.0])
        tip = foot + size * np.array([*rng.normal(0, 0.4, 2), rng.uniform(0.8, 2.0)])
        made.append(rod(foot, tip, rng.uniform(0.012, 0.04)))
    return made


def _frame(rng: np.random.Generator, at: Array, axes: Array, size: float) -> list[Primitive]:
    """A wire box: four posts and a rim."""
    half, radius = size * rng.uniform(0.35, 0.85, 3), rng.uniform(0.012, 0.03)
    signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    feet = [at + axes @ (half * np.array([sx, sy, 0.0])) for sx, sy in signs]
    top = _UP * 2.0 * half[2]
    posts = [rod(foot, foot + top, radius) for foot in feet]
    return posts + [rod(feet[k] + top, feet[k - 1] + top, radius) for k in range(4)]


def _lamp(rng: np.random.Generator, at: Array, axes: Array, size: float) -> list[Primitive]:
    high, bulb = size * rng.uniform(1.0, 2.0), size * rng.uniform(0.12, 0.3)
    return [
        cylinder(at + _UP * 0.02, axes, 0.2 * size, 0.02),
        rod(at, at + _UP * high, 0.02),
        ellipsoid(at + _UP * high, axes, bulb * np.array([1, 1, 0.8])),
    ]


def _floating(rng: np.random.Generator, at: Array, axes: Array, size: float) -> list[Primitive]:
    centre, turn = at + _UP * (size + rng.uniform(0.0, 1.2)), rotation(rng)
    half = size * rng.uniform(0.2, 0.45, 3)
    if rng.random() < 0.33:
        return [cylinder(centre, turn, half[0], half[2])]
    return [(ellipsoid if rng.random() < 0.5 else box)(centre, turn, half)]


_MAKERS: tuple[Maker, ...] = (
    *(_egg, _bumpy, _block, _stack, _pillar, _log),
    *(_table, _rods, _frame, _lamp, _floating),
)
_CHANCES = np.array([0.11, 0.1, 0.18, 0.12, 0.13, 0.05, 0.13, 0.04, 0.03, 0.05, 0.06])


def sample_object(rng: np.random.Generator, at: Array, size: float) -> list[Primitive]:
    """The primitives of one object of about ``size`` that stands at ``at`` (3,)."""
    maker = _MAKERS[int(rng.choice(len(_MAKERS), p=_CHANCES))]
    return maker(rng, at, yaw(rng.uniform(0, 2 * np.pi)), size)


def wall_panel(rng: np.random.Generator, room: Array, centre: Array) -> list[Primitive]:
    """A picture, window, cupboard or shelf on one of the four walls of a room (half extents and centre (3,))."""
    axis, side = int(rng.integers(2)), rng.choice([-1.0, 1.0])
    half = np.array([*rng.uniform(0.2, 0.9, 2), rng.choice([0.03, 0.3, 0.5, 0.8]) * rng.uniform(0.7, 1.3)])
    half[axis] = rng.choice([0.02, 0.05, 0.2], p=[0.5, 0.25, 0.25])
    at = centre + rng.uniform(-0.8, 0.8, 3) * (room - half * [1, 1, 0.8])
    at[axis] = centre[axis] + side * (room[axis] - half[axis] * 0.9)
    return [box(at, np.eye(3), half)]


def mound(rng: np.random.Generator, at: Array) -> list[Primitive]:
    """A low hill: the cap of a flat ellipsoid around ``at`` (3,)."""
    half = np.array([*rng.uniform(0.8, 3.5, 2), 0.0])
    half[2] = rng.uniform(0.06, 0.22) * half[:2].min()
    return [ellipsoid(at - _UP * rng.uniform(0.0, 0.5) * half[2], yaw(rng.uniform(0, 2 * np.pi)), half)]
