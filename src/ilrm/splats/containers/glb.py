"""Reading the parts of a .glb file: JSON, binary chunk, accessors as arrays, nodes with their transformations.

Layout: https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ilrm.core.errors import GaussiansError
from ilrm.files.reading import parse_json
from ilrm.splats.checks import unreadable

UNSIGNED_BYTE, FLOAT = 5121, 5126
_DTYPES = {5120: "<i1", UNSIGNED_BYTE: "<u1", 5122: "<i2", 5123: "<u2", FLOAT: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
# Limits on nodes with a mesh and on the depth of the hierarchy. A file beyond them is meant to waste time.
_MOST_PLACED, _DEEPEST = 10_000, 1000


@dataclass(frozen=True, eq=False)
class Glb:
    """A .glb file in memory.

    Attributes:
        path: where it came from, for messages.
        content: its JSON.
        binary: its binary chunk.
    """

    path: Path
    content: dict[str, Any]
    binary: memoryview

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Convert errors from JSON that violates the glTF schema. Raises GaussiansError, which names the file."""
        try:
            yield
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise GaussiansError(
                f"{self.path} is a malformed glTF file: {type(error).__name__} {error}.",
                fix="check it with the glTF validator (https://github.khronos.org/glTF-Validator)",
            ) from error

    def accessor(self, index: int, width: int) -> NDArray[np.float32]:
        """(count, width) values of an accessor; normalised integers become floats. Raises GaussiansError."""
        accessor = self.content["accessors"][index]
        view = self.content["bufferViews"][accessor["bufferView"]]
        dtype = np.dtype(_DTYPES[accessor["componentType"]])
        count, start = accessor["count"], accessor.get("byteOffset", 0)
        stride = view.get("byteStride", width * dtype.itemsize)
        begin, length = view.get("byteOffset", 0), view["byteLength"]
        needed = start + (count - 1) * stride + width * dtype.itemsize if count else 0
        if _WIDTHS[accessor["type"]] != width or "sparse" in accessor or view.get("buffer", 0) != 0:
            raise ValueError(f"accessor {index} is not {width} plain numbers per point in the binary chunk")
        if min(count, start, begin, length, stride - width * dtype.itemsize) < 0 or needed > length:
            raise ValueError(f"accessor {index} does not fit into its bufferView")
        if begin + length > len(self.binary):
            raise GaussiansError(
                f"{self.path} is cut off: its JSON declares {begin + length} bytes of data, {len(self.binary)} follow.",
                fix="copy or export the file again",
            )
        raw = np.ndarray((count, width), dtype, self.binary, begin + start, (stride, dtype.itemsize))
        values = raw.astype(np.float32)
        if not accessor.get("normalized"):
            return values
        return np.maximum(values / np.iinfo(dtype).max, -1).astype(np.float32)

    def mesh_nodes(self) -> Iterator[tuple[dict[str, Any], NDArray[np.float64]]]:
        """Every mesh that a node places in the scene, with its transformation (4, 4)."""
        nodes = self.content.get("nodes", [])
        placed = [index for index, node in enumerate(nodes) if "mesh" in node]
        if len(placed) > _MOST_PLACED:
            raise GaussiansError(
                f"{self.path} places meshes at {len(placed)} nodes.",
                expected=f"at most {_MOST_PLACED}",
                fix="join them in the program that made the file",
            )
        parents = {child: index for index, node in enumerate(nodes) for child in node.get("children", ())}
        to_scene: dict[int, NDArray[np.float64]] = {}
        for index in placed:
            yield self.content["meshes"][nodes[index]["mesh"]], _to_scene(nodes, parents, index, to_scene)


def read_glb(path: Path, expected: str) -> Glb:
    """The parts of a .glb file. Raises GaussiansError."""
    try:
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise unreadable(path, error, expected) from error
    if data[:4] != b"glTF":
        raise GaussiansError(f"{path} is not a .glb file: it does not start with 'glTF'.", expected=expected)
    cut_off = GaussiansError(f"{path} is cut off.", expected=expected, fix="copy or export the file again")
    if len(data) < 20:
        raise cut_off
    _, version, total, text_bytes, kind = struct.unpack_from("<4sIII4s", data)
    if version != 2 or kind != b"JSON":
        raise GaussiansError(f"{path} is not a .glb of version 2.", expected=expected)
    if total > len(data) or 20 + text_bytes > total:
        raise cut_off
    content = parse_json(bytes(data[20 : 20 + text_bytes]), f"The glTF in {path}", GaussiansError)
    if not isinstance(content, dict):
        raise GaussiansError(f"{path} contains JSON that is not glTF.", expected=expected)
    rest = data[20 + text_bytes : total]
    if len(rest) < 8:
        return Glb(path, content, rest[:0])
    binary_bytes, kind = struct.unpack_from("<I4s", rest)
    if 8 + binary_bytes > len(rest):
        raise cut_off
    return Glb(path, content, rest[8 : 8 + binary_bytes] if kind == b"BIN\0" else rest[:0])


def _to_scene(
    nodes: list[dict[str, Any]], parents: dict[int, int], index: int, known: dict[int, NDArray[np.float64]]
) -> NDArray[np.float64]:
    """The transformation (4, 4) from a node to the scene; those of its ancestors are cached in ``known``."""
    ancestry = [index]
    while ancestry[-1] not in known and ancestry[-1] in parents:
        ancestry.append(parents[ancestry[-1]])
        if len(ancestry) > _DEEPEST:
            raise ValueError("nodes that are their own ancestors")
    matrix = known.get(ancestry[-1], np.eye(4))
    for node in reversed(ancestry):
        if node not in known:
            known[node] = matrix @ _local(nodes[node])
        matrix = known[node]
    return matrix


def _local(node: dict[str, Any]) -> NDArray[np.float64]:
    """The transformation (4, 4) from a node to its parent."""
    if "matrix" in node:
        return np.array(node["matrix"], dtype=np.float64).reshape(4, 4).T  # stored column by column
    x, y, z, w = (float(value) for value in node.get("rotation", (0, 0, 0, 1)))
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, :3] *= np.array(node.get("scale", (1, 1, 1)), dtype=np.float64)
    matrix[:3, 3] = node.get("translation", (0, 0, 0))
    return matrix
