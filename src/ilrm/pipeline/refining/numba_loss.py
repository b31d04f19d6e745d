"""The photometric loss of one view and its gradient by the rendering, for the CPU; ``losses.py`` is the oracle.

SSIM blurs five maps and its gradient three, each along the rows and then along the columns. Images stay as they are,
(H, W, 3): a row is one run of 3 W numbers, in which the next pixel's value is three further on. Rows are copied to
where vectors may read beyond their end.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ilrm.evaluate.metrics import SSIM_CONSTANTS, SSIM_SAMPLE, SSIM_WINDOW, ssim_weights
from ilrm.render.compiling import kernel
from ilrm.render.simd import LANES, load, splat, store, total, where

_C1, _C2 = (np.float32(c) for c in SSIM_CONSTANTS)
_SAMPLE = np.float32(SSIM_SAMPLE)
_TAPS = ssim_weights().numpy().astype(np.float32)
_BORDER = SSIM_WINDOW - 1
_ONE, _TWO, _ZERO = np.float32(1), np.float32(2), np.float32(0)

_jit = kernel(forceinline=True)
_kernel = kernel()  # one thread: it is a fortieth of a step, and parallel loops take seconds to compile
_REACH = 3 * _BORDER
Array = Any


@_jit
def _padded(length: int) -> int:
    return (length + LANES - 1) // LANES * LANES


@_jit
def _blur_along(row: Array, out: Array, at: int, run: int) -> None:
    """Blur a row where the whole window fits: ``run`` values, a multiple of 16, written from ``at`` on."""
    for i in range(0, run, LANES):
        value = load(row, i) * _TAPS[0]
        for k in range(1, SSIM_WINDOW):
            value = value + load(row, i + 3 * k) * _TAPS[k]
        store(out, at + i, value)


@_jit
def _blur_down(rows: Array, at: int, first_tap: int, count: int, out: Array, start: int, run: int) -> None:
    """Sum of ``count`` rows of ``run`` values from ``at`` on, weighted with the taps from the given one on."""
    for i in range(0, run, LANES):
        value = splat(_ZERO)
        for k in range(count):
            value = value + load(rows, at + k * run + i) * _TAPS[first_tap + k]
        store(out, start + i, value)


@_jit
def _spread_along(row: Array, i: int) -> Any:
    """The transpose of ``_blur_along``, 16 values from ``i`` on; the row begins after as many zeros as it reaches."""
    value = load(row, i + _REACH) * _TAPS[0]
    for k in range(1, SSIM_WINDOW):
        value = value + load(row, i + _REACH - 3 * k) * _TAPS[k]
    return value


@_jit
def _similarity(m: Array, weights: Array, adjoint: Array, at: int, step: int) -> float:
    """Dissimilarity of a row of windows, and the adjoints of the blurred rendering, its square and its product.

    Args:
        m: (5 R) the blurred rendering x, photo t, x x, t t, x t.
        weights: (R,) of the windows.
        adjoint: receives R values from ``at``, ``at + step`` and ``at + 2 step`` on.
    """
    run = len(weights)
    missed = splat(_ZERO)
    for i in range(0, run, LANES):
        mx, mt = load(m, i), load(m, run + i)
        v_x = (load(m, 2 * run + i) - mx * mx) * _SAMPLE
        v_t = (load(m, 3 * run + i) - mt * mt) * _SAMPLE
        covariance = (load(m, 4 * run + i) - mx * mt) * _SAMPLE
        above1, above2 = mx * mt * _TWO + _C1, covariance * _TWO + _C2
        below1, below2 = _ONE / (mx * mx + mt * mt + _C1), _ONE / (v_x + v_t + _C2)
        below = below1 * below2
        s = above1 * above2 * below
        w = load(weights, i)
        missed = missed + w * (_ONE - s)
        slope = mx * s * (below1 - below2 * _SAMPLE) - mt * (above2 - above1 * _SAMPLE) * below
        store(adjoint, at + i, w * slope * _TWO)
        store(adjoint, at + step + i, w * s * below2 * _SAMPLE)
        store(adjoint, at + 2 * step + i, _ZERO - w * above1 * below * (_TWO * _SAMPLE))
    return total(missed)


@_jit
def _row_gradient(x: Array, t: Array, down: Array, weights: Array, l1: float, out: Array, run: int) -> float:
    """Error of a row's pixels, and the gradient of both terms.

    Args:
        x, t, weights, out: of the row, ``run`` values or more.
        down: (3, R) adjoints of the blurred maps, summed down the columns, each after zeros; empty without SSIM.
    """
    linear, squared = np.float32(l1), np.float32(1 - l1)
    missed = splat(_ZERO)
    for i in range(0, run, LANES):
        value, truth, w = load(x, i), load(t, i), load(weights, i)
        d = value - truth
        size = where(d < _ZERO, _ZERO - d, d)
        missed = missed + w * (d * d * squared + size * linear)
        sign = where(d > _ZERO, _ONE, where(d < _ZERO, -_ONE, _ZERO))
        gradient = w * (d * (_TWO * squared) + sign * linear)
        if down.shape[1] > 0:
            gradient = gradient + _spread_along(down[0], i)
            gradient = gradient + value * _spread_along(down[1], i) * _TWO
            gradient = gradient + truth * _spread_along(down[2], i)
        store(out, i, gradient)
    return total(missed)


@_jit
def _copy(row: Array, out: Array) -> None:
    for i in range(len(row)):
        out[i] = row[i]


@_jit
def _fill_weights(counted: Array, weight: float, out: Array) -> None:
    """Of the values of a row: those of places that do not count (W,) become 0."""
    for i in range(len(counted)):
        for channel in range(3):
            out[3 * i + channel] = np.float32(weight) if counted[i] else _ZERO


@_kernel
def loss_and_gradient(
    rgb: Array, truth: Array, pixels: Array, windows: Array, weights: tuple[float, float], l1: float
) -> tuple[float, Array]:
    """Loss of one view and its gradient (H, 3 W) by the rendering.

    Args:
        rgb, truth: (H, 3 W).
        pixels, windows: bool (H, W) and (H - 10, W - 10), those that count; empty if all do.
        weights: of a pixel's channel and of a window's; 0 for the second leaves SSIM out.
        l1: share of the absolute error.
    """
    height, width = rgb.shape
    similar = weights[1] != 0
    inner, inside = (height - _BORDER, width - _REACH) if similar else (0, 0)
    run = _padded(inside)
    missed, gradient = 0.0, np.empty((height, width), np.float32)
    blurred, adjoint = np.empty(5 * height * run, np.float32), np.empty(3 * inner * run, np.float32)
    # Rows are as long as vectors read, in whole vectors.
    rows = np.zeros((5, _padded(width + 2 * _REACH + LANES)), np.float32)
    x, t, product, out, weight = rows[0], rows[1], rows[2], rows[3], rows[4]
    if similar:
        for y in range(height):
            _copy(rgb[y], x)
            _copy(truth[y], t)
            _blur_along(x, blurred, y * run, run)
            _blur_along(t, blurred, (height + y) * run, run)
            for c in range(3):
                left, right = rows[c % 2], rows[(c + 1) // 2]  # x x, t t, x t
                for i in range(0, len(product), LANES):
                    store(product, i, load(left, i) * load(right, i))
                _blur_along(product, blurred, ((2 + c) * height + y) * run, run)
        m, counted = np.empty(5 * run, np.float32), np.zeros(run, np.float32)
        for i in range(inside):
            counted[i] = weights[1]
        for y in range(inner):
            for c in range(5):
                _blur_down(blurred, (c * height + y) * run, 0, SSIM_WINDOW, m, c * run, run)
            if len(windows) > 0:
                _fill_weights(windows[y], weights[1], counted)
            missed += _similarity(m, counted, adjoint, y * run, inner * run)
    down = np.zeros((3, _REACH + len(out) if similar else 0), np.float32)
    for i in range(width):
        weight[i] = weights[0]
    for y in range(height):
        _copy(rgb[y], x)
        _copy(truth[y], t)
        if similar:
            # Window row r blurs the rows r .. r + 10 with the taps 0 .. 10, which are the same backwards.
            first, last = max(y - _BORDER, 0), min(y + 1, inner)
            for c in range(3):
                tap = _BORDER - (y - first)
                _blur_down(adjoint, (c * inner + first) * run, tap, last - first, down[c], _REACH, run)
        if len(pixels) > 0:
            _fill_weights(pixels[y], weights[0], weight)
        missed += _row_gradient(x, t, down, weight, l1, out, _padded(width))
        for i in range(width):
            gradient[y, i] = out[i]
    return missed, gradient
