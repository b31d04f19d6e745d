"""Random paints: palettes and texture parameters for the columns of the surface table."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_STYLES = ("clouds", "patches", "marble", "wood", "stripes", "checker", "tiles", "mosaic", "dots", "plain")
_CHANCES = (0.2, 0.09, 0.12, 0.15, 0.08, 0.05, 0.12, 0.08, 0.05, 0.06)


def rotation(rng: np.random.Generator) -> Array:
    """(3, 3) uniformly random rotation."""
    w, x, y, z = (q := rng.standard_normal(4)) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def palette(rng: np.random.Generator) -> Array:
    """(4, 3) matching linear RGB colours: similar hues, sometimes with an accent, more often muted than vivid."""
    hue = rng.random()
    vividness = rng.choice([0.12, 0.4, 0.8], p=[0.45, 0.4, 0.15])
    accent = rng.choice([0.0, 0.08, 0.5, 0.33])
    brightness = rng.uniform(0.35, 0.95)
    colours = []
    for k in range(4):
        h = hue + 0.05 * rng.standard_normal() + (accent if k >= 2 else 0.0)
        s = min(vividness * rng.uniform(0.5, 1.4), 0.95)
        v = np.clip(brightness + rng.uniform(-0.45, 0.3), 0.08, 0.97)
        colours.append(colorsys.hsv_to_rgb(h % 1.0, s, v))
    return np.array(colours) ** 2.2


def material(rng: np.random.Generator, size: float, style: str | None = None) -> dict[str, object]:
    """The columns of one paint, without the geometric ones, for a surface about ``size`` world units wide."""
    style = style or str(rng.choice(_STYLES, p=_CHANCES))
    wave = size * rng.uniform(0.25, 0.8)  # coarsest feature
    columns: dict[str, object] = {
        "palette": palette(rng),
        "noise": (1.0 / wave, rng.uniform(0.5, 0.85)),
        "ramp": (rng.choice([0.3, 0.6, 1.5, 5.0], p=[0.33, 0.35, 0.24, 0.08]), rng.uniform(-0.3, 0.3)),
        "patch": (
            rng.uniform(0.3, 1.3),
            rng.choice([1.0, 4.0, 12.0], p=[0.45, 0.35, 0.2]),
            rng.choice([0.0, 0.8], p=[0.55, 0.45]),
        ),
        "mix": (1.0, 0.0, 0.0, 0.0),
        "cell": (1.0 / (size * rng.uniform(0.12, 0.5)), 0.0, 0.0, 1.0),
        "line": (0.0, 0.0),
        "dot": (0.0, 0.0),
        "detail": (rng.uniform(0.02, 0.12), rng.uniform(0.03, 0.18), 0.0, rng.uniform(0.0, 0.08)),
        "gloss": (rng.choice([0.0, 0.05, 0.2], p=[0.5, 0.35, 0.15]), rng.uniform(8.0, 50.0)),
        "glow": (0.0,),
    }
    density = np.asarray(columns["cell"])[0]
    changes: dict[str, dict[str, object]] = {
        "clouds": {},
        "patches": {"ramp": (rng.uniform(5.0, 20.0), rng.uniform(-0.3, 0.3))},
        "marble": {"mix": (0.2, 1.0, 0, 0), "cell": (density, rng.uniform(0.2, 0.6), 0, 1), "ramp": (1.2, 0.0)},
        "wood": {"mix": (0.3, 0.8, 0, 0), "cell": (density, rng.uniform(0.05, 0.2), 0, 1), "ramp": (0.8, 0.0)},
        "stripes": {"mix": (0.1, 1.0, 0, 0), "ramp": (rng.uniform(1.0, 6.0), rng.uniform(-0.2, 0.2))},
        "checker": {"mix": (0.1, 0, 1.0, 0), "ramp": (1.0, 0.0)},
        "tiles": {
            "mix": (0.4, 0, 0, rng.uniform(0.0, 0.8)),
            "line": (rng.uniform(0.02, 0.06), 0.9),
            "cell": (density, 0.0, rng.choice([0.0, 0.5]), 1),
            "detail": (0.06, 0.12, rng.uniform(0.1, 0.5), 0.03),
        },
        "mosaic": {
            "mix": (0.1, 0, 0, 1.0),
            "ramp": (2.0, 0.0),
            "cell": (density, rng.uniform(0.0, 0.25), rng.choice([0.0, 0.37]), 1),
            "detail": (0.05, 0.05, 0.8, 0.03),
        },
        "dots": {"dot": (rng.uniform(0.2, 0.4), 1.0)},
        "plain": {"ramp": (0.1, 0.0), "patch": (1.0, 1.0, 0.0), "detail": (0.03, 0.04, 0.0, 0.02)},
    }
    return columns | changes[style]


def texture_map(rng: np.random.Generator, frame: Array, origin: Array, style_stretch: bool = True) -> Array:
    """(3, 4) affine map from the world to texture space of an object at ``origin`` with axes ``frame`` (columns)."""
    turn = np.eye(3)[rng.permutation(3)] if rng.random() < 0.7 else rotation(rng)
    stretch = np.ones(3)
    if style_stretch and rng.random() < 0.3:
        stretch[rng.integers(3)] = rng.uniform(0.1, 0.4)
    linear = stretch[:, None] * (turn @ frame.T)
    return np.concatenate([linear, (rng.uniform(5.0, 40.0, 3) - linear @ origin)[:, None]], axis=1)
