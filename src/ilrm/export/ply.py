"""The PLY layout of 3D Gaussian Splatting, which every splat viewer opens.

Per Gaussian, binary little endian float32: ``x y z nx ny nz f_dc_0..2 f_rest_* opacity scale_0..2 rot_0..3``.
``f_rest`` is channel-major (all red coefficients first), ``opacity`` a logit, ``scale`` a logarithm, ``rot`` wxyz.
Coordinates stay in the scene's own world frame; the normals are zero.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from ilrm.errors import GaussiansError
from ilrm.files import atomic_file
from ilrm.gaussians import Gaussians

FloatArray = NDArray[np.float32]

# Logits must be finite. 1 - 2^-25 is the largest value that float32 rounds to 1, so an opacity of 1 comes back as 1.
OPACITY_RANGE = (1e-12, 1.0 - 2.0**-25)
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)

_HEADER_LIMIT = 1 << 20
_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4", "float32": "f4"},
    **{"double": "f8", "float64": "f8"},
}
_BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">"}
_REST_COUNTS = (0, 9, 24, 45)  # degree 0 to 3
_EXPECTED = "a binary PLY of 3D Gaussian Splatting: x y z f_dc_0..2 [f_rest_*] opacity scale_0..2 rot_0..3"


@dataclass(frozen=True, eq=False)
class PlyFields:
    """The stored numbers, before any activation; a file written from them reads back bit by bit.

    Attributes:
        xyz: (N, 3) float32 centres.
        f_dc: (N, 3) coefficients of degree 0.
        f_rest: (N, 3 (K - 1)) higher coefficients, channel-major.
        opacity: (N,) logits.
        scale: (N, 3) natural logarithms.
        rot: (N, 4) quaternions wxyz, not necessarily of unit length.
    """

    xyz: FloatArray
    f_dc: FloatArray
    f_rest: FloatArray
    opacity: FloatArray
    scale: FloatArray
    rot: FloatArray

    @staticmethod
    def from_gaussians(gaussians: Gaussians) -> PlyFields:
        """Encode (N, ...) Gaussians, in float64 until the last rounding.

        Opacities are clamped to ``OPACITY_RANGE`` and scales to the smallest normal float32, to keep both finite.
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
        )


def save_ply(gaussians: Gaussians, path: Path | str) -> None:
    """Write Gaussians (N, ...) as a standard splat PLY, whole or not at all.

    Raises:
        GaussiansError: there are none, they are batched, or some hold NaN or infinite values.
        OutputError: the file cannot be written.
    """
    if gaussians.means.ndim != 2:
        raise GaussiansError(
            f"A PLY holds one set of Gaussians, but means of shape {tuple(gaussians.means.shape)} were given.",
            fix="save each batch element on its own, or join them with .flatten()",
        )
    if len(gaussians) == 0:
        raise GaussiansError(f"There are no Gaussians to write to {path}.", expected="at least one")
    if not (finite := gaussians.finite()).all():
        raise GaussiansError(
            f"{int((~finite).sum())} of {len(gaussians)} Gaussians hold NaN or infinite values.",
            expected="finite values",
            fix="keep only gaussians[gaussians.finite()]",
        )
    write_fields(PlyFields.from_gaussians(gaussians), path)


def load_ply(path: Path | str) -> Gaussians:
    """Read a splat PLY of any SH degree up to 3, with its properties in any order and extra ones ignored.

    Raises:
        GaussiansError: no such file, not a PLY, not a splat, cut off, empty, or with impossible values.
    """
    fields = read_fields(path)
    gaussians = fields.to_gaussians()
    # An infinite logit (opacity 0 or 1) or a scale of log 0 is legal and finite once decoded.
    if not (finite := gaussians.finite()).all():
        raise GaussiansError(
            f"{path}: {int((~finite).sum())} of {len(gaussians)} Gaussians hold NaN or infinite values "
            f"(the first is number {int((~finite).nonzero()[0])}).",
            fix="write the file again from finite Gaussians, or remove them in a splat editor",
        )
    if (empty := np.abs(fields.rot).max(axis=1) == 0).any():
        raise GaussiansError(
            f"{path}: {int(empty.sum())} of {len(gaussians)} Gaussians have the rotation 0 0 0 0.",
            expected="rot_0..3 as quaternions wxyz of any length but zero",
        )
    return gaussians


def _names(rest: int) -> list[str]:
    return [
        *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"),
        *(f"f_rest_{i}" for i in range(rest)),
        *("opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
    ]


def write_fields(fields: PlyFields, path: Path | str) -> None:
    """Write stored numbers as they are. Raises OutputError."""
    count, names = len(fields.xyz), _names(fields.f_rest.shape[1])
    columns = [fields.xyz, np.zeros_like(fields.xyz), fields.f_dc, fields.f_rest, fields.opacity[:, None]]
    table = np.concatenate([*columns, fields.scale, fields.rot], axis=1).astype("<f4")
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {count}"]
    header += [*(f"property float {name}" for name in names), "end_header", ""]
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        file.write("\n".join(header).encode())
        file.write(table.tobytes())


def read_fields(path: Path | str) -> PlyFields:
    """Read the stored numbers as they are; see ``load_ply`` for what is refused."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            table = _read_vertices(file, path)
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else (error.strerror or str(error))
        raise GaussiansError(f"Cannot read {path}: {reason}.", expected=_EXPECTED) from error
    stored = set(table.dtype.names or ())
    rest = sum(name.startswith("f_rest_") for name in stored)
    if rest not in _REST_COUNTS:
        raise GaussiansError(f"{path} has {rest} f_rest properties.", expected="0, 9, 24 or 45 (SH degree 0 to 3)")
    wanted = [name for name in _names(rest) if name not in ("nx", "ny", "nz")]
    if missing := [name for name in wanted if name not in stored]:
        kind = "a point cloud or mesh, not Gaussians" if len(missing) > 5 else "not complete Gaussians"
        raise GaussiansError(f"{path} is {kind}: it lacks {', '.join(missing)}.", expected=_EXPECTED)

    def columns(*names: str) -> FloatArray:
        return np.stack([table[name].astype(np.float32) for name in names], axis=1)

    return PlyFields(
        xyz=columns("x", "y", "z"),
        f_dc=columns("f_dc_0", "f_dc_1", "f_dc_2"),
        f_rest=columns(*(f"f_rest_{i}" for i in range(rest))) if rest else np.zeros((len(table), 0), np.float32),
        opacity=columns("opacity")[:, 0],
        scale=columns("scale_0", "scale_1", "scale_2"),
        rot=columns("rot_0", "rot_1", "rot_2", "rot_3"),
    )


def _read_vertices(file: BinaryIO, path: Path) -> NDArray[np.void]:
    """The vertex table of a PLY. Sizes are checked against the file's before anything is allocated."""
    byte_order, elements = _read_header(file, path)
    size = os.fstat(file.fileno()).st_size
    for name, count, properties in elements:
        if any(kind is None for _, kind in properties):
            raise GaussiansError(
                f"{path}: the element {name!r} holds lists before the Gaussians end.", expected=_EXPECTED
            )
        record = np.dtype([(label, byte_order + str(kind)) for label, kind in properties])
        need, have = count * record.itemsize, size - file.tell()
        if need > have:
            raise GaussiansError(
                f"{path} is cut off: its header promises {count} x {name!r} ({need} bytes), {have} bytes follow.",
                fix="copy or export the file again",
            )
        if name == "vertex":
            if count == 0:
                raise GaussiansError(f"{path} holds no Gaussians (0 vertices).", expected="at least one")
            return np.frombuffer(file.read(need), record)
        file.seek(need, os.SEEK_CUR)
    raise GaussiansError(f"{path} has no element 'vertex'.", expected=_EXPECTED)


Element = tuple[str, int, list[tuple[str, str | None]]]


def _read_header(file: BinaryIO, path: Path) -> tuple[str, list[Element]]:
    """Byte order, and per element its name, count and (property, numpy type; None for a list)."""
    if file.readline(16).strip() != b"ply":
        raise GaussiansError(f"{path} is not a PLY file: it does not start with 'ply'.", expected=_EXPECTED)
    byte_order, elements = "", []
    while (line := file.readline(_HEADER_LIMIT)).strip() != b"end_header":
        words = line.decode("ascii", "replace").split()
        if not line.endswith(b"\n") or file.tell() > _HEADER_LIMIT:
            raise GaussiansError(f"{path} has no 'end_header': the header is cut off or malformed.", expected=_EXPECTED)
        match words:
            case ["format", name, *_]:
                if name not in _BYTE_ORDERS:
                    raise GaussiansError(f"{path} is in the format {name!r}.", expected=_EXPECTED)
                byte_order = _BYTE_ORDERS[name]
            case ["element", name, count] if count.isdecimal():
                elements.append((name, int(count), []))
            case ["property", kind, label] if kind in _TYPES and elements:
                elements[-1][2].append((label, _TYPES[kind]))
            case ["property", "list", _, _, label] if elements:
                elements[-1][2].append((label, None))
            case [] | ["comment", *_] | ["obj_info", *_]:
                pass
            case _:
                raise GaussiansError(f"{path} has a header line that no PLY has: {' '.join(words)[:80]!r}.")
    if not byte_order:
        raise GaussiansError(f"{path} has a PLY header without a 'format' line.", expected=_EXPECTED)
    for name, _, properties in elements:
        labels = [label for label, _ in properties]
        if len(set(labels)) < len(labels):
            raise GaussiansError(f"{path}: the element {name!r} names a property twice.", expected=_EXPECTED)
    return byte_order, elements
