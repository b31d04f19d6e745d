"""Projection of single Gaussians and its derivative, for the CPU rasteriser.

All arithmetic is float64: it costs nothing beside the memory traffic, and thin Gaussians lose no digits. The
covariance of the image is handed on as the whitening W, the inverse of its Cholesky factor: |W d|^2 equals
d^T cov^-1 d, without the cancellation of the expanded form. ``projection.py`` says the same readably; a test
holds the two together.

Layouts: a view is a float64 vector (VIEW_*), a record is a float32 row (REC_*) of one projected Gaussian.
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

_jit = kernel(forceinline=True)
_parallel = kernel(parallel=True)
Array = Any


def view_vector(view: Pinhole, near: float, far: float, antialiased: bool) -> np.ndarray:
    """A view in the layout of the kernels."""
    (low_x, high_x), (low_y, high_y) = view.jacobian_limits
    intrinsics = [view.fx, view.fy, view.cx, view.cy]
    parts = [view.w2c[:3, :3].reshape(-1).tolist(), view.w2c[:3, 3].tolist(), view.centre.tolist(), intrinsics]
    parts += [[low_x, high_x, low_y, high_y], [near, far], [view.width, view.height, antialiased]]
    return np.array([value for part in parts for value in part], dtype=np.float64)


@_jit
def _to_camera(view: Array, mean: Array) -> tuple[float, float, float]:
    m0, m1, m2 = float(mean[0]), float(mean[1]), float(mean[2])
    x = view[0] * m0 + view[1] * m1 + view[2] * m2 + view[9]
    y = view[3] * m0 + view[4] * m1 + view[5] * m2 + view[10]
    z = view[6] * m0 + view[7] * m1 + view[8] * m2 + view[11]
    return x, y, z


@_jit
def _rotation(quat: Array, out: Array) -> float:
    """Write the (3, 3) rotation of a quaternion and return the length it was divided by."""
    w, x, y, z = float(quat[0]), float(quat[1]), float(quat[2]), float(quat[3])
    length = max(math.sqrt(w * w + x * x + y * y + z * z), 1e-12)
    w, x, y, z = w / length, x / length, y / length, z / length
    out[0, 0], out[0, 1], out[0, 2] = 1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)
    out[1, 0], out[1, 1], out[1, 2] = 2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)
    out[2, 0], out[2, 1], out[2, 2] = 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)
    return length


@_jit
def _footprint(view: Array, x: float, y: float, z: float, quat: Array, scale: Array, work: Array) -> float:
    """Fill the work arrays of one Gaussian and return the quaternion's length.

    work[0:3] own axes in the world (rotation), work[3:6] the same in the camera frame, work[6:8] image axes
    P = J R diag(s) (2, 3), work[8:10] Jacobian J (2, 3).
    """
    length = _rotation(quat, work)
    for i in range(3):
        for j in range(3):
            work[3 + i, j] = view[3 * i] * work[0, j] + view[3 * i + 1] * work[1, j] + view[3 * i + 2] * work[2, j]
    fx, fy = view[_FOCAL], view[_FOCAL + 1]
    u = min(max(x / z, view[_LIMITS]), view[_LIMITS + 1])
    v = min(max(y / z, view[_LIMITS + 2]), view[_LIMITS + 3])
    work[8, 0], work[8, 1], work[8, 2] = fx / z, 0.0, -fx * u / z
    work[9, 0], work[9, 1], work[9, 2] = 0.0, fy / z, -fy * v / z
    for j in range(3):
        work[6, j] = (work[8, 0] * work[3, j] + work[8, 2] * work[5, j]) * scale[j]
        work[7, j] = (work[9, 1] * work[4, j] + work[9, 2] * work[5, j]) * scale[j]
    return length


@_jit
def _covariance(work: Array) -> tuple[float, float, float]:
    """Variances and covariance (xx, xy, yy) of the image axes work[6:8], blur included."""
    xx = work[6, 0] * work[6, 0] + work[6, 1] * work[6, 1] + work[6, 2] * work[6, 2] + BLUR
    xy = work[6, 0] * work[7, 0] + work[6, 1] * work[7, 1] + work[6, 2] * work[7, 2]
    yy = work[7, 0] * work[7, 0] + work[7, 1] * work[7, 1] + work[7, 2] * work[7, 2] + BLUR
    return xx, xy, yy


@_jit
def _whitening(xx: float, xy: float, yy: float) -> tuple[float, float, float]:
    """(w11, w21, w22) of the inverse Cholesky factor of a covariance."""
    l11 = math.sqrt(xx)
    l21 = xy / l11
    l22 = math.sqrt(yy - l21 * l21)
    return 1 / l11, -l21 / (l11 * l22), 1 / l22


@_jit
def _determinant(work: Array) -> float:
    """Determinant of the covariance without blur: the squared cross product of the image axes work[6:8]."""
    x = work[6, 1] * work[7, 2] - work[6, 2] * work[7, 1]
    y = work[6, 2] * work[7, 0] - work[6, 0] * work[7, 2]
    z = work[6, 0] * work[7, 1] - work[6, 1] * work[7, 0]
    return x * x + y * y + z * z


@_jit
def _direction(view: Array, mean: Array) -> tuple[float, float, float, float]:
    """Unit direction from the camera centre to the mean, and the distance."""
    dx, dy, dz = mean[0] - view[_CENTRE], mean[1] - view[_CENTRE + 1], mean[2] - view[_CENTRE + 2]
    length = max(math.sqrt(dx * dx + dy * dy + dz * dz), 1e-12)
    return dx / length, dy / length, dz / length, length


@_jit
def _finite(mean: Array, scale: Array, quat: Array, sh: Array) -> bool:
    """Whether all values of a Gaussian are numbers. A sum would overflow only where the image does, too."""
    check = 0.0
    for j in range(3):
        check += 0.0 * mean[j] + 0.0 * scale[j]
        for k in range(sh.shape[0]):
            check += 0.0 * sh[k, j]
    for j in range(4):
        check += 0.0 * quat[j]
    return check == 0.0


@_jit
def _colour(sh: Array, basis: Array, channel: int) -> float:
    """Colour of a channel before it is clamped at 0."""
    value = 0.5
    for k in range(sh.shape[0]):
        value += basis[k] * sh[k, channel]
    return value


@_jit
def _project_one(
    view: Array,
    mean: Array,
    scale: Array,
    quat: Array,
    opacity: float,
    sh: Array,
    work: Array,
    basis: Array,
    out: Array,
) -> bool:
    """Write the record of a Gaussian; False, with nothing written, if it reaches no pixel of the view."""
    x, y, z = _to_camera(view, mean)
    if not (view[_RANGE] <= z <= view[_RANGE + 1] and opacity >= np.float32(ALPHA_MIN)):
        return False
    if not (opacity < np.inf and _finite(mean, scale, quat, sh)):
        return False
    _footprint(view, x, y, z, quat, scale, work)
    xx, xy, yy = _covariance(work)
    w11, w21, w22 = _whitening(xx, xy, yy)
    if not (w11 > 0.0 and w22 < np.inf):
        return False
    if view[_ANTIALIASED]:
        opacity *= math.sqrt(_determinant(work)) * w11 * w22  # det W^-2 is that of the blurred covariance
        if not opacity >= np.float32(ALPHA_MIN):
            return False
    centre_x = view[_FOCAL] * x / z + view[_FOCAL + 2]
    centre_y = view[_FOCAL + 1] * y / z + view[_FOCAL + 3]
    reach = math.sqrt(2 * math.log(opacity / ALPHA_MIN)) if opacity > ALPHA_MIN else 0.0
    half_x, half_y = reach * math.sqrt(xx), reach * math.sqrt(yy)
    if abs(centre_x - 0.5 * view[_SIZE]) > 0.5 * view[_SIZE] + half_x:
        return False
    if abs(centre_y - 0.5 * view[_SIZE + 1]) > 0.5 * view[_SIZE + 1] + half_y:
        return False
    dx, dy, dz, _ = _direction(view, mean)
    fill_basis(dx, dy, dz, basis)
    out[REC_X], out[REC_Y] = centre_x, centre_y
    out[REC_W11], out[REC_W21], out[REC_W22] = w11, w21, w22
    out[REC_OPACITY], out[REC_Z] = opacity, z
    for channel in range(3):
        out[REC_RGB + channel] = max(_colour(sh, basis, channel), 0.0)
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
        work, basis = np.empty((10, 3)), np.empty(sh.shape[1])
        for i in range(share * count // _SHARES, (share + 1) * count // _SHARES):
            out = records[i]
            if _project_one(view, means[i], scales[i], quats[i], opacities[i], sh[i], work, basis, out):
                depths[i] = out[REC_Z]
    return records, depth_bits


@_jit
def _covariance_gradient(moments: Array, record: Array, out: Array) -> None:
    """Write d loss / d covariance (2, 2) = W^T M W / 2, with M the summed g y y^T."""
    w11, w21, w22 = float(record[REC_W11]), float(record[REC_W21]), float(record[REC_W22])
    m11, m12, m22 = moments[7], moments[8], moments[9]
    a, b = w11 * m11 + w21 * m12, w11 * m12 + w21 * m22  # first row of W^T M
    out[0, 0] = 0.5 * (a * w11 + b * w21)
    out[0, 1] = out[1, 0] = 0.5 * b * w22
    out[1, 1] = 0.5 * w22 * m22 * w22


@_jit
def _add_compensation_gradient(work: Array, record: Array, v_log: float, out: Array) -> None:
    """Add what flows to the covariance C (2, 2) through the compensation c = sqrt(det C / det (C + BLUR I)).

    d log c / d C = (C^-1 - (C + BLUR I)^-1) / 2; v_log is d loss / d log opacity.
    """
    xx, xy, yy = _covariance(work)
    determinant = _determinant(work)
    w11, w21, w22 = float(record[REC_W11]), float(record[REC_W21]), float(record[REC_W22])
    out[0, 0] += 0.5 * v_log * ((yy - BLUR) / determinant - (w11 * w11 + w21 * w21))
    off_diagonal = 0.5 * v_log * (-xy / determinant - w21 * w22)
    out[0, 1] += off_diagonal
    out[1, 0] += off_diagonal
    out[1, 1] += 0.5 * v_log * ((xx - BLUR) / determinant - w22 * w22)


@_jit
def _footprint_gradient(work: Array, scale: Array, v_cov: Array, v_axes: Array, v_jacobian: Array) -> None:
    """From d loss / d covariance to the camera-frame axes R diag(s) (3, 3) and to the Jacobian (2, 3).

    cov = P P^T with P = J A, hence dP = 2 dcov P, dA = J^T dP, dJ = dP A^T.
    """
    for j in range(3):
        p0 = 2 * (v_cov[0, 0] * work[6, j] + v_cov[0, 1] * work[7, j])
        p1 = 2 * (v_cov[1, 0] * work[6, j] + v_cov[1, 1] * work[7, j])
        for i in range(3):
            v_axes[i, j] = work[8, i] * p0 + work[9, i] * p1
            v_jacobian[0, i] += p0 * work[3 + i, j] * scale[j]
            v_jacobian[1, i] += p1 * work[3 + i, j] * scale[j]


@_jit
def _position_gradient(
    view: Array, x: float, y: float, z: float, v_x: float, v_y: float, v_z: float, v_jacobian: Array
) -> tuple[float, float, float]:
    """From gradients of image centre, z and Jacobian to the camera-space position."""
    fx, fy = view[_FOCAL], view[_FOCAL + 1]
    x_z, y_z = x / z, y / z
    u, v = min(max(x_z, view[_LIMITS]), view[_LIMITS + 1]), min(max(y_z, view[_LIMITS + 2]), view[_LIMITS + 3])
    v_u = -fx / z * v_jacobian[0, 2] if u == x_z else 0.0
    v_v = -fy / z * v_jacobian[1, 2] if v == y_z else 0.0
    out_x = (v_x * fx + v_u) / z
    out_y = (v_y * fy + v_v) / z
    v_inverse = fx * (v_jacobian[0, 0] - u * v_jacobian[0, 2]) + fy * (v_jacobian[1, 1] - v * v_jacobian[1, 2])
    return out_x, out_y, v_z - x_z * out_x - y_z * out_y - v_inverse / (z * z)


@_jit
def _quaternion_gradient(quat: Array, length: float, v: Array, out: Array) -> None:
    """Add d loss / d quat for a gradient v (3, 3) of the rotation, through the normalisation."""
    w, x, y, z = quat[0] / length, quat[1] / length, quat[2] / length, quat[3] / length
    g0 = 2 * (x * (v[2, 1] - v[1, 2]) + y * (v[0, 2] - v[2, 0]) + z * (v[1, 0] - v[0, 1]))
    g1 = 2 * (y * (v[0, 1] + v[1, 0]) + z * (v[0, 2] + v[2, 0]) + w * (v[2, 1] - v[1, 2]) - 2 * x * (v[1, 1] + v[2, 2]))
    g2 = 2 * (x * (v[0, 1] + v[1, 0]) + z * (v[1, 2] + v[2, 1]) + w * (v[0, 2] - v[2, 0]) - 2 * y * (v[0, 0] + v[2, 2]))
    g3 = 2 * (x * (v[0, 2] + v[2, 0]) + y * (v[1, 2] + v[2, 1]) + w * (v[1, 0] - v[0, 1]) - 2 * z * (v[0, 0] + v[1, 1]))
    along = w * g0 + x * g1 + y * g2 + z * g3
    out[0] += (g0 - w * along) / length
    out[1] += (g1 - x * along) / length
    out[2] += (g2 - y * along) / length
    out[3] += (g3 - z * along) / length


@_jit
def _colour_gradient(
    view: Array, mean: Array, sh: Array, v_colour: Array, basis: Array, weights: Array, v_mean: Array, v_sh: Array
) -> None:
    """Add the gradients of sh, and of the mean through the viewing direction."""
    dx, dy, dz, length = _direction(view, mean)
    fill_basis(dx, dy, dz, basis)
    weights[:] = 0.0
    for channel in range(3):
        if _colour(sh, basis, channel) >= 0.0:
            for k in range(len(basis)):
                v_sh[k, channel] += basis[k] * v_colour[channel]
                weights[k] += sh[k, channel] * v_colour[channel]
    if len(basis) > 1:
        gx, gy, gz = direction_gradient(dx, dy, dz, weights)
        along = gx * dx + gy * dy + gz * dz
        v_mean[0] += (gx - along * dx) / length
        v_mean[1] += (gy - along * dy) / length
        v_mean[2] += (gz - along * dz) / length


@_jit
def _unproject_one(
    view: Array,
    mean: Array,
    scale: Array,
    quat: Array,
    opacity: float,
    record: Array,
    sums: Array,
    work: Array,
    v: Array,
    out: Array,
) -> float:
    """Write d loss / d mean, scale, quat into out[0:3], [3:6], [6:10] and return d loss / d opacity.

    Scratch: work (10, 3) as in _footprint, v (10, 3): covariance, camera axes, Jacobian, rotation in the rows
    0-1, 2-4, 5-6, 7-9.
    """
    x, y, z = _to_camera(view, mean)
    length = _footprint(view, x, y, z, quat, scale, work)
    v[:] = 0.0
    out[:] = 0.0
    _covariance_gradient(sums, record, v[0:2])
    if view[_ANTIALIASED]:
        _add_compensation_gradient(work, record, sums[4], v[0:2])
    _footprint_gradient(work, scale, v[0:2], v[2:5], v[5:7])
    v_x = record[REC_W11] * sums[5] + record[REC_W21] * sums[6]
    v_y = record[REC_W22] * sums[6]
    px, py, pz = _position_gradient(view, x, y, z, v_x, v_y, sums[3], v[5:7])
    for j in range(3):
        out[j] = view[j] * px + view[3 + j] * py + view[6 + j] * pz
        for i in range(3):
            out[3 + j] += v[2 + i, j] * work[3 + i, j]
            v[7 + i, j] = (view[i] * v[2, j] + view[3 + i] * v[3, j] + view[6 + i] * v[4, j]) * scale[j]
    _quaternion_gradient(quat, length, v[7:10], out[6:10])
    return sums[4] / opacity


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
        work, v, out, sums = np.empty((10, 3)), np.empty((10, 3)), np.empty(10), np.empty(GRADIENT)
        basis, weights = np.empty(sh.shape[1]), np.empty(sh.shape[1])
        for i in range(share * count // _SHARES, (share + 1) * count // _SHARES):
            if slot_starts[i] == slot_starts[i + 1]:
                continue
            sums[:] = 0.0
            for slot in range(slot_starts[i], slot_starts[i + 1]):
                for k in range(GRADIENT):
                    sums[k] += slot_gradients[slot, k]
            v_opacities[i] += _unproject_one(
                view, means[i], scales[i], quats[i], opacities[i], records[i], sums, work, v, out
            )
            for j in range(3):
                v_means[i, j] += out[j]
                v_scales[i, j] += out[3 + j]
            for j in range(4):
                v_quats[i, j] += out[6 + j]
            seen[i] += sums[10]
            _colour_gradient(view, means[i], sh[i], sums[0:3], basis, weights, v_means[i], v_sh[i])
