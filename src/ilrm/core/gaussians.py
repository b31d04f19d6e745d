"""3D Gaussians as immutable values in physical units, in the scene's own world frame.

Positions are float32, which is too coarse for world coordinates like UTM or ECEF. They are therefore relative to a
point of the world, ``origin``, in float64. It is zero unless the scene is far from the world's own origin.
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

# The fields with one entry per Gaussian.
PER_GAUSSIAN = ("means", "scales", "quats", "opacities", "sh")
# Rotations count as equal if the cosine between the quaternions is this close to 1 or -1 (the released threshold).
_SAME_ROTATION = 4 * torch.finfo(torch.float64).eps
_WORLD_ORIGIN = torch.zeros(3, dtype=torch.float64)


class GsplatArguments(TypedDict):
    """The result of ``Gaussians.to_gsplat``: keyword arguments of ``gsplat.rasterization``.

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


def _is_colour(values: tuple[float, ...]) -> bool:
    return len(values) == 3 and all(0 <= value <= 1 for value in values)


class NoSuchGaussian(GaussiansError, IndexError):
    """An index out of range; as an IndexError it ends iteration by index."""


@dataclass(frozen=True, eq=False)
class Gaussians:
    """N Gaussians, optionally with leading batch dimensions.

    Like a tensor, ``Gaussians`` are indexed along their first dimension, and ``len`` is its size: Gaussians, or batch
    elements if there are batch dimensions.

    Attributes:
        means: (..., N, 3) centres in world units, relative to ``origin``: the world position is origin + means.
        scales: (..., N, 3) standard deviations along the Gaussian's own axes in world units (linear, positive).
        quats: (..., N, 4) unit quaternions (w, x, y, z) that rotate the own axes into the world.
        opacities: (..., N) in [0, 1].
        sh: (..., N, K, 3) spherical-harmonics coefficients, K = (degree + 1)^2; colour = max(0, basis . sh + 0.5).
        origin: (3,) float64 on the CPU, the world point where means are 0; shared by all batch elements.
        antialiased: to be rendered with compensated opacity (Mip-Splatting's screen-space filter): opacity falls by
            the factor by which the renderer's blur enlarges the splat; see ``ilrm.render.rules``.
        background: red, green, blue in [0, 1] of what is behind all of them; None says nothing, and white is drawn.
    """

    means: Tensor
    scales: Tensor
    quats: Tensor
    opacities: Tensor
    sh: Tensor
    origin: Tensor = _WORLD_ORIGIN
    antialiased: bool = field(default=False, kw_only=True)
    background: tuple[float, float, float] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        shape = tuple(self.means.shape[:-1])
        expected = {"means": (*shape, 3), "scales": (*shape, 3), "quats": (*shape, 4), "opacities": shape}
        for name, size in expected.items():
            if tuple(getattr(self, name).shape) != size or len(shape) == 0:
                raise GaussiansError(
                    f"Gaussians were given {name} of shape {tuple(getattr(self, name).shape)}.",
                    expected=f"{size}, to go with means {tuple(self.means.shape)}",
                )
        # The default needs no check. It is a real tensor even where the others are fake or meta tensors, whose values
        # cannot be read.
        if self.origin is not _WORLD_ORIGIN:
            if tuple(self.origin.shape) != (3,) or not torch.isfinite(self.origin).all():
                given = self.origin.tolist()
                raise GaussiansError(f"Gaussians were given the origin {given}.", expected="three finite numbers")
            object.__setattr__(self, "origin", self.origin.detach().to("cpu", torch.float64))
        if self.background is not None and not _is_colour(self.background):
            raise GaussiansError(
                f"Gaussians were given the background {self.background}.", expected="three numbers from 0 to 1, or None"
            )
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
        """Apply a function to each of the five tensors."""
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
        """(..., N, 3) float64 centres in the world."""
        return self.means.double() + self.origin.to(self.device)

    def at(self, origin: Tensor) -> Gaussians:
        """The same means with another ``origin`` (3,): this moves the Gaussians in the world."""
        return replace(self, origin=origin)

    def local(self) -> Gaussians:
        """The same means with the origin set to zero: a local world, in which ``origin`` is the world's origin.

        ``cameras.relative_to(gaussians.origin)`` gives the matching cameras.
        """
        return self.at(_WORLD_ORIGIN)

    def counted_from(self, origin: Tensor) -> Gaussians:
        """The same Gaussians at the same place, with means relative to another point of the world (3,)."""
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
        """The same Gaussians in another world frame: centres, scales, rotations and SH are transformed.

        Args:
            similarity: from the current world to the new one.
            origin: (3,) point of the new world that means are relative to. By default the image of the current origin;
                zeros if the current origin is zero.
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
        """Arguments of ``gsplat.rasterization``; the tensors share memory with these Gaussians.

        Means are relative to ``origin``, so pass ``cameras.relative_to(gaussians.origin).w2c`` as view matrices and
        ``cameras.K`` as intrinsics.
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
        """Gaussians from arguments of ``gsplat.rasterization``.

        Args:
            means: (..., N, 3).
            quats: (..., N, 4) wxyz, of any length except 0.
            scales: (..., N, 3) standard deviations. gsplat's trainers store logarithms: pass ``exp`` of those.
            opacities: (..., N) in [0, 1]. gsplat's trainers store logits: pass ``sigmoid`` of those.
            colors: (..., N, K, 3) SH coefficients with ``sh_degree``, else (..., N, 3) colours in [0, 1].
            sh_degree: degree to keep; higher coefficients are dropped. None if ``colors`` are colours.
            rasterize_mode: "classic", or "antialiased".

        Raises:
            GaussiansError: shapes that do not match, an unknown mode, or a degree above that of ``colors``.
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
        """Concatenate several sets, with the origin and background of the first.

        All need the same SH degree and batch shape.

        Raises:
            GaussiansError: no sets, or sets with different values of ``antialiased``.
        """
        if not parts:
            raise GaussiansError("There are no Gaussians to join.", expected="at least one set")
        if len({part.antialiased for part in parts}) > 1:
            raise GaussiansError(
                "Gaussians for anti-aliased rendering and others cannot be joined: a renderer treats a set alike.",
                expected="sets with the same value of antialiased",
                fix="render them apart, or change the value with dataclasses.replace(gaussians, antialiased=...)",
            )
        first, dim = parts[0], parts[0].means.ndim - 2
        parts = [part.counted_from(first.origin) for part in parts]
        return replace(first, **{name: torch.cat([getattr(p, name) for p in parts], dim=dim) for name in PER_GAUSSIAN})

    def possible(self) -> Tensor:
        """(..., N) mask of the valid Gaussians: finite, scales of 0 or more, quats not 0, opacities in [0, 1]."""
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
    # |2q| of each component, from the diagonal. Dividing by the largest one avoids cancellation.
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
    """Spherical interpolation of unit quaternions a, b (..., 4) along the shorter arc; ``share`` (...) is 0 at a."""
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
