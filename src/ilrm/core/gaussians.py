"""3D Gaussians as immutable values in physical units, in the scene's own world frame.

Positions are single precision, which world coordinates like UTM or ECEF would exhaust. They are therefore counted from
a point of the world, ``origin``, that is known in float64; zeros wherever the scene is near the world's own origin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F

from ilrm.core import spherical_harmonics
from ilrm.core.cameras import Similarity
from ilrm.core.errors import GaussiansError

# The fields that have an entry for each Gaussian.
PER_GAUSSIAN = ("means", "scales", "quats", "opacities", "sh")
# Rotations count as equal where the quaternions' cosine is this near to 1 or -1 (the released threshold).
_SAME_ROTATION = 4 * torch.finfo(torch.float64).eps
_WORLD_ORIGIN = torch.zeros(3, dtype=torch.float64)


class GsplatArguments(TypedDict):
    """What ``Gaussians.to_gsplat`` gives, by the names that ``gsplat.rasterization`` has for it.

    Attributes:
        means: (..., N, 3).
        quats: (..., N, 4) unit, wxyz.
        scales: (..., N, 3) standard deviations.
        opacities: (..., N) in [0, 1].
        colors: (..., N, K, 3) SH coefficients.
        sh_degree: 0 to 3.
        rasterize_mode: "antialiased" or "classic".
    """

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor
    sh_degree: int
    rasterize_mode: Literal["antialiased", "classic"]


class NoSuchGaussian(GaussiansError, IndexError):
    """An index out of range; ends loops like any IndexError."""


@dataclass(frozen=True, eq=False)
class Gaussians:
    """N Gaussians, optionally with leading batch dimensions.

    Like a tensor, they have the length of their first dimension and are indexed along it: Gaussians, or the batch
    elements of a batch.

    Attributes:
        means: (..., N, 3) centres in world units, counted from ``origin``: the place in the world is origin + means.
        scales: (..., N, 3) standard deviations along the own axes in world units (linear, positive).
        quats: (..., N, 4) unit quaternions (w, x, y, z) that turn the own axes into the world.
        opacities: (..., N) in [0, 1].
        sh: (..., N, K, 3) spherical-harmonics coefficients, K = (degree + 1)^2; colour = max(0, basis . sh + 0.5).
        origin: (3,) float64 on the CPU, the point of the world where means are 0; one for all batch elements.
        antialiased: made to be rendered with compensated opacity (Mip-Splatting's screen-space filter): what the blur
            of the renderer adds to a splat's area is taken from its opacity; see ``ilrm.render.rules``.
    """

    means: Tensor
    scales: Tensor
    quats: Tensor
    opacities: Tensor
    sh: Tensor
    origin: Tensor = _WORLD_ORIGIN
    antialiased: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        shape = tuple(self.means.shape[:-1])
        expected = {"means": (*shape, 3), "scales": (*shape, 3), "quats": (*shape, 4), "opacities": shape}
        for name, size in expected.items():
            if tuple(getattr(self, name).shape) != size or len(shape) == 0:
                raise GaussiansError(
                    f"Gaussians were given {name} of shape {tuple(getattr(self, name).shape)}.",
                    expected=f"{size}, to go with means {tuple(self.means.shape)}",
                )
        # The default is right, and a real tensor even where all others only pretend to hold values (estimates).
        if self.origin is not _WORLD_ORIGIN:
            if tuple(self.origin.shape) != (3,) or not torch.isfinite(self.origin).all():
                given = self.origin.tolist()
                raise GaussiansError(f"Gaussians were given the origin {given}.", expected="three finite numbers")
            object.__setattr__(self, "origin", self.origin.detach().to("cpu", torch.float64))
        coefficients = self.sh.shape[-2] if self.sh.ndim >= 2 else 0
        if tuple(self.sh.shape) != (*shape, coefficients, 3) or coefficients not in (1, 4, 9, 16):
            raise GaussiansError(
                f"Gaussians were given sh of shape {tuple(self.sh.shape)}.",
                expected=f"{(*shape, 'K', 3)} with K = 1, 4, 9 or 16 (degree 0 to 3)",
            )

    def __len__(self) -> int:
        return self.means.shape[0]

    def __iter__(self) -> Iterator[Gaussians]:
        return (self[index] for index in range(len(self)))

    @property
    def batch_shape(self) -> torch.Size:
        """The leading dimensions; empty for one set."""
        return self.means.shape[:-2]

    @property
    def count(self) -> int:
        """N, the number of Gaussians (of one batch element)."""
        return self.means.shape[-2]

    @property
    def sh_degree(self) -> int:
        """0 to 3."""
        return int(self.sh.shape[-2] ** 0.5) - 1

    @property
    def device(self) -> torch.device:
        return self.means.device

    def map(self, change: Callable[[Tensor], Tensor]) -> Gaussians:
        """The same function of each of the five tensors."""
        return replace(self, **{name: change(getattr(self, name)) for name in PER_GAUSSIAN})

    def __getitem__(self, index: int | slice | Tensor) -> Gaussians:
        """Index the first dimension: a batch element of batched Gaussians, else a selection (mask, indices, slice)."""
        if isinstance(index, int):
            if not -self.means.shape[0] <= index < self.means.shape[0]:
                raise NoSuchGaussian(f"There is no Gaussian {index} among {self.means.shape[0]}.")
            index %= self.means.shape[0]
            if self.means.ndim == 2:
                index = slice(index, index + 1)
        return self.map(lambda x: x[index])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Gaussians:
        """The same Gaussians on another device or in another precision."""
        return self.map(lambda x: x.to(device, dtype))

    def detach(self) -> Gaussians:
        """The same values without a gradient."""
        return self.map(lambda x: x.detach())

    def flatten(self) -> Gaussians:
        """All batch elements as one set (B * N)."""
        lead = self.means.ndim - 1
        return self.map(lambda x: x.flatten(0, lead - 1))

    @property
    def world_means(self) -> Tensor:
        """(..., N, 3) centres in the world, float64."""
        return self.means.double() + self.origin.to(self.device)

    def at(self, origin: Tensor) -> Gaussians:
        """The same numbers counted from another point of the world (3,): the Gaussians move along."""
        return replace(self, origin=origin)

    def local(self) -> Gaussians:
        """The same numbers in a world of their own, whose origin is the point that they are counted from.

        Cameras come there by ``cameras.relative_to(gaussians.origin)``.
        """
        return self.at(_WORLD_ORIGIN)

    def counted_from(self, origin: Tensor) -> Gaussians:
        """The same Gaussians at the same place, with means counted from another point of the world (3,)."""
        origin = origin.detach().to("cpu", torch.float64)
        shift = self.origin - origin
        if not shift.any():
            return self
        means = (self.means.double() + shift.to(self.device)).to(self.means.dtype)
        return replace(self, means=means, origin=origin)

    def covariances(self) -> Tensor:
        """(..., N, 3, 3) world covariance R diag(s^2) R^T."""
        axes = quaternion_to_matrix(self.quats) * self.scales[..., None, :]
        return axes @ axes.transpose(-1, -2)

    def transform(self, similarity: Similarity, origin: Tensor | None = None) -> Gaussians:
        """The same Gaussians in another world frame: centres, scales, rotations and SH move along.

        Args:
            similarity: from the present world to the other one.
            origin: (3,) point of the other world to count means from. By default that where the present origin comes
                to lie; zeros where that is zeros.
        """
        if self.sh_degree > 0:
            turn = spherical_harmonics.rotation_matrix(similarity.rotation, self.sh_degree).to(self.sh)
            sh = torch.einsum("kl,...lc->...kc", turn, self.sh)
        else:
            sh = self.sh
        turn_quat = matrix_to_quaternion(similarity.rotation).to(self.quats)
        landed = similarity.apply_points(self.origin) if self.origin.any() else similarity.translation
        if origin is None:
            origin = landed if self.origin.any() else self.origin
        shift = replace(similarity, translation=landed - origin.to(landed))
        return replace(
            self,
            means=shift.apply_points(self.means.double()).to(self.means.dtype),
            scales=self.scales * similarity.scale,
            quats=F.normalize(quaternion_multiply(turn_quat, self.quats), dim=-1),
            sh=sh,
            origin=origin,
        )

    def to_gsplat(self) -> GsplatArguments:
        """The Gaussians as arguments of ``gsplat.rasterization``, sharing memory with these.

        Means are counted from ``origin``: the matrices to go with them are those of
        ``cameras.relative_to(gaussians.origin).w2c``, intrinsics are ``cameras.K``.
        """
        return {
            "means": self.means,
            "quats": self.quats,
            "scales": self.scales,
            "opacities": self.opacities,
            "colors": self.sh,
            "sh_degree": self.sh_degree,
            "rasterize_mode": "antialiased" if self.antialiased else "classic",
        }

    @staticmethod
    def from_gsplat(
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        colors: Tensor,
        sh_degree: int | None = None,
        rasterize_mode: str = "classic",
    ) -> Gaussians:
        """Gaussians of the arguments that ``gsplat.rasterization`` would draw.

        Args:
            means: (..., N, 3).
            quats: (..., N, 4) wxyz, of any length but 0.
            scales: (..., N, 3) standard deviations. gsplat's trainers keep their logarithm: give ``exp`` of that.
            opacities: (..., N) in [0, 1]. gsplat's trainers keep logits: give ``sigmoid`` of those.
            colors: (..., N, K, 3) SH coefficients with ``sh_degree``, else (..., N, 3) colours in [0, 1].
            sh_degree: how much of the coefficients is used; the rest is left out. None if ``colors`` are colours.
            rasterize_mode: "classic", or "antialiased".

        Raises:
            GaussiansError: shapes that do not fit each other, an unknown mode, more degrees than there are.
        """
        if rasterize_mode not in ("classic", "antialiased"):
            raise GaussiansError(
                f"The rasterize_mode {rasterize_mode!r} was given.", expected="'classic' or 'antialiased'"
            )
        if sh_degree is None:
            sh = ((colors - 0.5) / spherical_harmonics.C0)[..., None, :]
        else:
            used = (sh_degree + 1) ** 2
            if colors.ndim < 3 or not 0 <= sh_degree <= spherical_harmonics.MAX_DEGREE or colors.shape[-2] < used:
                raise GaussiansError(
                    f"Colors of shape {tuple(colors.shape)} and sh_degree {sh_degree} were given.",
                    expected="(..., N, K, 3) with K of at least (sh_degree + 1)^2, a degree of 0 to 3",
                    fix="leave sh_degree out for plain colours (..., N, 3)",
                )
            sh = colors[..., :used, :]
        unit = F.normalize(quats, dim=-1)
        return Gaussians(means, scales, unit, opacities, sh, antialiased=rasterize_mode == "antialiased")

    @staticmethod
    def cat(parts: Sequence[Gaussians]) -> Gaussians:
        """One set out of several, counted from the first one's origin; all have the same SH degree and batch shape.

        Raises:
            GaussiansError: nothing was given, or some are made for anti-aliased rendering and others are not.
        """
        if not parts:
            raise GaussiansError("There are no Gaussians to join.", expected="at least one set")
        if len({part.antialiased for part in parts}) > 1:
            raise GaussiansError(
                "Gaussians for anti-aliased rendering and others cannot be one set: a renderer treats all alike.",
                expected="sets with the same value of antialiased",
                fix="render them apart, or give all the same with dataclasses.replace(gaussians, antialiased=...)",
            )
        first, dim = parts[0], parts[0].means.ndim - 2
        parts = [part.counted_from(first.origin) for part in parts]
        return replace(first, **{name: torch.cat([getattr(p, name) for p in parts], dim=dim) for name in PER_GAUSSIAN})

    def possible(self) -> Tensor:
        """(..., N) mask of the Gaussians that can be: finite, scales of 0 or more, a rotation, opacities in [0, 1]."""
        fair = (self.opacities >= 0) & (self.opacities <= 1)
        return self.finite() & fair & (self.scales >= 0).all(-1) & (self.quats != 0).any(-1)

    def finite(self) -> Tensor:
        """(..., N) mask of the Gaussians without NaN or infinite values."""
        flat_sh = self.sh.flatten(-2)
        every = torch.cat([self.means, self.scales, self.quats, self.opacities[..., None], flat_sh], dim=-1)
        return torch.isfinite(every).all(-1)


def quaternion_to_matrix(quats: Tensor) -> Tensor:
    """(..., 3, 3) rotation of quaternions (..., 4) in wxyz order, normalised first."""
    w, x, y, z = F.normalize(quats, dim=-1).unbind(-1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def matrix_to_quaternion(rotation: Tensor) -> Tensor:
    """Unit quaternions (..., 4), wxyz with w >= 0, of rotations (..., 3, 3)."""
    m = rotation
    trace = m.diagonal(dim1=-2, dim2=-1).sum(-1)
    # |2q| per component, from the diagonal; the largest one is the safe divisor (no cancellation).
    d0, d1, d2 = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    squared = torch.stack([1 + trace, 1 + d0 - d1 - d2, 1 - d0 + d1 - d2, 1 - d0 - d1 + d2], -1)
    double = squared.clamp_min(0).sqrt()
    a, b, c = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    e, f, g = m[..., 1, 0] + m[..., 0, 1], m[..., 0, 2] + m[..., 2, 0], m[..., 2, 1] + m[..., 1, 2]
    candidates = torch.stack(
        [
            torch.stack([squared[..., 0], a, b, c], -1),
            torch.stack([a, squared[..., 1], e, f], -1),
            torch.stack([b, e, squared[..., 2], g], -1),
            torch.stack([c, f, g, squared[..., 3]], -1),
        ],
        dim=-2,
    )
    best = double.argmax(-1)[..., None, None].expand(*double.shape[:-1], 1, 4)
    quat = F.normalize(candidates.gather(-2, best)[..., 0, :], dim=-1)
    return torch.where(quat[..., :1] < 0, -quat, quat)


def slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Unit quaternions (..., 4) on the shorter arc from a (..., 4) to b (..., 4), at shares (...) of its angle."""
    cosine = (a * b).sum(-1)
    b, cosine = torch.where(cosine[..., None] < 0, -b, b), cosine.abs()
    angle = cosine.clamp_max(1).acos()
    same = 1 - cosine < _SAME_ROTATION
    sine = torch.where(same, 1.0, angle.sin())
    weights = torch.stack([((1 - share) * angle).sin(), (share * angle).sin()], -1) / sine[..., None]
    mixed = weights[..., :1] * a + weights[..., 1:] * b
    return torch.where(same[..., None], a, mixed)


def quaternion_multiply(a: Tensor, b: Tensor) -> Tensor:
    """Product a * b of quaternions (..., 4) in wxyz order: the rotation b followed by a."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        dim=-1,
    )
