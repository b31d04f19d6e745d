"""Reading text and JSON files: always UTF-8, of bounded size, with our own errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from ilrm.core.errors import IlrmError, SceneError

# A camera file of 100,000 frames has a tenth of this.
MOST_BYTES = 512 << 20

# The ``object_pairs_hook`` of json: called with the pairs of each object.
_Objects = Callable[[list[tuple[str, Any]]], Any]


def read_text(path: Path | str, kind: type[IlrmError] = SceneError) -> str:
    """Read a UTF-8 text file, with or without a byte order mark.

    Args:
        kind: class of the error.

    Raises:
        IlrmError: of that class; the file cannot be read, is not UTF-8, or is larger than ``MOST_BYTES``.
    """
    data = _read(path, kind)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise kind(f"{path} is not a text file: {_reason(error)}.", expected="a UTF-8 text file") from error


def read_json(path: Path | str, kind: type[IlrmError] = SceneError, *, objects: _Objects | None = None) -> Any:
    """Read a JSON file.

    Args:
        kind: class of the error.
        objects: converts the pairs of an object, repeated keys included, to a value; a dictionary by default.

    Raises:
        IlrmError: of that class; the file cannot be read, or is not JSON.
    """
    return parse_json(_read(path, kind), str(path), kind, objects=objects)


def parse_json(
    data: bytes | str, label: str, kind: type[IlrmError] = SceneError, *, objects: _Objects | None = None
) -> Any:
    """Parse JSON text, called ``label`` in messages; see ``read_json``."""
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=objects)
    except (ValueError, RecursionError) as error:
        raise kind(
            f"{label} is not valid JSON: {_reason(error)}.",
            expected="a complete UTF-8 JSON file",
            fix="copy or export the file again",
        ) from error


def _read(path: Path | str, kind: type[IlrmError]) -> bytes:
    try:
        with open(path, "rb") as file:
            data = _at_most(file)
    except OSError as error:
        raise kind(f"{path} cannot be read: {error.strerror or error}.", fix="check the path") from error
    except ValueError as error:  # a null byte, or a name that the file system cannot hold
        raise kind(f"{str(path)!r} cannot be read: {error}.", fix="check the path") from error
    if len(data) > MOST_BYTES:
        raise kind(f"{path} is larger than {MOST_BYTES >> 20} MiB.", expected="a file of at most that size")
    return data


def _at_most(file: BinaryIO) -> bytes:
    """Read up to one byte more than the limit, because /dev/zero has no end.

    In parts, because ``read(n)`` allocates n bytes even for a small file.
    """
    parts, left = [], MOST_BYTES + 1
    while left > 0 and (part := file.read(min(left, 1 << 20))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
