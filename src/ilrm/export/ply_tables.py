"""The tables of a binary PLY file, one an element."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ilrm.errors import GaussiansError
from ilrm.export.checks import unreadable

Tables = dict[str, NDArray[np.void]]

EXPECTED = "a binary PLY of 3D Gaussian Splatting: x y z f_dc_0..2 [f_rest_*] opacity scale_0..2 rot_0..3"

# "chunk" and "sh" stand before and after the vertices of a compressed file.
_WANTED = ("chunk", "vertex", "sh")
_HEADER_LIMIT = 1 << 20
_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4", "float32": "f4"},
    **{"double": "f8", "float64": "f8"},
}
# What we write where positions are counted from a point far from the world's origin: place = offset + x y z.
WORLD_OFFSET = "world_offset"
_BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">"}


@dataclass(frozen=True, eq=False)
class PlyContent:
    """What a PLY holds.

    Attributes:
        tables: the vertices, and the tables that go with them in a compressed one.
        comments: the words of each comment in the header.
    """

    tables: Tables
    comments: tuple[tuple[str, ...], ...]

    def world_offset(self, path: Path | str) -> NDArray[np.float64]:
        """(3,) the point of the world that positions are counted from; zeros unless a comment says so.

        Raises:
            GaussiansError: a comment that begins so and is not three numbers.
        """
        for words in self.comments:
            if words[:1] == (WORLD_OFFSET,):
                try:
                    offset = np.array([float(word) for word in words[1:]])
                except ValueError:
                    offset = np.zeros(0)
                if offset.shape != (3,) or not np.isfinite(offset).all():
                    raise GaussiansError(
                        f"{path} has the comment {' '.join(words)[:80]!r}.", expected=f"{WORLD_OFFSET} X Y Z, numbers"
                    )
                return offset
        return np.zeros(3)


def offset_comment(offset: NDArray[np.float64]) -> list[str]:
    """The header's line that ``PlyContent.world_offset`` reads; none for zeros.

    It belongs behind the properties: some viewers find the number of vertices by the line it stands in.
    """
    return ["comment " + " ".join([WORLD_OFFSET, *(repr(float(x)) for x in offset)])] if offset.any() else []


def read_tables(path: Path | str) -> PlyContent:
    """The content of a splat PLY.

    Raises:
        GaussiansError: no such file, not a binary PLY, cut off, or without vertices.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _read_tables(file, path)
    except OSError as error:
        raise unreadable(path, error, EXPECTED) from error


def _read_tables(file: BinaryIO, path: Path) -> PlyContent:
    """Sizes are checked against the file's before anything is allocated."""
    byte_order, elements, comments = _read_header(file, path)
    size = os.fstat(file.fileno()).st_size
    tables: Tables = {}
    for name, count, properties in elements:
        if "vertex" in tables and name not in _WANTED:
            break
        if any(kind is None for _, kind in properties):
            raise GaussiansError(
                f"{path}: the element {name!r} holds lists before the Gaussians end.", expected=EXPECTED
            )
        record = np.dtype([(label, byte_order + str(kind)) for label, kind in properties])
        need, have = count * record.itemsize, size - file.tell()
        if need > have:
            raise GaussiansError(
                f"{path} is cut off: its header promises {count} x {name!r} ({need} bytes), {have} bytes follow.",
                fix="copy or export the file again",
            )
        if name == "vertex" and count == 0:
            raise GaussiansError(f"{path} holds no Gaussians (0 vertices).", expected="at least one")
        if name in _WANTED:
            tables[name] = np.frombuffer(file.read(need), record, count)
        else:
            file.seek(need, os.SEEK_CUR)
    if "vertex" not in tables:
        raise GaussiansError(f"{path} has no element 'vertex'.", expected=EXPECTED)
    return PlyContent(tables, comments)


Element = tuple[str, int, list[tuple[str, str | None]]]


def _read_header(file: BinaryIO, path: Path) -> tuple[str, list[Element], tuple[tuple[str, ...], ...]]:
    """Byte order, per element its name, count and (property, numpy type; None for a list), and the comments."""
    if file.readline(16).strip() != b"ply":
        raise GaussiansError(f"{path} is not a PLY file: it does not start with 'ply'.", expected=EXPECTED)
    byte_order, elements, comments = "", [], []
    while (line := file.readline(_HEADER_LIMIT)).strip() != b"end_header":
        words = line.decode("ascii", "replace").split()
        if not line.endswith(b"\n") or file.tell() > _HEADER_LIMIT:
            raise GaussiansError(f"{path} has no 'end_header': the header is cut off or malformed.", expected=EXPECTED)
        match words:
            case ["format", name, *_]:
                if name not in _BYTE_ORDERS:
                    raise GaussiansError(f"{path} is in the format {name!r}.", expected=EXPECTED)
                byte_order = _BYTE_ORDERS[name]
            case ["element", name, count] if count.isdecimal() and len(count) < 20:
                elements.append((name, int(count), []))
            case ["property", kind, label] if kind in _TYPES and elements:
                elements[-1][2].append((label, _TYPES[kind]))
            case ["property", "list", _, _, label] if elements:
                elements[-1][2].append((label, None))
            case ["comment", *said]:
                comments.append(tuple(said))
            case [] | ["obj_info", *_]:
                pass
            case _:
                raise GaussiansError(f"{path} has a header line that no PLY has: {' '.join(words)[:80]!r}.")
    if not byte_order:
        raise GaussiansError(f"{path} has a PLY header without a 'format' line.", expected=EXPECTED)
    for name, _, properties in elements:
        labels = [label for label, _ in properties]
        if len(set(labels)) < len(labels):
            raise GaussiansError(f"{path}: the element {name!r} names a property twice.", expected=EXPECTED)
    return byte_order, elements, tuple(comments)
