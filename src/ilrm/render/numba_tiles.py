"""Tiles of 16x16 pixels: which Gaussians touch them, and compositing with its derivative.

A tile row is one vector of 16 lanes (``simd.py``). The transmittance of a pixel is kept negative once the pixel
has stopped, so that one comparison serves both rules. Positions in a tile's list are kept as float32, exact up to
16 million.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange
from numpy.polynomial import Chebyshev, Polynomial

from ilrm.render.compiling import kernel
from ilrm.render.numba_projection import (
    REC_HALF_X,
    REC_HALF_Y,
    REC_OPACITY,
    REC_RGB,
    REC_W11,
    REC_W21,
    REC_W22,
    REC_X,
    REC_Y,
    REC_Z,
)
from ilrm.render.rules import ALPHA_CAP, ALPHA_MIN, TRANSMITTANCE_MIN
from ilrm.render.simd import LANES, any_lane, iota, load, splat, store, total, where

TILE = LANES
_AREA = TILE * TILE
# Pixels by which extents are widened, so that rounding never drops a pixel whose alpha is ALPHA_MIN.
_SLACK = 0.01
# Pieces that the Gaussians, and the tiles, are dealt out in.
_SHARES = 64
_TILE_SHARES = 256
# Gaussians between two looks at which rows of a tile are still transparent.
_STRIDE = 32
_MIN, _CAP, _STOP = np.float32(ALPHA_MIN), np.float32(ALPHA_CAP), np.float32(TRANSMITTANCE_MIN)
_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)
# exp on [-1, 0]; relative error 1e-8, far below float32.
_EXP = tuple(np.float32(c) for c in Chebyshev.interpolate(np.exp, 6, [-1, 0]).convert(kind=Polynomial).coef)

_jit = kernel(forceinline=True)
_parallel = kernel(parallel=True)
Array = Any


@_jit
def _exp(x: Any) -> Any:
    """exp(x) lane by lane for x in [-8, 0], as the eighth power of a polynomial; exp(-8) below."""
    y = where(x > np.float32(-8), x, np.float32(-8)) * np.float32(0.125)
    p = y * _EXP[6] + _EXP[5]
    p = p * y + _EXP[4]
    p = p * y + _EXP[3]
    p = p * y + _EXP[2]
    p = p * y + _EXP[1]
    p = p * y + _EXP[0]
    p = p * p
    p = p * p
    return p * p


@_jit
def sort_by_depth(depth_bits: Array) -> Array:
    """Indices (M,) int32 of the non-zero entries in ascending order; a stable radix sort with 11-bit digits."""
    count = 0
    for bits in depth_bits:
        count += bits != 0
    keys, order = np.empty(count, np.int32), np.empty(count, np.int32)
    spare_keys, spare_order = np.empty(count, np.int32), np.empty(count, np.int32)
    position = 0
    for i in range(len(depth_bits)):
        if depth_bits[i] != 0:
            keys[position], order[position] = depth_bits[i], i
            position += 1
    for shift in (0, 11, 22):
        starts = np.zeros(2049, np.int64)
        for k in range(count):
            starts[((keys[k] >> shift) & 2047) + 1] += 1
        for digit in range(2048):
            starts[digit + 1] += starts[digit]
        for k in range(count):
            digit = (keys[k] >> shift) & 2047
            target = starts[digit]
            starts[digit] += 1
            spare_keys[target], spare_order[target] = keys[k], order[k]
        keys, spare_keys = spare_keys, keys
        order, spare_order = spare_order, order
    return order


@_jit
def _span(low: float, high: float, tiles: int) -> tuple[int, int]:
    """First and one past the last tile with a pixel centre between two positions."""
    # Limited as floats first: the extent of a huge Gaussian does not fit an integer.
    first = math.floor(max((low - 0.5 - _SLACK) / TILE, 0.0))
    last = math.floor(min((high - 0.5 + _SLACK) / TILE, tiles - 1.0)) + 1
    return max(first, 0), min(last, tiles)


@_jit
def _columns(record: Array, tile_row: int, tiles_x: int) -> tuple[int, int]:
    """Tile columns that the ellipse of a Gaussian reaches in a tile row: its exact extent within that band.

    The ellipse's right side is a concave function of the height, so within the band it is highest at the height
    of its furthest point, or at the end of the band nearest to that; the left side mirrors it through the centre.
    """
    x, y, half_x, half_y = record[REC_X], record[REC_Y], record[REC_HALF_X], record[REC_HALF_Y]
    low = max(tile_row * TILE + 0.5 - y - _SLACK, -half_y)
    high = min(tile_row * TILE + TILE - 0.5 - y + _SLACK, half_y)
    # dy / dx along the line from the centre to the furthest right point is cov_xy / cov_xx = -w21 / w22.
    furthest = -record[REC_W21] / record[REC_W22] * half_x
    right = _right_end(record, min(max(furthest, low), high))
    left = _right_end(record, min(max(furthest, -high), -low))
    return _span(x - left, x + right, tiles_x)


@_jit
def _right_end(record: Array, dy: float) -> float:
    """x of the ellipse's right side at height dy, both from its centre."""
    w11, w21, w22 = float(record[REC_W11]), float(record[REC_W21]), float(record[REC_W22])
    reach = record[REC_HALF_X] * w11
    a = w11 * w11 + w21 * w21
    root = max(reach * reach * a - w11 * w11 * w22 * w22 * dy * dy, 0.0)
    return (math.sqrt(root) - w21 * w22 * dy) / a


@_jit
def _tile_box(record: Array, tiles_x: int, tiles_y: int) -> tuple[int, int, int, int]:
    """First and one past the last tile column, then row, that the ellipse's bounding box reaches."""
    x, y, half_x, half_y = record[REC_X], record[REC_Y], record[REC_HALF_X], record[REC_HALF_Y]
    left, right = _span(x - half_x, x + half_x, tiles_x)
    top, bottom = _span(y - half_y, y + half_y, tiles_y)
    return left, right, top, bottom


@_jit
def _visit_tiles(record: Array, tiles_x: int, tiles_y: int, out: Array) -> int:
    """Number of tiles that a Gaussian reaches; written to ``out`` unless that is empty."""
    left, right, top, bottom = _tile_box(record, tiles_x, tiles_y)
    count = 0
    for row in range(top, bottom):
        first, last = left, right
        if right - left > 1 and bottom - top > 1:
            first, last = _columns(record, row, tiles_x)
        if len(out) > 0:
            for column in range(first, last):
                out[count + column - first] = row * tiles_x + column
        count += max(last - first, 0)
    return count


@_parallel
def slots_of_gaussians(records: Array, seen: Array, tiles_x: int, tiles_y: int) -> tuple[Array, Array]:
    """One slot for each pair of Gaussian and tile, those of one Gaussian together.

    Args:
        records: (N, RECORD).
        seen: (N,) 0 for those without a record.

    Returns:
        slot_starts (N + 1,): Gaussian i owns the slots slot_starts[i] : slot_starts[i + 1].
        tile_of_slot (S,).
    """
    count = len(records)
    slot_starts = np.zeros(count + 1, np.int64)
    for share in prange(_SHARES):
        nothing = np.empty(0, np.int32)
        for i in range(share * count // _SHARES, (share + 1) * count // _SHARES):
            if seen[i] != 0:
                slot_starts[i + 1] = _visit_tiles(records[i], tiles_x, tiles_y, nothing)
    for i in range(count):
        slot_starts[i + 1] += slot_starts[i]
    tile_of_slot = np.empty(slot_starts[count], np.int32)
    for share in prange(_SHARES):
        for i in range(share * count // _SHARES, (share + 1) * count // _SHARES):
            if slot_starts[i + 1] > slot_starts[i]:
                _visit_tiles(records[i], tiles_x, tiles_y, tile_of_slot[slot_starts[i] : slot_starts[i + 1]])
    return slot_starts, tile_of_slot


@_jit
def list_by_tile(slot_starts: Array, tile_of_slot: Array, order: Array, tiles: int) -> tuple[Array, Array, Array]:
    """Lists of Gaussians for every tile, in the given order (M,).

    Returns:
        tile_starts (tiles + 1,): tile t owns the entries tile_starts[t] : tile_starts[t + 1].
        members (S,): the Gaussian of each entry.
        slots (S,): the slot of each entry.
    """
    tile_starts = np.zeros(tiles + 1, np.int64)
    for tile in tile_of_slot:
        tile_starts[tile + 1] += 1
    for tile in range(tiles):
        tile_starts[tile + 1] += tile_starts[tile]
    members, slots = np.empty(len(tile_of_slot), np.int32), np.empty(len(tile_of_slot), np.int32)
    cursor = tile_starts[:-1].copy()
    for i in order:
        for slot in range(slot_starts[i], slot_starts[i + 1]):
            entry = cursor[tile_of_slot[slot]]
            cursor[tile_of_slot[slot]] += 1
            members[entry], slots[entry] = i, slot
    return tile_starts, members, slots


@_jit
def _rows(record: Array, top: int) -> tuple[int, int]:
    """First and one past the last row, counted within the tile, that the ellipse reaches."""
    y, half_y = record[REC_Y] - top - 0.5, record[REC_HALF_Y] + _SLACK
    return math.ceil(max(y - half_y, 0.0)), math.floor(min(y + half_y, TILE - 1.0)) + 1


@_jit
def _composite_one(
    record: Array, left: int, top: int, first: int, last: int, position: int, alive: Array, planes: Array
) -> None:
    """Blend one Gaussian into rows first .. last - 1 of a tile."""
    dx = iota() + np.float32(left + 0.5 - record[REC_X])
    y1 = dx * record[REC_W11]
    half_y1 = y1 * y1 * _HALF
    sheared = dx * record[REC_W21]
    opacity, red, green, blue = record[REC_OPACITY], record[REC_RGB], record[REC_RGB + 1], record[REC_RGB + 2]
    z, w22 = record[REC_Z], record[REC_W22]
    y = np.float32(record[REC_Y] - top - 0.5)
    for row in range(first, last):
        if alive[row]:
            y2 = sheared + w22 * (np.float32(row) - y)
            alpha = _exp(_ZERO - half_y1 - y2 * y2 * _HALF) * opacity
            alpha = where(alpha < _CAP, alpha, _CAP)
            alpha = where(alpha >= _MIN, alpha, _ZERO)
            at = row * TILE
            before = load(planes, at)
            after = before * (_ONE - alpha)
            goes_on = after > _STOP
            weight = where(goes_on, alpha * before, _ZERO)
            store(planes, at, where(goes_on, after, where(before > _ZERO, _ZERO - before, before)))
            store(planes, at + _AREA, load(planes, at + _AREA) + weight * red)
            store(planes, at + 2 * _AREA, load(planes, at + 2 * _AREA) + weight * green)
            store(planes, at + 3 * _AREA, load(planes, at + 3 * _AREA) + weight * blue)
            store(planes, at + 4 * _AREA, load(planes, at + 4 * _AREA) + weight * z)
            store(planes, at + 5 * _AREA, load(planes, at + 5 * _AREA) + weight)
            seen = load(planes, at + 6 * _AREA)
            store(planes, at + 6 * _AREA, where(weight > _ZERO, np.float32(position), seen))


@_jit
def _look_alive(planes: Array, alive: Array) -> bool:
    """Note which rows still have a pixel that goes on; whether there are any."""
    some = False
    for row in range(TILE):
        alive[row] = any_lane(load(planes, row * TILE) > _ZERO)
        some = some or alive[row]
    return some


@_parallel
def composite(
    records: Array,
    tile_starts: Array,
    members: Array,
    tiles_x: int,
    background: Array,
    rgb: Array,
    alpha: Array,
    depth: Array,
    transmittance: Array,
    last_seen: Array,
) -> None:
    """Fill rgb (H, W, 3), and (H, W) each: alpha, sum of weight times depth, transmittance and last_seen.

    alpha is the sum of the weights: 1 - transmittance would lose digits where little is seen.
    last_seen is the position, in its tile's list, of the last Gaussian that a pixel took; -1 if none.
    """
    height, width = transmittance.shape
    tiles = len(tile_starts) - 1
    # Strided shares, not blocks: what is crowded lies together.
    shares = min(_TILE_SHARES, tiles)
    for share in prange(shares):
        planes, alive = np.empty(7 * _AREA, np.float32), np.empty(TILE, np.bool_)
        for tile in range(share, tiles, shares):
            left, top = tile % tiles_x * TILE, tile // tiles_x * TILE
            rows, columns = min(TILE, height - top), min(TILE, width - left)
            planes[:] = _ZERO
            planes[6 * _AREA :] = -_ONE
            for row in range(TILE):
                for column in range(TILE):
                    planes[row * TILE + column] = _ONE if row < rows and column < columns else -_ONE
            start, end = tile_starts[tile], tile_starts[tile + 1]
            for entry in range(start, end):
                if (entry - start) % _STRIDE == 0 and not _look_alive(planes, alive):
                    break
                record = records[members[entry]]
                first, last = _rows(record, top)
                _composite_one(record, left, top, first, last, entry - start, alive, planes)
            for row in range(rows):
                for column in range(columns):
                    at, y, x = row * TILE + column, top + row, left + column
                    rest = abs(planes[at])
                    transmittance[y, x] = rest
                    for channel in range(3):
                        rgb[y, x, channel] = planes[at + (channel + 1) * _AREA] + rest * background[channel]
                    depth[y, x], alpha[y, x] = planes[at + 4 * _AREA], planes[at + 5 * _AREA]
                    last_seen[y, x] = planes[at + 6 * _AREA]


@_jit
def _composite_one_gradient(
    record: Array, left: int, top: int, first: int, last: int, position: int, row_last: Array, planes: Array, out: Array
) -> None:
    """Undo one Gaussian in a tile and write its image-space gradient (GRADIENT,).

    planes: transmittance T behind the Gaussian, loss B of what lies behind it (per unit of transmittance times T),
    gradients of rgb and depth, last_seen.
    """
    dx = iota() + np.float32(left + 0.5 - record[REC_X])
    y1 = dx * record[REC_W11]
    half_y1 = y1 * y1 * _HALF
    sheared = dx * record[REC_W21]
    opacity, red, green, blue = record[REC_OPACITY], record[REC_RGB], record[REC_RGB + 1], record[REC_RGB + 2]
    z, w22 = record[REC_Z], record[REC_W22]
    y = np.float32(record[REC_Y] - top - 0.5)
    zero = splat(_ZERO)
    sum_red, sum_green, sum_blue, sum_z = zero, zero, zero, zero
    sum_g, sum_gy, sum_gyy, sum_weight = zero, zero, zero, zero
    for row in range(first, last):
        if row_last[row] >= position:
            y2 = sheared + w22 * (np.float32(row) - y)
            raw = _exp(_ZERO - half_y1 - y2 * y2 * _HALF) * opacity
            at = row * TILE
            raw = where(raw >= _MIN, raw, _ZERO)
            raw = where(load(planes, at + 6 * _AREA) >= np.float32(position), raw, _ZERO)
            alpha = where(raw < _CAP, raw, _CAP)
            inverse = _ONE / (_ONE - alpha)
            before = load(planes, at) * inverse
            behind = load(planes, at + _AREA)
            v_red, v_green = load(planes, at + 2 * _AREA), load(planes, at + 3 * _AREA)
            v_blue, v_z = load(planes, at + 4 * _AREA), load(planes, at + 5 * _AREA)
            weight = alpha * before
            own = v_red * red + v_green * green + v_blue * blue + v_z * z
            g = where(raw < _CAP, (before * own - behind * inverse) * alpha, _ZERO)
            store(planes, at, before)
            store(planes, at + _AREA, behind + weight * own)
            sum_red, sum_green = sum_red + weight * v_red, sum_green + weight * v_green
            sum_blue, sum_z = sum_blue + weight * v_blue, sum_z + weight * v_z
            gy = g * y2
            sum_g, sum_gy, sum_gyy = sum_g + g, sum_gy + gy, sum_gyy + gy * y2
            sum_weight = sum_weight + weight
    out[0], out[1], out[2], out[3] = total(sum_red), total(sum_green), total(sum_blue), total(sum_z)
    # y1 depends on the lane only, so its moments need no sums of their own over the rows.
    out[4], out[5], out[6] = total(sum_g), total(sum_g * y1), total(sum_gy)
    out[7], out[8], out[9] = total(sum_g * y1 * y1), total(sum_gy * y1), total(sum_gyy)
    out[10] = total(sum_weight)


@_parallel
def composite_gradient(
    records: Array,
    tile_starts: Array,
    members: Array,
    slots: Array,
    tiles_x: int,
    background: Array,
    transmittance: Array,
    last_seen: Array,
    v_rgb: Array,
    v_alpha: Array,
    v_depth: Array,
    slot_gradients: Array,
) -> None:
    """Fill slot_gradients (S, GRADIENT), given as zeros, from the gradients of the images."""
    height, width = transmittance.shape
    tiles = len(tile_starts) - 1
    shares = min(_TILE_SHARES, tiles)
    for share in prange(shares):
        planes, row_last = np.empty(7 * _AREA, np.float32), np.empty(TILE, np.int64)
        for tile in range(share, tiles, shares):
            left, top = tile % tiles_x * TILE, tile // tiles_x * TILE
            planes[:] = _ZERO
            planes[6 * _AREA :] = -_ONE
            row_last[:] = -1
            for row in range(min(TILE, height - top)):
                for column in range(min(TILE, width - left)):
                    at, y, x = row * TILE + column, top + row, left + column
                    rest, behind = transmittance[y, x], -v_alpha[y, x]
                    for channel in range(3):
                        planes[at + (2 + channel) * _AREA] = v_rgb[y, x, channel]
                        behind += v_rgb[y, x, channel] * background[channel]
                    planes[at], planes[at + _AREA] = rest, rest * behind
                    planes[at + 5 * _AREA], planes[at + 6 * _AREA] = v_depth[y, x], last_seen[y, x]
                    row_last[row] = max(row_last[row], last_seen[y, x])
            start = tile_starts[tile]
            for position in range(row_last.max(), -1, -1):
                entry = start + position
                record = records[members[entry]]
                first, last = _rows(record, top)
                _composite_one_gradient(
                    record, left, top, first, last, position, row_last, planes, slot_gradients[slots[entry]]
                )
