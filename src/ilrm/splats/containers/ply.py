"""Reading a PLY file as one table per element, and interpreting its comments."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ilrm.core.errors import GaussiansError
from ilrm.splats.checks import unreadable

Tables = dict[str, NDArray[np.void]]

EXPECTED = "a PLY of 3D Gaussian Splatting: x y z f_dc_0..2 [f_rest_*] opacity scale_0..2 rot_0..3"

# In a compressed file, "chunk" comes before the vertices and "sh" after them.
_WANTED = ("chunk", "vertex", "sh")
_HEADER_LIMIT = 1 << 20
_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4", "float32": "f4"},
    **{"double": "f8", "float64": "f8"},
}
# Our comment for positions that are relative to a point far from the world's origin: position = offset + x y z.
WORLD_OFFSET = "world_offset"
# Our comment for the colour behind all splats.
BACKGROUND = "background"
# "=", the machine's own order, marks an ascii file.
_BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "="}
_ROWS_AT_ONCE = 4096
# Comments by which trainers mark anti-aliased splats: Brush, gsplat and nerfstudio; Postshot; and a proposal for the
# trainer of INRIA.
ANTIALIASED = "SplatRenderMode: mip"
_RENDER_MODE = re.compile(r"splatrendermode\s*[:=]?\s*(\w+)")
_FLAG = re.compile(r"(?:postshot\.)?anti[-_]?alias(?:ed|ing)\s*[:= ]\s*(\w+)")
_TRAIN_FLAGS = re.compile(r"train_flags\b.*?\b(anti[-_]?alias(?:ed|ing))\b")


@dataclass(frozen=True, eq=False)
class PlyContent:
    """The content of a PLY.

    Attributes:
        tables: the vertices and, in a compressed file, the tables that belong to them.
        comments: the words of each comment in the header.
    """

    tables: Tables
    comments: tuple[tuple[str, ...], ...]

    @property
    def antialiased(self) -> bool:
        """Whether a comment says that the splats were trained anti-aliased; the last such comment counts."""
        said = False
        for words in self.comments:
            text = " ".join(words).lower()
            if found := _RENDER_MODE.match(text):
                said = found[1] in ("mip", "antialiased")
            elif found := _FLAG.match(text):
                said = found[1] in ("1", "true", "yes", "on")
            elif _TRAIN_FLAGS.match(text):
                said = True
        return said

    @property
    def background(self) -> tuple[float, float, float] | None:
        """Red, green, blue in [0, 1], from our comment; None without one, or where it holds anything else."""
        for words in self.comments:
            if words[:1] == (BACKGROUND,):
                try:
                    red, green, blue = (float(word) for word in words[1:])
                except ValueError:
                    return None
                if all(0 <= value <= 1 for value in (red, green, blue)):
                    return red, green, blue
        return None

    def world_offset(self, path: Path | str) -> NDArray[np.float64]:
        """(3,) point of the world that positions are relative to, from a comment; zeros without one.

        Raises:
            GaussiansError: such a comment without three numbers.
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
    """The header line that ``PlyContent.world_offset`` reads; none for zeros.

    It has to come after the properties: some viewers expect the number of vertices in a fixed line of the header.
    """
    return ["comment " + " ".join([WORLD_OFFSET, *(repr(float(x)) for x in offset)])] if offset.any() else []


def background_comment(background: tuple[float, float, float] | None) -> list[str]:
    """The header line that ``PlyContent.background`` reads; none of None. It also has to follow the properties."""
    return [] if background is None else ["comment " + " ".join([BACKGROUND, *(f"{x:.4f}" for x in background)])]


def mode_comment(antialiased: bool) -> list[str]:
    """The header line that marks anti-aliased splats; none for ordinary ones. It also has to follow the properties."""
    return [f"comment {ANTIALIASED}"] if antialiased else []


def read_tables(path: Path | str) -> PlyContent:
    """Read the tables of a splat PLY.

    Raises:
        GaussiansError: no such file, not a PLY, cut off, or without vertices.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _read_tables(file, path)
    except OSError as error:
        raise unreadable(path, error, EXPECTED) from error


def _read_tables(file: BinaryIO, path: Path) -> PlyContent:
    """Declared sizes are checked against the file size before any memory is allocated."""
    byte_order, elements, comments = _read_header(file, path)
    size = os.fstat(file.fileno()).st_size
    tables: Tables = {}
    for name, count, properties in elements:
        if "vertex" in tables and name not in _WANTED:
            break
        if name in _WANTED and not properties:
            raise GaussiansError(f"{path}: the element {name!r} has no properties.", expected=EXPECTED)
        if any(kind is None for _, kind in properties):
            raise GaussiansError(
                f"{path}: the element {name!r} has lists before the end of the Gaussians.", expected=EXPECTED
            )
        record = np.dtype([(label, byte_order + str(kind)) for label, kind in properties])
        # In ascii, a number takes at least a digit and a separator (except the last one).
        need = count * (2 * len(properties) if byte_order == "=" else record.itemsize) - (byte_order == "=")
        have = size - file.tell()
        if need > have:
            raise GaussiansError(
                f"{path} is cut off: its header declares {count} x {name!r} ({need} bytes), {have} bytes follow.",
                fix="copy or export the file again",
            )
        if name == "vertex" and count == 0:
            raise GaussiansError(f"{path} holds no Gaussians (0 vertices).", expected="at least one")
        if byte_order == "=":
            table = _read_rows(file, record, count, f"{path}: the element {name!r}")
            tables |= {name: table} if name in _WANTED else {}
        elif name in _WANTED:
            tables[name] = np.frombuffer(file.read(need), record, count)
        else:
            file.seek(need, os.SEEK_CUR)
    if "vertex" not in tables:
        raise GaussiansError(f"{path} has no element 'vertex'.", expected=EXPECTED)
    return PlyContent(tables, comments)


def _read_rows(file: BinaryIO, record: np.dtype, count: int, label: str) -> NDArray[np.void]:
    """Read an ascii table, one row per line; blank lines are skipped."""
    table, names, done = np.empty(count, record), record.names or (), 0
    while done < count:
        lines = list(islice(file, min(count - done, _ROWS_AT_ONCE)))
        if not lines:
            raise GaussiansError(f"{label} is cut off after {done} of {count} rows.", fix="export the file again")
        rows = [words for words in (line.split() for line in lines) if words or not names]
        for row, words in enumerate(rows, done + 1):
            if len(words) != len(names):
                raise GaussiansError(f"{label} has {len(words)} numbers in row {row}.", expected=str(len(names)))
        try:
            block = np.array([[float(word) for word in words] for words in rows]).reshape(len(rows), len(names))
        except ValueError as error:
            raise GaussiansError(f"{label} has a value that is not a number, after row {done}: {error}.") from error
        with np.errstate(invalid="ignore", over="ignore"):
            for column, name in enumerate(names):
                table[name][done : done + len(rows)] = block[:, column]
        done += len(rows)
    return table


Element = tuple[str, int, list[tuple[str, str | None]]]


def _read_header(file: BinaryIO, path: Path) -> tuple[str, list[Element], tuple[tuple[str, ...], ...]]:
    """Byte order; for each element its name, count and (property, numpy type or None for a list); and comments."""
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
                raise GaussiansError(f"{path} has an invalid header line: {' '.join(words)[:80]!r}.", expected=EXPECTED)
    if not byte_order:
        raise GaussiansError(f"{path} has a PLY header without a 'format' line.", expected=EXPECTED)
    for name, _, properties in elements:
        labels = [label for label, _ in properties]
        if len(set(labels)) < len(labels):
            raise GaussiansError(f"{path}: the element {name!r} has the same property twice.", expected=EXPECTED)
    return byte_order, elements, tuple(comments)
