"""Text and JSON out of files: UTF-8 whatever the locale, of bounded size, with our own errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from ilrm.core.errors import IlrmError, SceneError

# A camera file of 100,000 frames has a tenth of it.
MOST_BYTES = 512 << 20

# Called with the pairs of an object; json calls it ``object_pairs_hook``.
_Objects = Callable[[list[tuple[str, Any]]], Any]


def read_text(path: Path | str, kind: type[IlrmError] = SceneError) -> str:
    """A whole UTF-8 text file, with or without a byte order mark.

    Args:
        kind: of the error.

    Raises:
        IlrmError: of that kind; the file cannot be read, is not UTF-8, or is larger than any of its sort.
    """
    data = _read(path, kind)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise kind(f"{path} is no text: {_reason(error)}.", expected="a UTF-8 text file") from error


def read_json(path: Path | str, kind: type[IlrmError] = SceneError, *, objects: _Objects | None = None) -> Any:
    """The value in a JSON file.

    Args:
        kind: of the error.
        objects: makes the value of an object out of its pairs, repeated keys included; a dictionary by default.

    Raises:
        IlrmError: of that kind; the file cannot be read, or is not JSON.
    """
    return parse_json(_read(path, kind), str(path), kind, objects=objects)


def parse_json(
    data: bytes | str, label: str, kind: type[IlrmError] = SceneError, *, objects: _Objects | None = None
) -> Any:
    """The value of JSON text, called ``label`` in messages; see ``read_json``."""
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
        raise kind(f"{path} has more than {MOST_BYTES >> 20} MiB.", expected="a file of at most that size")
    return data


def _at_most(file: BinaryIO) -> bytes:
    """A byte more than is allowed at most: /dev/zero has no end. In parts, so that small files take little memory."""
    parts, left = [], MOST_BYTES + 1
    while left > 0 and (part := file.read(min(left, 1 << 20))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
