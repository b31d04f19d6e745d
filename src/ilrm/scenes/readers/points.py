"""Sparse points of a scene, from the vertices of a PLY file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ilrm.core.errors import SceneError

_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float": "f4", "double": "f8", "float32": "f4", "float64": "f8"},
}
_MAX_HEADER_BYTES = 64 * 1024


@dataclass(frozen=True)
class _Header:
    encoding: str
    count: int
    fields: tuple[tuple[str, str], ...]
    length: int


def read_points(path: Path) -> tuple[Tensor, Tensor | None]:
    """Positions (P, 3) float64 and colours (P, 3) in [0, 1] (None where absent) of a PLY file's vertices.

    Raises:
        SceneError: not a PLY file, one whose first element is not a list of points, or a truncated one.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SceneError(f"{path} cannot be read: {error.strerror or error}.") from error
    header = _header(data, path)
    body = data[header.length :]
    try:
        vertices = _ascii(body, header) if header.encoding == "ascii" else _binary(body, header)
    except (ValueError, UnicodeDecodeError) as error:
        raise SceneError(f"{path} has too few or invalid values for its {header.count} vertices.") from error
    names = [name for name, _ in header.fields]
    if not {"x", "y", "z"} <= set(names):
        raise SceneError(f"{path} has the vertex properties {', '.join(names)}.", expected="x, y and z")
    xyz = np.stack([vertices[axis].astype(np.float64) for axis in "xyz"], axis=-1)
    if not {"red", "green", "blue"} <= set(names):
        return torch.from_numpy(xyz), None
    whole = dict(header.fields)["red"] == "u1"
    rgb = np.stack([vertices[c].astype(np.float32) for c in ("red", "green", "blue")], axis=-1)
    return torch.from_numpy(xyz), torch.from_numpy(rgb / 255.0 if whole else rgb)


def _header(data: bytes, path: Path) -> _Header:
    end = data.find(b"end_header", 0, _MAX_HEADER_BYTES)
    newline = data.find(b"\n", end)
    if not data.startswith(b"ply") or end < 0 or newline < 0:
        raise SceneError(f"{path} is not a PLY file.", expected="a header from 'ply' to 'end_header'")
    encoding, element, count, fields = "", "", 0, []
    for line in data[:end].decode("ascii", "replace").splitlines()[1:]:
        words = line.split()
        if words[:1] == ["format"] and len(words) == 3:
            encoding = words[1]
        elif words[:1] == ["element"] and len(words) == 3:
            if element == "vertex":
                break
            element, count = words[1], _count(words[2])
        elif words[:1] == ["property"]:
            if len(words) != 3 or words[1] not in _TYPES:
                raise SceneError(f"{path} has the property {line!r}.", expected="single numbers per vertex")
            fields.append((words[2], _TYPES[words[1]]))
    if encoding not in ("ascii", "binary_little_endian", "binary_big_endian") or element != "vertex" or count < 0:
        raise SceneError(f"{path} does not begin with vertices.", expected="a PLY whose first element is 'vertex'")
    if count > len(data):  # a vertex takes at least one byte
        raise SceneError(f"{path} has too few values for its {count} vertices.", fix="copy or export it again")
    return _Header(encoding, count, tuple(fields), newline + 1)


def _count(word: str) -> int:
    """A number of vertices; -1 for an invalid one, or one with more digits than any file needs."""
    return int(word) if word.isdecimal() and len(word) < 20 else -1


def _binary(body: bytes, header: _Header) -> np.ndarray:
    order = "<" if header.encoding == "binary_little_endian" else ">"
    layout = np.dtype([(name, order + kind) for name, kind in header.fields])
    return np.frombuffer(body, layout, count=header.count)  # raises where the body is too short


def _ascii(body: bytes, header: _Header) -> dict[str, np.ndarray]:
    words = body.decode("ascii").split()
    needed = header.count * len(header.fields)
    table = np.array(words[:needed], dtype=np.float64).reshape(header.count, len(header.fields))
    return {name: table[:, column] for column, (name, _) in enumerate(header.fields)}
