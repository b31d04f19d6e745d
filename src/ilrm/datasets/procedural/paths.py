"""Camera paths in a z-up world: hand-held walks and orbits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ilrm.core.poses import look_at
from ilrm.datasets.procedural.config import ProceduralConfig

Array = NDArray[np.float64]
_NEAREST_FOCUS = 1.5
_UP = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True)
class Space:
    """The box in which cameras may be, by its low and high corners (3,), and the point they look at."""

    low: Array
    high: Array
    focus: Array


def _look_at(centres: Array, target: Array, roll: Array | None = None) -> Array:
    """(V, 4, 4) camera-to-world at centres (V, 3), z up; see ``core.poses.look_at``."""
    down = torch.from_numpy(-_UP)
    turned = None if roll is None else torch.from_numpy(roll)
    return look_at(torch.from_numpy(centres), torch.from_numpy(target), down, turned).numpy()


def _wobble(rng: np.random.Generator, steps: Array, channels: int) -> Array:
    """(steps, channels) smooth random curves of about unit size: three slow sines each."""
    rate = rng.uniform(2.0, 9.0, (3, 1, channels))
    phase = rng.uniform(0.0, 2 * np.pi, (3, 1, channels))
    return np.sin(rate * steps[None, :, None] + phase).sum(0) / 1.7


def _inside(space: Space, start: Array, moves: Array) -> Array:
    """``start + moves``, with all moves scaled by one factor so that every position is inside the space."""
    with np.errstate(divide="ignore", invalid="ignore"):
        room = np.where(
            moves > 0, (space.high - start) / moves, np.where(moves < 0, (space.low - start) / moves, np.inf)
        )
    return start + moves * min(1.0, float(room.min()))


def handheld(rng: np.random.Generator, space: Space, config: ProceduralConfig) -> Array:
    """(V, 4, 4) cameras of a person who walks a few steps and looks at the focus or ahead."""
    steps = np.linspace(-0.5, 0.5, config.views) if config.views > 1 else np.zeros(1)
    candidates = rng.uniform(space.low, space.high, (20, 3))
    distances = np.linalg.norm((space.focus - candidates)[:, :2], axis=1)
    # The first candidate that is far enough from the focus, else the farthest.
    chosen = int(np.argmax(np.minimum(distances, _NEAREST_FOCUS)))
    start, distance = candidates[chosen], float(distances[chosen])
    target = space.focus + rng.normal(0.0, 0.25, 3) * np.array([1.0, 1.0, 0.5])
    ahead = (target - start) / np.linalg.norm(target - start)
    side = np.cross(ahead, _UP)
    side /= np.linalg.norm(side)
    weights = rng.choice([0, 1, 2], p=[0.5, 0.25, 0.25])
    direction = [side, ahead, side * rng.normal() + ahead * rng.normal() + _UP * 0.4 * rng.normal()][int(weights)]
    direction = direction / np.linalg.norm(direction)
    low, high = config.baseline
    length = distance * np.exp(rng.uniform(np.log(max(low, 1e-3)), np.log(max(high, 1e-3))))
    if weights == 1:
        length = min(length, 0.6 * distance)
    bend = rng.normal(0.0, 0.25) * (steps**2 - 0.125)[:, None] * ahead
    moves = length * (steps[:, None] * direction + bend + 0.04 * _wobble(rng, steps, 3) * (config.views > 1))
    centres = _inside(space, start, moves)
    follow = rng.uniform(0.0, 0.8)  # 0 looks at the target, 1 straight ahead
    gaze = target + follow * (centres - start) + 0.03 * distance * _wobble(rng, steps, 3)
    roll = rng.normal(0.0, 0.03) + 0.015 * _wobble(rng, steps, 1)[:, 0]
    return _look_at(centres, gaze, roll)


def orbit(rng: np.random.Generator, space: Space, config: ProceduralConfig) -> Array:
    """(V, 4, 4) cameras on an arc around the focus, up to a full turn."""
    reach = np.minimum(space.high[:2] - space.focus[:2], space.focus[:2] - space.low[:2]).min()
    radius = rng.uniform(0.75, 1.0) * reach
    low, high = config.baseline
    arc = min(np.exp(rng.uniform(np.log(max(low, 1e-3)), np.log(max(high, 1e-3)))) * rng.choice([1.0, 4.0]), 2 * np.pi)
    closed = arc > 2 * np.pi - 1e-3
    angles = rng.uniform(0, 2 * np.pi) + arc * np.linspace(0.0, 1.0, config.views, endpoint=not closed)
    height = rng.uniform(space.low[2], space.high[2])
    steps = np.linspace(-0.5, 0.5, config.views)
    heights = np.clip(height + 0.15 * radius * rng.normal() * _wobble(rng, steps, 1)[:, 0], space.low[2], space.high[2])
    centres = np.stack([space.focus[0] + radius * np.cos(angles), space.focus[1] + radius * np.sin(angles), heights], 1)
    target = space.focus + rng.normal(0.0, 0.1, 3)
    return _look_at(centres, target)
