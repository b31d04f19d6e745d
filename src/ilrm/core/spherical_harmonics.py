"""Real spherical harmonics up to degree 3, in the basis of 3D Gaussian Splatting."""

from __future__ import annotations

import torch
from torch import Tensor

C0 = 0.28209479177387814
_C1 = 0.4886025119029199
_C2 = (1.0925484305920792, -1.0925484305920792, 0.31539156525252005, -1.0925484305920792, 0.5462742152960396)
_C3 = (
    -0.5900435899266435,
    2.890611442640554,
    -0.4570457994644658,
    0.3731763325901154,
    -0.4570457994644658,
    1.445305721320277,
    -0.5900435899266435,
)
MAX_DEGREE = 3


def basis(directions: Tensor, degree: int) -> Tensor:
    """Values of the (degree + 1)^2 basis functions at unit directions (..., 3), as (..., K)."""
    x, y, z = directions.unbind(-1)
    values = [torch.full_like(x, C0)]
    if degree >= 1:
        values += [-_C1 * y, _C1 * z, -_C1 * x]
    if degree >= 2:
        xx, yy, zz = x * x, y * y, z * z
        values += [_C2[0] * x * y, _C2[1] * y * z, _C2[2] * (2 * zz - xx - yy), _C2[3] * x * z, _C2[4] * (xx - yy)]
    if degree >= 3:
        xx, yy, zz = x * x, y * y, z * z
        values += [
            _C3[0] * y * (3 * xx - yy),
            _C3[1] * x * y * z,
            _C3[2] * y * (4 * zz - xx - yy),
            _C3[3] * z * (2 * zz - 3 * xx - 3 * yy),
            _C3[4] * x * (4 * zz - xx - yy),
            _C3[5] * z * (xx - yy),
            _C3[6] * x * (xx - 3 * yy),
        ]
    return torch.stack(values, dim=-1)


def colours(sh: Tensor, directions: Tensor) -> Tensor:
    """Colours (..., 3) of coefficients sh (..., K, 3) seen along unit directions (..., 3): max(0, sum + 0.5)."""
    degree = int(sh.shape[-2] ** 0.5) - 1
    # Summed, not multiplied as matrices: a product of tiny ones for each Gaussian is slow on a GPU.
    return ((basis(directions, degree)[..., None] * sh).sum(-2) + 0.5).clamp_min(0.0)


def rotation_matrix(rotation: Tensor, degree: int) -> Tensor:
    """(K, K) matrix that rotates coefficients along with the world, for a world rotation (3, 3).

    The rotated function f'(d) = f(R^-1 d) is in the span of the same basis, degree by degree. Its coefficients are
    fitted to its values at more directions than there are coefficients, by least squares (exact up to rounding).
    """
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(64, 3, generator=generator, dtype=torch.float64), dim=-1)
    rotation = rotation.double().cpu()
    count = (degree + 1) ** 2
    out = torch.zeros(count, count, dtype=torch.float64)
    before, after = basis(directions @ rotation, degree), basis(directions, degree)
    for band in range(degree + 1):
        span = slice(band**2, (band + 1) ** 2)
        out[span, span] = torch.linalg.lstsq(after[:, span], before[:, span]).solution
    return out
