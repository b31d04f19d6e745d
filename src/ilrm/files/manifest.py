"""The manifest of a folder: a hidden file that lists our files with size and digest.

A name alone does not prove that a file is ours: users have files called renders/000.png or metrics.json, too. A file
is replaced or removed only if the manifest lists it and its content is still what we wrote.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from ilrm.core.errors import OutputError

MANIFEST = ".ilrm.json"
_FORMAT = 1
_MOST_BYTES = 64_000_000
_BLOCK = 1 << 20

State = Literal["absent", "ours", "foreign"]


@dataclass(frozen=True)
class Entry:
    """The content of a file: its size in bytes, and a SHA-256 digest."""

    bytes: int
    sha256: str

    @staticmethod
    def of(path: Path) -> Entry:
        """Size and digest of a file as it is now. Raises OSError."""
        sha, size = hashlib.sha256(), 0
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                sha.update(block)
                size += len(block)
        return Entry(size, sha.hexdigest())

    @staticmethod
    def of_bytes(content: bytes) -> Entry:
        """Size and digest of a file with this content."""
        return Entry(len(content), hashlib.sha256(content).hexdigest())


Files = dict[str, tuple[Entry, ...]]
"""For each path relative to the folder, with /: the contents by which the file counts as ours. There are two while
``write_owned`` replaces a file: the old content and the new one."""


def read_manifest(folder: Path) -> Files:
    """The files that the manifest of a folder lists; none if there is no manifest.

    Raises:
        OutputError: the manifest cannot be read, or is damaged.
    """
    path = folder / MANIFEST
    try:
        if not os.path.lexists(path):
            return {}
        if path.is_symlink() or not path.is_file() or path.stat().st_size > _MOST_BYTES:
            raise ValueError("it is not a file of ours")
        stored = json.loads(path.read_text("utf-8"))
        if stored["format"] != _FORMAT:
            raise ValueError(f"it has format {stored['format']}, not {_FORMAT}")
        files = {
            inner_name(name): tuple(Entry(**content) for content in them) for name, them in stored["files"].items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise OutputError(
            f"{path}, the list of results in that folder, cannot be read: {error}.",
            fix="choose another folder, or remove that file (all files there then count as yours)",
        ) from error
    return files


def inner_name(name: str) -> str:
    """A relative name, if it stays inside the folder: a manifest may be forged. Raises ValueError."""
    parts = PurePosixPath(name).parts
    if not parts or PurePosixPath(name).is_absolute() or ".." in parts:
        raise ValueError(f"it names {name!r}")
    return name


def manifest_text(files: Files) -> str:
    """The manifest as text."""
    listed = {name: [{"bytes": e.bytes, "sha256": e.sha256} for e in files[name]] for name in sorted(files)}
    about = (
        "Files in this folder that ilrm wrote. It replaces and removes only these, and only while they are unchanged."
    )
    return json.dumps({"format": _FORMAT, "about": about, "files": listed}, indent=1) + "\n"


def state(folder: Path, name: str, files: Files) -> State:
    """Whether a relative name is absent, ours (we wrote it and nobody changed it), or foreign.

    Links, and files in linked folders, are never ours. Raises OSError for a file that cannot be read.
    """
    path = folder / name
    if not os.path.lexists(path):
        return "absent"
    on_the_way = [folder / parent for parent in PurePosixPath(name).parents if parent.parts]
    if any(os.path.islink(place) for place in (path, *on_the_way)) or not path.is_file() or name not in files:
        return "foreign"
    size = path.stat().st_size
    if all(entry.bytes != size for entry in files[name]):
        return "foreign"
    return "ours" if Entry.of(path) in files[name] else "foreign"


def files_at(folder: Path, name: str) -> list[str]:
    """The relative names of all files at or below ``folder / name``; links count as files. Raises OSError."""
    path = folder / name
    if not os.path.lexists(path):
        return []
    if os.path.islink(path) or not path.is_dir():
        return [PurePosixPath(name).as_posix()]
    return sorted(PurePosixPath(name).joinpath(below).as_posix() for below in _walk(path))


def _walk(folder: Path) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=fail):
        linked = [name for name in folders if os.path.islink(os.path.join(place, name))]
        for name in (*files, *linked):
            yield os.path.relpath(os.path.join(place, name), folder).replace(os.sep, "/")


def foreign(folder: Path, names: Iterable[str], files: Files) -> list[str]:
    """The relative names of foreign files that writing ``names`` would replace.

    A name that ends in / stands for every file in that folder; any other name is a file. Raises OSError.
    """
    found = []
    for name in names:
        plain = name.rstrip("/")
        if not name.endswith("/") and (folder / plain).is_dir():
            found.append(plain)  # a folder where we want to write a file
        else:
            found += [below for below in files_at(folder, plain) if state(folder, below, files) == "foreign"]
    return found
