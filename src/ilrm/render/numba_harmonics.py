"""Spherical harmonics up to degree 3 and their slopes for numba kernels; ``ilrm.core.spherical_harmonics`` is
the oracle."""

from __future__ import annotations

from typing import Any

from ilrm.core import spherical_harmonics
from ilrm.render.compiling import kernel

_C0, _C1 = spherical_harmonics.C0, spherical_harmonics._C1
_C2, _C3 = spherical_harmonics._C2, spherical_harmonics._C3
Array = Any


@kernel(forceinline=True)
def fill_basis(x: float, y: float, z: float, basis: Array) -> None:
    """Write the values of the first len(basis) functions (1, 4, 9 or 16) at a unit direction."""
    basis[0] = _C0
    if len(basis) > 1:
        basis[1], basis[2], basis[3] = -_C1 * y, _C1 * z, -_C1 * x
    xx, yy, zz = x * x, y * y, z * z
    if len(basis) > 4:
        basis[4], basis[5], basis[6] = _C2[0] * x * y, _C2[1] * y * z, _C2[2] * (2 * zz - xx - yy)
        basis[7], basis[8] = _C2[3] * x * z, _C2[4] * (xx - yy)
    if len(basis) > 9:
        basis[9], basis[10] = _C3[0] * y * (3 * xx - yy), _C3[1] * x * y * z
        basis[11], basis[12] = _C3[2] * y * (4 * zz - xx - yy), _C3[3] * z * (2 * zz - 3 * xx - 3 * yy)
        basis[13], basis[14] = _C3[4] * x * (4 * zz - xx - yy), _C3[5] * z * (xx - yy)
        basis[15] = _C3[6] * x * (xx - 3 * yy)


@kernel(forceinline=True)
def direction_gradient(x: float, y: float, z: float, weights: Array) -> tuple[float, float, float]:
    """Gradient by (x, y, z) of the sum of weights times basis functions."""
    w = weights
    gx = gy = gz = 0.0
    if len(w) > 1:
        gx, gy, gz = -_C1 * w[3], -_C1 * w[1], _C1 * w[2]
    if len(w) > 4:
        a, b, c, d, e = _C2[0] * w[4], _C2[1] * w[5], _C2[2] * w[6], _C2[3] * w[7], _C2[4] * w[8]
        gx += a * y - 2 * c * x + d * z + 2 * e * x
        gy += a * x + b * z - 2 * c * y - 2 * e * y
        gz += b * y + 4 * c * z + d * x
    if len(w) > 9:
        xx, yy, zz = x * x, y * y, z * z
        a, b, c, d = _C3[0] * w[9], _C3[1] * w[10], _C3[2] * w[11], _C3[3] * w[12]
        e, f, g = _C3[4] * w[13], _C3[5] * w[14], _C3[6] * w[15]
        gx += 6 * a * x * y + b * y * z - 2 * c * x * y - 6 * d * x * z + e * (4 * zz - 3 * xx - yy)
        gx += 2 * f * x * z + g * (3 * xx - 3 * yy)
        gy += a * (3 * xx - 3 * yy) + b * x * z + c * (4 * zz - xx - 3 * yy) - 6 * d * y * z - 2 * e * x * y
        gy += -2 * f * y * z - 6 * g * x * y
        gz += b * x * y + 8 * c * y * z + d * (6 * zz - 3 * xx - 3 * yy) + 8 * e * x * z + f * (xx - yy)
    return gx, gy, gz
