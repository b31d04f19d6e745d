"""Projection of Gaussians and its derivative, for the CPU rasteriser.

Eight Gaussians at a time: their numbers are packed into the lanes of vectors (``simd.py``), and what comes out is
unpacked one by one. All arithmetic is float64: thin Gaussians lose no digits. The covariance of the image is handed on
as the whitening W, the inverse of its Cholesky factor: |W d|^2 equals d^T cov^-1 d, without the cancellation of the
expanded form. ``projection.py`` says the same readably; a test holds the two together.

Layouts: a view is a float64 vector, a record is a float32 row (REC_*) of one projected Gaussian, lanes are a flat
float64 array with eight values for each number.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange

from ilrm.render.compiling import kernel
from ilrm.render.numba_harmonics import direction_gradient, fill_basis
from ilrm.render.projection import Pinhole
from ilrm.render.rules import ALPHA_MIN, BLUR
from ilrm.render.simd import WIDE_LANES, load, root, store, where

# Record: centre x, y; whitening W = [[w11, 0], [w21, w22]]; opacity (compensated if the view says so); colour; camera
# z; half extents of the ellipse within which alpha reaches ALPHA_MIN.
REC_X, REC_Y, REC_W11, REC_W21, REC_W22, REC_OPACITY, REC_RGB, REC_Z, REC_HALF_X, REC_HALF_Y = (
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    9,
    10,
    11,
)
RECORD = 12
# Image-space gradient of one Gaussian: colour, z, then sums over pixels of g, g y1, g y2, g y1^2, g y1 y2, g y2^2
# with y = W (pixel - centre) and g = d loss / d log alpha; last the sum of the blending weights, which is no gradient.
GRADIENT = 11
# View: world-to-camera rotation (9) and translation (3), camera centre (3), fx, fy, cx, cy, limits of x/z and y/z (4),
# near, far, width, height, whether opacities are compensated for the blur.
_CENTRE, _FOCAL, _LIMITS, _RANGE, _SIZE, _ANTIALIASED = 12, 15, 19, 23, 25, 27
# Pieces that the Gaussians are dealt out in.
_SHARES = 64
# Lanes: mean, scale, quaternion, opacity; for gradients also the whitening and the sums of GRADIENT.
_MEAN, _SCALE, _QUAT, _OPACITY, _WHITE, _SUMS = 0, 3, 6, 10, 11, 14
# What comes out follows: of a projection the centre, whitening, opacity, variances of x and y, and whether the Gaussian
# can be drawn; of a gradient those of mean, scale and quaternion.
_OUT = _SUMS + 10
_PROJECTED, _DRAWN = _OUT, _OUT + 8
_V_MEAN, _V_SCALE, _V_QUAT = _OUT, _OUT + 3, _OUT + 6
_ROWS = _OUT + 10

_jit = kernel(forceinline=True)
_parallel = kernel(parallel=True)
Array = Any
Lanes = Any  # eight float64


def view_vector(view: Pinhole, near: float, far: float, antialiased: bool) -> np.ndarray:
    """A view in the layout of the kernels."""
    (low_x, high_x), (low_y, high_y) = view.jacobian_limits
    intrinsics = [view.fx, view.fy, view.cx, view.cy]
    parts = [view.w2c[:3, :3].reshape(-1).tolist(), view.w2c[:3, 3].tolist(), view.centre.tolist(), intrinsics]
    parts += [[low_x, high_x, low_y, high_y], [near, far], [view.width, view.height, antialiased]]
    return np.array([value for part in parts for value in part], dtype=np.float64)


@_jit
def _row(lanes: Array, row: int) -> Lanes:
    return load(lanes, row * WIDE_LANES)


@_jit
def _three(lanes: Array, row: int) -> tuple[Lanes, Lanes, Lanes]:
    return _row(lanes, row), _row(lanes, row + 1), _row(lanes, row + 2)


@_jit
def _put(lanes: Array, row: int, value: Lanes) -> None:
    store(lanes, row * WIDE_LANES, value)


@_jit
def _clamp(x: Lanes, low: float, high: float) -> Lanes:
    x = where(x > low, x, low)
    return where(x < high, x, high)


@_jit
def _dot(a: Any, b: Any, c: Any, x: Any, y: Any, z: Any) -> Any:
    return a * x + b * y + c * z


@_jit
def _to_camera(view: Array, mean: Any) -> tuple[Any, Any, Any]:
    """Position in the camera's frame, of lanes or of one Gaussian."""
    m0, m1, m2 = mean
    x = _dot(view[0], view[1], view[2], m0, m1, m2) + view[9]
    y = _dot(view[3], view[4], view[5], m0, m1, m2) + view[10]
    z = _dot(view[6], view[7], view[8], m0, m1, m2) + view[11]
    return x, y, z


@_jit
def _unit_quaternion(lanes: Array) -> tuple[Lanes, Lanes, Lanes, Lanes, Lanes]:
    """w, x, y, z of length 1, and the length before."""
    w, (x, y, z) = _row(lanes, _QUAT), _three(lanes, _QUAT + 1)
    length = root(w * w + _dot(x, y, z, x, y, z))
    length = where(length > 1e-12, length, 1e-12)
    return w / length, x / length, y / length, z / length, length


@_jit
def _rotation(w: Lanes, x: Lanes, y: Lanes, z: Lanes) -> tuple[Any, Any, Any]:
    """The three columns of the rotation: a Gaussian's own axes in the world."""
    one = (1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y))
    two = (2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x))
    three = (2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y))
    return one, two, three


@_jit
def _turned(view: Array, axis: Any) -> Any:
    """A direction of the world in the camera's frame."""
    x, y, z = axis
    return (
        _dot(view[0], view[1], view[2], x, y, z),
        _dot(view[3], view[4], view[5], x, y, z),
        _dot(view[6], view[7], view[8], x, y, z),
    )


@_jit
def _turned_back(view: Array, x: Any, y: Any, z: Any) -> Any:
    """A direction of the camera's frame in the world."""
    return (
        _dot(view[0], view[3], view[6], x, y, z),
        _dot(view[1], view[4], view[7], x, y, z),
        _dot(view[2], view[5], view[8], x, y, z),
    )


@_jit
def _jacobian(view: Array, x: Lanes, y: Lanes, z: Lanes) -> tuple[Lanes, Lanes, Lanes, Lanes, Lanes, Lanes]:
    """u = x / z and v = y / z as far as they are followed, and of the Jacobian [[a, 0, c], [0, b, d]] a, b, c, d."""
    u = _clamp(x / z, view[_LIMITS], view[_LIMITS + 1])
    v = _clamp(y / z, view[_LIMITS + 2], view[_LIMITS + 3])
    a, b = view[_FOCAL] / z, view[_FOCAL + 1] / z
    return u, v, a, b, 0 - a * u, 0 - b * v


@_jit
def _image_axis(jacobian: Any, axis: Any, scale: Lanes) -> tuple[Lanes, Lanes]:
    """What one scaled axis of the camera's frame looks like in the image."""
    _, _, a, b, c, d = jacobian
    x, y, z = axis
    return (a * x + c * z) * scale, (b * y + d * z) * scale


@_jit
def _covariance(p: Any, q: Any, r: Any) -> tuple[Lanes, Lanes, Lanes]:
    """Variances and covariance (xx, xy, yy) of three image axes, blur included."""
    xx = _dot(p[0], q[0], r[0], p[0], q[0], r[0]) + BLUR
    xy = _dot(p[0], q[0], r[0], p[1], q[1], r[1])
    yy = _dot(p[1], q[1], r[1], p[1], q[1], r[1]) + BLUR
    return xx, xy, yy


@_jit
def _determinant(p: Any, q: Any, r: Any) -> Lanes:
    """Determinant of the covariance without blur: the squared cross product of x and y of the image axes."""
    x, y, z = q[0] * r[1] - r[0] * q[1], r[0] * p[1] - p[0] * r[1], p[0] * q[1] - q[0] * p[1]
    return _dot(x, y, z, x, y, z)


@_jit
def _image_axes(view: Array, lanes: Array) -> Any:
    """Position, Jacobian, unit quaternion with length, axes in the camera's frame, scales, and image axes."""
    position = _to_camera(view, _three(lanes, _MEAN))
    jacobian = _jacobian(view, *position)
    quaternion = _unit_quaternion(lanes)
    one, two, three = _rotation(quaternion[0], quaternion[1], quaternion[2], quaternion[3])
    axes = _turned(view, one), _turned(view, two), _turned(view, three)
    scales = _three(lanes, _SCALE)
    p = _image_axis(jacobian, axes[0], scales[0])
    q = _image_axis(jacobian, axes[1], scales[1])
    r = _image_axis(jacobian, axes[2], scales[2])
    return position, jacobian, quaternion, axes, scales, (p, q, r)


@_jit
def _project_lanes(view: Array, lanes: Array) -> None:
    """Fill the rows _PROJECTED and _DRAWN."""
    (x, y, z), _, _, _, _, (p, q, r) = _image_axes(view, lanes)
    xx, xy, yy = _covariance(p, q, r)
    # The inverse of the Cholesky factor [[l11, 0], [l21, l22]].
    l11 = root(xx)
    l21 = xy / l11
    l22 = root(yy - l21 * l21)
    w11, w21, w22 = 1 / l11, 0 - l21 / (l11 * l22), 1 / l22
    opacity = _row(lanes, _OPACITY)
    if view[_ANTIALIASED]:
        opacity = opacity * root(_determinant(p, q, r)) * w11 * w22  # det W^-2 is that of the blurred covariance
    check = 0 * xx + 0 * yy
    for row in range(_QUAT + 4):
        check = check + 0 * _row(lanes, row)  # NaN, if one of them is none or infinite
    fine = (check >= 0) & (w11 > 0) & (w22 > 0) & (w22 < np.inf) & (opacity >= np.float32(ALPHA_MIN))
    _put(lanes, _PROJECTED, view[_FOCAL] * x / z + view[_FOCAL + 2])
    _put(lanes, _PROJECTED + 1, view[_FOCAL + 1] * y / z + view[_FOCAL + 3])
    _put(lanes, _PROJECTED + 2, w11)
    _put(lanes, _PROJECTED + 3, w21)
    _put(lanes, _PROJECTED + 4, w22)
    _put(lanes, _PROJECTED + 5, opacity)
    _put(lanes, _PROJECTED + 6, xx)
    _put(lanes, _PROJECTED + 7, yy)
    _put(lanes, _DRAWN, where(fine, 1, 0))


@_jit
def _pack(lanes: Array, lane: int, mean: Array, scale: Array, quat: Array, opacity: float) -> None:
    for j in range(3):
        lanes[(_MEAN + j) * WIDE_LANES + lane] = mean[j]
        lanes[(_SCALE + j) * WIDE_LANES + lane] = scale[j]
    for j in range(4):
        lanes[(_QUAT + j) * WIDE_LANES + lane] = quat[j]
    lanes[_OPACITY * WIDE_LANES + lane] = opacity


@_jit
def _direction(view: Array, mean: Array) -> tuple[float, float, float, float]:
    """Unit direction from the camera centre to the mean, and the distance."""
    dx, dy, dz = mean[0] - view[_CENTRE], mean[1] - view[_CENTRE + 1], mean[2] - view[_CENTRE + 2]
    length = max(math.sqrt(dx * dx + dy * dy + dz * dz), 1e-12)
    return dx / length, dy / length, dz / length, length


@_jit
def _fill_basis(view: Array, mean: Array, basis: Array) -> None:
    """Spherical harmonics of the direction that a Gaussian is seen from; degree 0 has none."""
    dx, dy, dz = 0.0, 0.0, 1.0
    if len(basis) > 1:
        dx, dy, dz, _ = _direction(view, mean)
    fill_basis(dx, dy, dz, basis)


@_jit
def _colour(sh: Array, basis: Array, channel: int) -> float:
    """Colour of a channel before it is clamped at 0."""
    value = 0.5
    for k in range(sh.shape[0]):
        value += basis[k] * sh[k, channel]
    return value


@_jit
def _all_finite(sh: Array) -> bool:
    """Whether all values are numbers. A sum would overflow only where the image does, too."""
    check = 0.0
    for k in range(sh.shape[0]):
        for j in range(3):
            check += 0.0 * sh[k, j]
    return check == 0.0


@_jit
def _write_record(view: Array, lanes: Array, lane: int, mean: Array, sh: Array, basis: Array, out: Array) -> bool:
    """Write the record of a Gaussian; False, with nothing of use written, if it reaches no pixel of the view."""
    at = _PROJECTED * WIDE_LANES + lane
    opacity = lanes[at + 5 * WIDE_LANES]
    if not (lanes[_DRAWN * WIDE_LANES + lane] > 0 and _all_finite(sh)):
        return False
    reach = math.sqrt(2 * math.log(opacity / ALPHA_MIN)) if opacity > ALPHA_MIN else 0.0
    half_x = reach * math.sqrt(lanes[at + 6 * WIDE_LANES])
    half_y = reach * math.sqrt(lanes[at + 7 * WIDE_LANES])
    centre_x, centre_y = lanes[at], lanes[at + WIDE_LANES]
    if abs(centre_x - 0.5 * view[_SIZE]) > 0.5 * view[_SIZE] + half_x:
        return False
    if abs(centre_y - 0.5 * view[_SIZE + 1]) > 0.5 * view[_SIZE + 1] + half_y:
        return False
    _fill_basis(view, mean, basis)
    out[REC_X], out[REC_Y] = centre_x, centre_y
    for j in range(3):
        out[REC_W11 + j] = lanes[at + (2 + j) * WIDE_LANES]
        out[REC_RGB + j] = max(_colour(sh, basis, j), 0.0)
    out[REC_OPACITY] = opacity
    out[REC_HALF_X], out[REC_HALF_Y] = half_x, half_y
    return True


@_parallel
def project_all(
    view: Array, means: Array, scales: Array, quats: Array, opacities: Array, sh: Array
) -> tuple[Array, Array]:
    """Records (N, RECORD), and (N,) int32 the bits of z, which sort like z; 0, with no record, for unseen Gaussians."""
    count = len(means)
    records, depth_bits = np.empty((count, RECORD), np.float32), np.zeros(count, np.int32)
    depths = depth_bits.view(np.float32)
    for share in prange(_SHARES):
        lanes, basis = np.zeros(_ROWS * WIDE_LANES), np.empty(sh.shape[1])
        packed, filled = np.empty(WIDE_LANES, np.int64), 0
        stop = (share + 1) * count // _SHARES
        for i in range(share * count // _SHARES, stop):
            _, _, z = _to_camera(view, (float(means[i, 0]), float(means[i, 1]), float(means[i, 2])))
            if view[_RANGE] <= z <= view[_RANGE + 1] and np.float32(ALPHA_MIN) <= opacities[i] < np.inf:
                _pack(lanes, filled, means[i], scales[i], quats[i], opacities[i])
                records[i, REC_Z] = z
                packed[filled] = i
                filled += 1
            if filled == WIDE_LANES or (filled > 0 and i == stop - 1):
                _project_lanes(view, lanes)
                for lane in range(filled):
                    j = packed[lane]
                    if _write_record(view, lanes, lane, means[j], sh[j], basis, records[j]):
                        depths[j] = records[j, REC_Z]
                filled = 0
    return records, depth_bits


@_jit
def _covariance_gradient(view: Array, lanes: Array, image_axes: Any) -> tuple[Lanes, Lanes, Lanes]:
    """d loss / d covariance (xx, xy, yy) = W^T M W / 2, with M the summed g y y^T.

    To that is added what flows through the compensation c = sqrt(det C / det (C + BLUR I)):
    d log c / d C = (C^-1 - (C + BLUR I)^-1) / 2.
    """
    w11, w21, w22 = _three(lanes, _WHITE)
    m11, m12, m22 = _three(lanes, _SUMS + 7)
    a, b = w11 * m11 + w21 * m12, w11 * m12 + w21 * m22  # first row of W^T M
    v_xx, v_xy, v_yy = 0.5 * (a * w11 + b * w21), 0.5 * b * w22, 0.5 * w22 * m22 * w22
    if view[_ANTIALIASED]:
        p, q, r = image_axes
        xx, xy, yy = _covariance(p, q, r)
        determinant, half = _determinant(p, q, r), 0.5 * _row(lanes, _SUMS + 4)
        v_xx = v_xx + half * ((yy - BLUR) / determinant - (w11 * w11 + w21 * w21))
        v_xy = v_xy + half * (0 - xy / determinant - w21 * w22)
        v_yy = v_yy + half * ((xx - BLUR) / determinant - w22 * w22)
    return v_xx, v_xy, v_yy


@_jit
def _image_axis_gradient(v_covariance: Any, image_axis: Any) -> tuple[Lanes, Lanes]:
    """cov = P P^T, hence dP = 2 dcov P."""
    v_xx, v_xy, v_yy = v_covariance
    x, y = image_axis
    return 2 * (v_xx * x + v_xy * y), 2 * (v_xy * x + v_yy * y)


@_jit
def _axis_gradient(jacobian: Any, v: Any) -> tuple[Lanes, Lanes, Lanes]:
    """From an image axis P = J A to the scaled axis A of the camera's frame: dA = J^T dP."""
    _, _, a, b, c, d = jacobian
    return a * v[0], b * v[1], c * v[0] + d * v[1]


@_jit
def _position_gradient(view: Array, position: Any, jacobian: Any, v_centre: Any, v_z: Lanes, v_j: Any) -> Any:
    """From gradients of the image centre, z and the Jacobian's a, b, c, d to the position in the camera's frame."""
    x, y, z = position
    u, v, _, _, _, _ = jacobian
    fx, fy = view[_FOCAL], view[_FOCAL + 1]
    x_z, y_z = x / z, y / z
    followed_x = (x_z >= view[_LIMITS]) & (x_z <= view[_LIMITS + 1])
    followed_y = (y_z >= view[_LIMITS + 2]) & (y_z <= view[_LIMITS + 3])
    v_u = where(followed_x, 0 - fx / z * v_j[2], 0)
    v_v = where(followed_y, 0 - fy / z * v_j[3], 0)
    out_x = (v_centre[0] * fx + v_u) / z
    out_y = (v_centre[1] * fy + v_v) / z
    v_inverse = fx * (v_j[0] - u * v_j[2]) + fy * (v_j[1] - v * v_j[3])
    return out_x, out_y, v_z - x_z * out_x - y_z * out_y - v_inverse / (z * z)


@_jit
def _put_quaternion_gradient(lanes: Array, quaternion: Any, one: Any, two: Any, three: Any) -> None:
    """Fill _V_QUAT from gradients of the three columns of the rotation, through the normalisation."""
    w, x, y, z, length = quaternion
    skew_x, skew_y, skew_z = two[2] - three[1], three[0] - one[2], one[1] - two[0]
    even_x, even_y, even_z = two[2] + three[1], three[0] + one[2], one[1] + two[0]
    g0 = 2 * _dot(x, y, z, skew_x, skew_y, skew_z)
    g1 = 2 * (y * even_z + z * even_y + w * skew_x - 2 * x * (two[1] + three[2]))
    g2 = 2 * (x * even_z + z * even_x + w * skew_y - 2 * y * (one[0] + three[2]))
    g3 = 2 * (x * even_y + y * even_x + w * skew_z - 2 * z * (one[0] + two[1]))
    along = w * g0 + _dot(x, y, z, g1, g2, g3)
    _put(lanes, _V_QUAT, (g0 - w * along) / length)
    _put(lanes, _V_QUAT + 1, (g1 - x * along) / length)
    _put(lanes, _V_QUAT + 2, (g2 - y * along) / length)
    _put(lanes, _V_QUAT + 3, (g3 - z * along) / length)


@_jit
def _scaled(axis: Any, scale: Lanes) -> tuple[Lanes, Lanes, Lanes]:
    return axis[0] * scale, axis[1] * scale, axis[2] * scale


@_jit
def _unproject_lanes(view: Array, lanes: Array) -> None:
    """Fill the rows _V_MEAN, _V_SCALE, _V_QUAT."""
    position, jacobian, quaternion, axes, scales, image_axes = _image_axes(view, lanes)
    v_covariance = _covariance_gradient(view, lanes, image_axes)
    v_p = _image_axis_gradient(v_covariance, image_axes[0])
    v_q = _image_axis_gradient(v_covariance, image_axes[1])
    v_r = _image_axis_gradient(v_covariance, image_axes[2])
    one, two, three = _scaled(axes[0], scales[0]), _scaled(axes[1], scales[1]), _scaled(axes[2], scales[2])
    # P = J A with A the scaled axes, hence dJ = dP A^T.
    v_j = (
        _dot(v_p[0], v_q[0], v_r[0], one[0], two[0], three[0]),
        _dot(v_p[1], v_q[1], v_r[1], one[1], two[1], three[1]),
        _dot(v_p[0], v_q[0], v_r[0], one[2], two[2], three[2]),
        _dot(v_p[1], v_q[1], v_r[1], one[2], two[2], three[2]),
    )
    w11, w21, w22 = _three(lanes, _WHITE)
    sum_y1, sum_y2 = _row(lanes, _SUMS + 5), _row(lanes, _SUMS + 6)
    v_centre = w11 * sum_y1 + w21 * sum_y2, w22 * sum_y2
    v_position = _position_gradient(view, position, jacobian, v_centre, _row(lanes, _SUMS + 3), v_j)
    v_mean = _turned_back(view, v_position[0], v_position[1], v_position[2])
    v_one, v_two, v_three = (
        _axis_gradient(jacobian, v_p),
        _axis_gradient(jacobian, v_q),
        _axis_gradient(jacobian, v_r),
    )
    for j in range(3):
        _put(lanes, _V_MEAN + j, v_mean[j])
    _put(lanes, _V_SCALE, _dot(v_one[0], v_one[1], v_one[2], axes[0][0], axes[0][1], axes[0][2]))
    _put(lanes, _V_SCALE + 1, _dot(v_two[0], v_two[1], v_two[2], axes[1][0], axes[1][1], axes[1][2]))
    _put(lanes, _V_SCALE + 2, _dot(v_three[0], v_three[1], v_three[2], axes[2][0], axes[2][1], axes[2][2]))
    v_one, v_two, v_three = _scaled(v_one, scales[0]), _scaled(v_two, scales[1]), _scaled(v_three, scales[2])
    _put_quaternion_gradient(
        lanes,
        quaternion,
        _turned_back(view, v_one[0], v_one[1], v_one[2]),
        _turned_back(view, v_two[0], v_two[1], v_two[2]),
        _turned_back(view, v_three[0], v_three[1], v_three[2]),
    )


@_jit
def _colour_gradient(
    view: Array, mean: Array, sh: Array, v_colour: Array, basis: Array, weights: Array, v_mean: Array, v_sh: Array
) -> None:
    """Add the gradients of sh, and of the mean through the viewing direction."""
    _fill_basis(view, mean, basis)
    weights[:] = 0.0
    for channel in range(3):
        if _colour(sh, basis, channel) >= 0.0:
            for k in range(len(basis)):
                v_sh[k, channel] += basis[k] * v_colour[channel]
                weights[k] += sh[k, channel] * v_colour[channel]
    if len(basis) > 1:
        dx, dy, dz, length = _direction(view, mean)
        gx, gy, gz = direction_gradient(dx, dy, dz, weights)
        along = gx * dx + gy * dy + gz * dz
        v_mean[0] += (gx - along * dx) / length
        v_mean[1] += (gy - along * dy) / length
        v_mean[2] += (gz - along * dz) / length


@_jit
def _pack_sums(lanes: Array, lane: int, record: Array, slot_gradients: Array, sums: Array) -> None:
    """Whitening, and the image-space gradients of a Gaussian's slots (S, GRADIENT), summed in their order."""
    sums[:] = 0.0
    for slot in range(len(slot_gradients)):
        for k in range(GRADIENT):
            sums[k] += slot_gradients[slot, k]
    for k in range(10):
        lanes[(_SUMS + k) * WIDE_LANES + lane] = sums[k]
    for j in range(3):
        lanes[(_WHITE + j) * WIDE_LANES + lane] = record[REC_W11 + j]


@_parallel
def unproject(
    view: Array,
    means: Array,
    scales: Array,
    quats: Array,
    opacities: Array,
    sh: Array,
    records: Array,
    slot_starts: Array,
    slot_gradients: Array,
    v_means: Array,
    v_scales: Array,
    v_quats: Array,
    v_opacities: Array,
    v_sh: Array,
    seen: Array,
) -> None:
    """Add one view's gradients to those of the Gaussians, and their blending weights to ``seen`` (N,).

    Gaussian i owns the image-space gradients slot_gradients[slot_starts[i] : slot_starts[i + 1]]; they are summed in
    that order, so results do not depend on the number of threads.
    """
    count = len(means)
    for share in prange(_SHARES):
        lanes, sums = np.zeros(_ROWS * WIDE_LANES), np.empty(GRADIENT)
        basis, weights = np.empty(sh.shape[1]), np.empty(sh.shape[1])
        packed, filled = np.empty(WIDE_LANES, np.int64), 0
        stop = (share + 1) * count // _SHARES
        for i in range(share * count // _SHARES, stop):
            first, last = slot_starts[i], slot_starts[i + 1]
            if last > first:
                _pack(lanes, filled, means[i], scales[i], quats[i], opacities[i])
                _pack_sums(lanes, filled, records[i], slot_gradients[first:last], sums)
                v_opacities[i] += sums[4] / opacities[i]
                seen[i] += sums[10]
                _colour_gradient(view, means[i], sh[i], sums, basis, weights, v_means[i], v_sh[i])
                packed[filled] = i
                filled += 1
            if filled == WIDE_LANES or (filled > 0 and i == stop - 1):
                _unproject_lanes(view, lanes)
                for lane in range(filled):
                    j = packed[lane]
                    for k in range(3):
                        v_means[j, k] += lanes[(_V_MEAN + k) * WIDE_LANES + lane]
                        v_scales[j, k] += lanes[(_V_SCALE + k) * WIDE_LANES + lane]
                    for k in range(4):
                        v_quats[j, k] += lanes[(_V_QUAT + k) * WIDE_LANES + lane]
                filled = 0
