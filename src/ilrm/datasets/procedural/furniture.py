"""Things that real places are full of: shelves with clutter, plants, chairs, desks, fences, trees, windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ilrm.datasets.procedural.objects import (
    Array,
    Primitive,
    along,
    box,
    cylinder,
    ellipsoid,
    rod,
    yaw,
)

# What a part looks like; "any" is up to whoever paints it.
Role = Literal["any", "wood", "leaf", "bark", "metal", "books", "picture", "frame", "window"]
_UP = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True)
class Part:
    """A primitive and what it is of."""

    primitive: Primitive
    role: Role = "any"


Maker = Callable[[np.random.Generator, Array, Array, float], list[Part]]


def _thing(rng: np.random.Generator, at: Array, axes: Array, size: float) -> Part:
    """Something small that stands at ``at``: a box, a can, a ball or a bowl."""
    kind = rng.random()
    turned = axes @ yaw(rng.uniform(-0.5, 0.5))
    if kind < 0.35:
        half = size * rng.uniform(0.25, 0.5, 3)
        return Part(box(at + _UP * half[2], turned, half), "picture" if rng.random() < 0.4 else "any")
    if kind < 0.75:
        high = size * rng.uniform(0.25, 0.55)
        return Part(cylinder(at + _UP * high, turned, size * rng.uniform(0.12, 0.35), high))
    half = size * rng.uniform(0.2, 0.4, 3)
    return Part(ellipsoid(at + _UP * half[2], turned, half))


def shelf(rng: np.random.Generator, at: Array, axes: Array, size: float) -> list[Part]:
    """Boards between two sides; rows of books and single things on them."""
    half = np.array([rng.uniform(0.35, 0.7), rng.uniform(0.12, 0.18), rng.uniform(0.4, 0.9)]) * max(size, 0.8)
    board = 0.012 + 0.008 * size
    sides = [
        Part(box(at + axes @ [side * half[0], 0.0, half[2]], axes, np.array([board, half[1], half[2]])), "wood")
        for side in (-1.0, 1.0)
    ]
    floors = int(rng.integers(2, 4))
    heights = np.linspace(0.04, 2 * half[2] - 2 * board, floors + 1)
    made = sides + [
        Part(box(at + axes @ [0.0, 0.0, height], axes, np.array([half[0], half[1], board])), "wood")
        for height in heights
    ]
    room = heights[1] - heights[0]
    for height in heights[:floors]:
        place = -half[0] + board
        for _ in range(int(rng.integers(1, 4))):
            left = half[0] - board - place
            if left < 0.15:
                break
            foot = height + board
            if rng.random() < 0.55:
                long = min(rng.uniform(0.1, 0.5), left / 2)
                high = room * rng.uniform(0.3, 0.45)
                books = np.array([long, half[1] * rng.uniform(0.6, 0.95), high])
                made.append(Part(box(at + axes @ [place + long, 0.0, foot + high], axes, books), "books"))
                place += 2 * long + 0.02
            else:
                across = min(0.7 * room, left)
                made.append(_thing(rng, at + axes @ [place + across / 2, 0.0, foot], axes, 0.8 * across))
                place += across
    return made


def desk(rng: np.random.Generator, at: Array, axes: Array, size: float) -> list[Part]:
    """A table with many small things on it."""
    high = rng.uniform(0.55, 0.8)
    half = np.array([rng.uniform(0.4, 0.8), rng.uniform(0.3, 0.5)]) * max(size, 0.7)
    made = [Part(box(at + _UP * high, axes, np.array([*half, 0.02])), "wood")]
    for sx, sy in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        foot = at + axes @ np.array([sx * half[0] * 0.92, sy * half[1] * 0.9, 0.0])
        made.append(Part(rod(foot, foot + _UP * high, 0.02), "metal"))
    top = at + _UP * (high + 0.02)
    for _ in range(int(rng.integers(3, 7))):
        place = axes @ np.array([*(0.85 * half * rng.uniform(-1, 1, 2)), 0.0])
        made.append(_thing(rng, top + place, axes @ yaw(rng.uniform(0, 6.3)), rng.uniform(0.12, 0.35)))
    return made


def chair(rng: np.random.Generator, at: Array, axes: Array, size: float) -> list[Part]:
    """A seat on thin legs, with a back of slats."""
    high, half, thin = rng.uniform(0.4, 0.5), rng.uniform(0.2, 0.25), rng.uniform(0.01, 0.018)
    rise = rng.uniform(0.35, 0.5)
    made = [Part(box(at + _UP * high, axes, np.array([half, half, 0.02])), "wood")]
    for sx, sy in ((-1, -1), (1, -1), (-1, 1), (1, 1)):
        foot = at + axes @ np.array([sx * half * 0.95, sy * half * 0.95, 0.0])
        made.append(Part(rod(foot, foot + _UP * (high + rise * (sy > 0)), thin), "metal"))
    for slat in range(int(rng.integers(2, 4))):
        place = at + axes @ np.array([0.0, 0.95 * half, high + rise * (0.4 + 0.28 * slat)])
        made.append(Part(box(place, axes, np.array([half, 0.01, 0.03])), "wood"))
    return made


def plant(rng: np.random.Generator, at: Array, axes: Array, size: float) -> list[Part]:
    """A pot, thin stems, and leaves as flat as discs."""
    pot = np.array([rng.uniform(0.08, 0.16), rng.uniform(0.08, 0.15)]) * max(size, 0.7)
    made = [Part(cylinder(at + _UP * pot[1], axes, pot[0], pot[1]))]
    foot = at + _UP * 2 * pot[1]
    for _ in range(int(rng.integers(2, 4))):
        tip = foot + np.array([*rng.normal(0, 0.18 * size, 2), rng.uniform(0.3, 0.9) * max(size, 0.6)])
        made.append(Part(rod(foot, tip, 0.01), "leaf"))
        for _ in range(int(rng.integers(2, 4))):
            start = foot + (tip - foot) * rng.uniform(0.4, 1.0)
            made.append(_leaf(rng, start, rng.uniform(0.08, 0.2) * max(size, 0.7)))
    return made


def _leaf(rng: np.random.Generator, start: Array, long: float) -> Part:
    """A flat ellipsoid that grows outwards from ``start``."""
    outwards = np.array([*rng.normal(size=2), rng.uniform(-0.4, 1.0)])
    side_up = along(outwards)
    turned = side_up[:, [2, 0, 1]]  # its length, its width, its thickness
    half = np.array([long, long * rng.uniform(0.3, 0.6), 0.0])
    return Part(ellipsoid(start + turned[:, 0] * long, turned, half), "leaf")


def tripod(rng: np.random.Generator, at: Array, axes: Array, size: float) -> list[Part]:
    """Three thin legs and something on top."""
    high, spread = rng.uniform(0.7, 1.5), rng.uniform(0.15, 0.35)
    top = at + _UP * high
    made = [
        Part(rod(at + axes @ np.array([spread * np.cos(turn), spread * np.sin(turn), 0.0]), top, 0.01), "metal")
        for turn in 2 * np.pi / 3 * np.arange(3)
    ]
    return [*made, _thing(rng, top, axes, rng.uniform(0.15, 0.4))]


def fence(rng: np.random.Generator, at: Array, axes: Array, size: float) -> list[Part]:
    """Posts and two rails."""
    high, apart, thin = rng.uniform(0.5, 1.0), rng.uniform(0.25, 0.5), rng.uniform(0.012, 0.03)
    posts = [at + axes @ np.array([apart * k, 0.0, 0.0]) for k in range(int(rng.integers(3, 6)))]
    made = [Part(rod(foot, foot + _UP * high, thin), "wood") for foot in posts]
    for share in (0.4, 0.85):
        made.append(Part(rod(posts[0] + _UP * share * high, posts[-1] + _UP * share * high, 0.8 * thin), "wood"))
    return made


def tree(rng: np.random.Generator, at: Array, axes: Array, size: float) -> list[Part]:
    """A trunk and a crown of a few lumps."""
    high = rng.uniform(0.8, 1.6) * max(size, 0.8)
    made = [Part(rod(at, at + _UP * high, 0.04 + 0.04 * size), "bark")]
    for _ in range(int(rng.integers(2, 5))):
        half = high * rng.uniform(0.25, 0.5, 3)
        made.append(Part(ellipsoid(at + np.array([*rng.normal(0, 0.2 * high, 2), 1.15 * high]), axes, half), "leaf"))
    return made


_INDOORS: tuple[tuple[Maker, float], ...] = ((shelf, 0.3), (desk, 0.22), (chair, 0.2), (plant, 0.2), (tripod, 0.08))
_OUTDOORS: tuple[tuple[Maker, float], ...] = ((tree, 0.35), (fence, 0.25), (plant, 0.2), (chair, 0.1), (tripod, 0.1))


def sample_furniture(rng: np.random.Generator, at: Array, size: float, indoors: bool) -> list[Part]:
    """The parts of a piece whose foot is at ``at`` (3,)."""
    makers = _INDOORS if indoors else _OUTDOORS
    chances = np.array([chance for _, chance in makers])
    maker = makers[int(rng.choice(len(makers), p=chances / chances.sum()))][0]
    return maker(rng, at, yaw(rng.uniform(0, 2 * np.pi)), size)


@dataclass(frozen=True)
class Room:
    """Half extents (3,) and centre (3,) of a room, and the direction (3,) that most cameras look into."""

    half: Array
    centre: Array
    gaze: Array


def _on_wall(rng: np.random.Generator, room: Room, half: Array) -> tuple[Array, Array]:
    """A place on one of the four walls of a room, often the one looked at, for something of half extents (3,) (depth,
    width, height), and the axes that turn it there."""
    axis, side = int(rng.integers(2)), rng.choice([-1.0, 1.0])
    if rng.random() < 0.65:
        axis = int(abs(room.gaze[1]) > abs(room.gaze[0]))
        side = 1.0 if room.gaze[axis] > 0 else -1.0
    axes = np.eye(3) if axis == 0 else np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    at = room.centre.copy()
    at[axis] += side * (room.half[axis] - half[0])
    at[1 - axis] += rng.uniform(-0.8, 0.8) * max(room.half[1 - axis] - half[1] - 0.1, 0.0)
    at[2] += rng.uniform(-0.3, 0.6) * max(room.half[2] - half[2] - 0.1, 0.0)
    return at, axes


def window(rng: np.random.Generator, room: Room) -> list[Part]:
    """An opening in a wall with its frame and bars."""
    half = np.array([0.02, rng.uniform(0.35, 1.0), rng.uniform(0.35, min(0.9, room.half[2] - 0.2))])
    at, axes = _on_wall(rng, room, half)
    made = [Part(box(at, axes, half), "window")]
    for side in (-1.0, 1.0):
        made.append(Part(box(at + axes @ [0.0, side * half[1], 0.0], axes, np.array([0.05, 0.04, half[2]])), "frame"))
        made.append(
            Part(box(at + axes @ [0.0, 0.0, side * half[2]], axes, np.array([0.06, half[1] + 0.04, 0.03])), "frame")
        )
    if rng.random() < 0.6:
        made.append(Part(box(at, axes, np.array([0.04, 0.015, half[2]])), "frame"))
    return made


def poster(rng: np.random.Generator, room: Room) -> list[Part]:
    """A picture on a wall."""
    half = np.array([0.012, *(rng.uniform(0.25, 0.6) * np.array([1.0, rng.uniform(0.7, 1.4)]))])
    at, axes = _on_wall(rng, room, half)
    return [Part(box(at, axes, half), "picture")]
