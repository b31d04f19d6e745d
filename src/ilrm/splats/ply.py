"""The PLY layout of 3D Gaussian Splatting, which every splat viewer supports.

Per Gaussian, binary little endian float32: ``x y z nx ny nz f_dc_0..2 f_rest_* opacity scale_0..2 rot_0..3``.
``f_rest`` is channel-major (all red coefficients first), ``opacity`` a logit, ``scale`` a logarithm, ``rot`` wxyz.
Coordinates are in the scene's own world frame; the normals are zero. Far from the world's origin, coordinates are
relative to a point given by a comment in the header, ``world_offset X Y Z``. Double precision is no alternative:
viewers compute in single precision and would show stripes, and some read every property as a float. Another comment,
``SplatRenderMode: mip``, marks anti-aliased splats.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ilrm.core.cameras import local_origin_of
from ilrm.core.errors import GaussiansError, warn
from ilrm.core.gaussians import Gaussians
from ilrm.files import atomic_file
from ilrm.splats.checks import check_writable, keep_possible
from ilrm.splats.compressed_ply import decode, is_compressed
from ilrm.splats.containers.ply import (
    EXPECTED,
    PlyContent,
    background_comment,
    mode_comment,
    offset_comment,
    read_tables,
)

FloatArray = NDArray[np.float32]

# Logits must be finite. float32 rounds 1 - 2^-25 to 1, so an opacity of 1 survives a round trip.
OPACITY_RANGE = (1e-12, 1.0 - 2.0**-25)
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)

REST_COUNTS = (0, 9, 24, 45)  # degree 0 to 3
_THIRD_SCALE, _FILTER = "scale_2", "filter_3D"
# Properties of other programs that do not change the appearance of a splat: normals, colours of point clouds, marks of
# editors.
_HARMLESS = {
    *("nx", "ny", "nz", "red", "green", "blue", "alpha"),
    *("state", "transform", "label", "labels", "segment", "semantic", "id", "index"),
}


@dataclass(frozen=True, eq=False)
class PlyFields:
    """The stored numbers, before any activation; writing and reading them is lossless.

    Attributes:
        xyz: (N, 3) float32 centres, relative to ``offset``.
        f_dc: (N, 3) coefficients of degree 0.
        f_rest: (N, 3 (K - 1)) higher coefficients, channel-major.
        opacity: (N,) logits.
        scale: (N, 3) natural logarithms.
        rot: (N, 4) quaternions wxyz, not necessarily of unit length.
        offset: (3,) float64 point of the world.
        antialiased, background: as of ``Gaussians``.
    """

    xyz: FloatArray
    f_dc: FloatArray
    f_rest: FloatArray
    opacity: FloatArray
    scale: FloatArray
    rot: FloatArray
    offset: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    antialiased: bool = False
    background: tuple[float, float, float] | None = None

    @staticmethod
    def from_gaussians(gaussians: Gaussians) -> PlyFields:
        """Encode N Gaussians in float64, then round to float32.

        Opacities are clamped to ``OPACITY_RANGE`` and scales to the smallest normal float32, so that both stay finite.
        """
        g = gaussians.detach().to("cpu", torch.float64)
        opacities, scales = g.opacities.clamp(*OPACITY_RANGE), g.scales.clamp_min(_SMALLEST_SCALE)

        def stored(values: torch.Tensor) -> FloatArray:
            return np.ascontiguousarray(values.numpy().astype(np.float32))

        return PlyFields(
            xyz=stored(g.means),
            f_dc=stored(g.sh[:, 0]),
            f_rest=stored(g.sh[:, 1:].transpose(1, 2).flatten(1)),
            opacity=stored(torch.logit(opacities)),
            scale=stored(scales.log()),
            rot=stored(g.quats),
            offset=g.origin.numpy(),
            antialiased=g.antialiased,
            background=g.background,
        )

    def to_gaussians(self) -> Gaussians:
        """Decode to float32 Gaussians with unit quaternions."""
        rot = torch.from_numpy(self.rot.astype(np.float64))
        rest = torch.from_numpy(self.f_rest.astype(np.float32)).unflatten(1, (3, -1)).transpose(1, 2)
        return Gaussians(
            means=torch.from_numpy(self.xyz.astype(np.float32)),
            scales=torch.from_numpy(self.scale.astype(np.float64)).exp().float(),
            quats=torch.nn.functional.normalize(rot, dim=-1).float(),
            opacities=torch.from_numpy(self.opacity.astype(np.float64)).sigmoid().float(),
            sh=torch.cat([torch.from_numpy(self.f_dc.astype(np.float32))[:, None], rest], dim=1),
            origin=torch.from_numpy(self.offset),
            antialiased=self.antialiased,
            background=self.background,
        )


def save_ply(gaussians: Gaussians, path: Path | str) -> None:
    """Write N Gaussians as a standard splat PLY, atomically.

    Raises:
        GaussiansError: there are none, they are batched, or some have NaN or infinite values.
        OutputError: the file cannot be written.
    """
    check_writable(gaussians, path)
    write_fields(PlyFields.from_gaussians(gaussians), path)


def load_ply(path: Path | str) -> Gaussians:
    """Read a splat PLY of any SH degree up to 3, binary or ascii, with properties in any order.

    ``filter_3D`` is applied. Splats with two scales (2D Gaussian Splatting) get a negligible third one. Other
    properties are ignored, with a warning if they may matter. Rows with NaN or infinite values or a zero rotation are
    left out with a warning. Double-precision positions far from the world's origin keep their digits: they become
    relative to a point in their middle, the ``origin``. Compressed files (see ``compressed_ply``) are recognised by
    their header.

    Raises:
        GaussiansError: no such file, not a PLY, not splats, cut off, empty, or without a valid row.
    """
    content = read_tables(path)
    if is_compressed(content.tables):
        return decode(content, path)
    fields = _fields(content, path)
    # Checked after decoding: an infinite logit (opacity 0 or 1) or a log scale of -inf is finite then.
    return keep_possible(fields.to_gaussians(), path)


def _names(rest: int) -> list[str]:
    return [
        *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"),
        *(f"f_rest_{i}" for i in range(rest)),
        *("opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
    ]


def write_fields(fields: PlyFields, path: Path | str) -> None:
    """Write stored numbers without conversion. Raises OutputError."""
    count, names = len(fields.xyz), _names(fields.f_rest.shape[1])
    columns = [fields.xyz, np.zeros_like(fields.xyz), fields.f_dc, fields.f_rest, fields.opacity[:, None]]
    table = np.concatenate([*columns, fields.scale, fields.rot], axis=1).astype("<f4")
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {count}"]
    header += [*(f"property float {name}" for name in names), *offset_comment(fields.offset)]
    header += [*mode_comment(fields.antialiased), *background_comment(fields.background), "end_header", ""]
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        file.write("\n".join(header).encode())
        file.write(table.tobytes())


def read_fields(path: Path | str) -> PlyFields:
    """Read the stored numbers without conversion; raises as ``load_ply``."""
    return _fields(read_tables(path), path)


def _fields(content: PlyContent, path: Path | str) -> PlyFields:
    table = content.tables["vertex"]
    stored = set(table.dtype.names or ())
    rest = sum(name.startswith("f_rest_") for name in stored)
    if rest not in REST_COUNTS:
        raise GaussiansError(f"{path} has {rest} f_rest properties.", expected="0, 9, 24 or 45 (SH degree 0 to 3)")
    wanted = [name for name in _names(rest) if name not in ("nx", "ny", "nz")]
    missing = [name for name in wanted if name not in stored]
    if missing and missing != [_THIRD_SCALE]:
        kind = "a point cloud or mesh, not Gaussians" if len(missing) > 5 else "not complete Gaussians"
        raise GaussiansError(f"{path} is {kind}: it lacks {', '.join(missing)}.", expected=EXPECTED)

    def columns(*names: str) -> FloatArray:
        return np.stack([table[name].astype(np.float32) for name in names], axis=1)

    xyz, offset = _positions(table, content.world_offset(path))
    scale = columns("scale_0", "scale_1", *(() if missing else (_THIRD_SCALE,)))
    opacity = columns("opacity")[:, 0]
    if missing:
        scale = np.concatenate([scale, _flat(scale)], axis=1)
    if _FILTER in stored:
        scale, opacity = _filtered(scale, opacity, columns(_FILTER))
    if left_out := sorted(stored - {*wanted, _FILTER} - _HARMLESS):
        warn(
            f"{path} has properties that are ignored: {', '.join(left_out[:6])}"
            f"{', ...' if len(left_out) > 6 else ''}; if one changes the meaning of the others, the splats look wrong"
        )
    return PlyFields(
        xyz=xyz,
        f_dc=columns("f_dc_0", "f_dc_1", "f_dc_2"),
        f_rest=columns(*(f"f_rest_{i}" for i in range(rest))) if rest else np.zeros((len(table), 0), np.float32),
        opacity=opacity,
        scale=scale,
        rot=columns("rot_0", "rot_1", "rot_2", "rot_3"),
        offset=offset,
        antialiased=content.antialiased,
        background=content.background,
    )


def _flat(scale: FloatArray) -> FloatArray:
    """(N, 1) logarithms of a third scale for splats with two (N, 2): a thousandth of the smaller, at most 1e-6."""
    return np.minimum(scale.min(axis=1, keepdims=True) + np.float32(np.log(1e-3)), np.float32(np.log(1e-6)))


def _filtered(scale: FloatArray, opacity: FloatArray, size: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Apply Mip-Splatting's 3D filter of standard deviation ``size`` (N, 1) to log scales (N, 3) and logits (N,).

    Every Gaussian is convolved with the smallest one that a training camera could resolve: s'^2 = s^2 + f^2, and the
    opacity falls by sqrt(prod s^2 / prod s'^2). Computed in logarithms, to avoid underflow.
    """
    log_s = scale.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        wider = 0.5 * np.logaddexp(2 * log_s, 2 * np.log(np.abs(size.astype(np.float64))))
        log_ratio = np.where(wider == log_s, 0.0, log_s - wider).sum(axis=1)
        log_opacity = -np.logaddexp(0.0, -opacity.astype(np.float64)) + log_ratio
        logit = log_opacity - np.log(-np.expm1(log_opacity))
    return wider.astype(np.float32), logit.astype(np.float32)


def _positions(table: NDArray[np.void], offset: NDArray[np.float64]) -> tuple[FloatArray, NDArray[np.float64]]:
    """Positions (N, 3) and the point they are relative to. It is changed only for double-precision positions."""
    xyz = np.stack([table[axis].astype(np.float64) for axis in "xyz"], axis=1)
    if all(table.dtype[axis].itemsize <= 4 for axis in "xyz"):
        return xyz.astype(np.float32), offset
    origin = local_origin_of(torch.from_numpy(xyz)).numpy()
    return (xyz - origin).astype(np.float32), offset + origin
