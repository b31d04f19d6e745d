"""The parts of the numba rasteriser that have an exact counterpart in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import njit

from ilrm.render import numba_tiles, simd
from ilrm.render.numba_tiles import sort_by_depth


@njit
def _vector_exp(values: Any, out: Any) -> None:
    for start in range(0, len(values), simd.LANES):
        simd.store(out, start, numba_tiles._exp(simd.load(values, start)))


@njit
def _vector_arithmetic(a: Any, b: Any, out: Any) -> tuple[float, bool, bool]:
    x, y = simd.load(a, 0), simd.load(b, 16)
    simd.store(out, 0, simd.where(x <= y, x * y - 2, (x + simd.splat(np.float32(0.5))) / y))
    simd.store(out, 16, simd.iota() * y)
    return simd.total(x), simd.any_lane(x > 15), simd.any_lane(x >= 15)


@njit
def _double_arithmetic(a: Any, out: Any) -> bool:
    x, y = simd.load(a, 0), simd.load(a, 8)
    inside = (x >= 2) & (x < 6)
    simd.store(out, 0, simd.where(inside, simd.root(x * y), 1 - x / y))
    simd.store(out, 8, simd.splat(0.1) + 1)
    return simd.any_lane(inside & (y > 1e9))


def test_doubles_compute_as_numpy_does() -> None:
    a = np.concatenate([np.arange(8.0), 3 + np.cos(np.arange(8))])
    out = np.empty(16)
    assert not _double_arithmetic(a, out)
    x, y = a[:8], a[8:]
    np.testing.assert_allclose(out[:8], np.where((x >= 2) & (x < 6), np.sqrt(x * y), 1 - x / y), rtol=1e-15)
    np.testing.assert_allclose(out[8:], 1.1, rtol=1e-15)


def test_exp_has_float32_accuracy_down_to_minus_8() -> None:
    values = np.linspace(-8, 0, 4096, dtype=np.float32)
    out = np.empty_like(values)
    _vector_exp(values, out)
    np.testing.assert_allclose(out, np.exp(values.astype(np.float64)), rtol=1.5e-6)


def test_exp_stays_below_the_alpha_cutoff_further_down() -> None:
    out = np.empty(16, np.float32)
    _vector_exp(np.linspace(-1e6, -8, 16, dtype=np.float32), out)
    assert (out < 1 / 255).all()


def test_vectors_compute_as_numpy_does() -> None:
    a = np.arange(16, dtype=np.float32)
    b = np.concatenate([np.zeros(16), 8 + np.cos(np.arange(16))]).astype(np.float32)
    out = np.empty(32, np.float32)
    total, above, reaches = _vector_arithmetic(a, b, out)
    y = b[16:]
    np.testing.assert_allclose(out[:16], np.where(a <= y, a * y - 2, (a + 0.5) / y), rtol=1e-6)
    np.testing.assert_allclose(out[16:], a * y, rtol=1e-6)
    assert (total, above, reaches) == (120.0, False, True)


@pytest.mark.parametrize("count", [0, 1, 5, 3000])
def test_sort_by_depth_is_a_stable_sort_of_what_is_seen(count: int) -> None:
    draw = np.random.default_rng(count)
    depths = np.exp(draw.uniform(-4, 14, count)).astype(np.float32)
    depths[draw.random(count) < 0.3] = 0.0
    depths[count // 2 :] = depths[: count - count // 2]  # equal depths keep their order
    expected = np.argsort(depths, kind="stable")
    expected = expected[depths[expected] > 0]
    np.testing.assert_array_equal(sort_by_depth(depths.view(np.int32)), expected)


def test_tile_lists_hold_exactly_the_ellipses_that_reach_a_pixel_centre() -> None:
    """Against every pixel centre of a 5 x 4 tile image, for ellipses of all shapes; a few pass between the centres."""
    draw = np.random.default_rng(0)
    tiles_x, tiles_y, count = 5, 4, 300
    records = _random_records(draw, count, tiles_x * 16, tiles_y * 16)
    seen = np.ones(count, np.int32)
    slot_starts, tile_of_slot = numba_tiles.slots_of_gaussians(records, seen, tiles_x, tiles_y)
    reached = _tiles_by_pixels(records, tiles_x, tiles_y)
    found = np.zeros_like(reached)
    for i in range(count):
        found[i, tile_of_slot[slot_starts[i] : slot_starts[i + 1]]] = True
    assert not (reached & ~found).any()
    assert (found & ~reached).sum() < 0.1 * reached.sum()
    assert len(tile_of_slot) == found.sum()


def _random_records(draw: np.random.Generator, count: int, width: int, height: int) -> np.ndarray:
    """Records of random ellipses with reach 3; fields that tiling does not read stay 0."""
    axes = draw.normal(size=(count, 2, 2)) * np.exp(draw.uniform(-1, 3, (count, 1, 1)))
    covariance = axes @ axes.transpose(0, 2, 1) + 0.3 * np.eye(2)
    whitening = np.linalg.inv(np.linalg.cholesky(covariance))
    records = np.zeros((count, 12), np.float32)
    records[:, 0], records[:, 1] = draw.uniform(-20, width + 20, count), draw.uniform(-20, height + 20, count)
    records[:, 2], records[:, 3], records[:, 4] = whitening[:, 0, 0], whitening[:, 1, 0], whitening[:, 1, 1]
    records[:, 10], records[:, 11] = 3 * np.sqrt(covariance[:, 0, 0]), 3 * np.sqrt(covariance[:, 1, 1])
    return records


def _tiles_by_pixels(records: np.ndarray, tiles_x: int, tiles_y: int) -> np.ndarray:
    """(N, tiles) whether some pixel centre of the tile lies within reach 3."""
    y, x = np.mgrid[: tiles_y * 16, : tiles_x * 16] + 0.5
    dx, dy = x - records[:, 0, None, None], y - records[:, 1, None, None]
    w11, w21, w22 = (records[:, k, None, None] for k in (2, 3, 4))
    inside = (w11 * dx) ** 2 + (w21 * dx + w22 * dy) ** 2 <= 9
    return inside.reshape(-1, tiles_y, 16, tiles_x, 16).any((2, 4)).reshape(len(records), -1)
