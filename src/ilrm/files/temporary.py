"""Names and locks of unfinished files and folders.

A temporary name shows that we made it: half of its digits are a digest of the rest. A lock on the file shows that the
process that writes it is alive. We only ever remove files that have such a name and that no process has locked.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL, KEPT = ".partial", ".kept"
_NAME = re.compile(r"^\.(?P<stem>.*)-(?P<draw>[0-9a-f]{8})(?P<check>[0-9a-f]{8})(?P<kind>\.partial|\.kept)(\.\w+)?$")
_LONGEST_STEM = 80  # bytes; file systems allow 255 for the whole name
_POLL_S = 0.05


def temporary_path(target: Path, kind: str = PARTIAL, suffix: str = "", draw: str | None = None) -> Path:
    """A hidden name beside ``target`` that ``is_temporary`` recognises.

    Args:
        kind: ``PARTIAL`` for what becomes the target, ``KEPT`` for finished parts that the next call reuses.
        suffix: added at the end, for writers that choose the format by it.
        draw: 8 hexadecimal digits to use instead of random ones.
    """
    stem = _stem(target)
    draw = draw or secrets.token_hex(4)
    return target.with_name(f".{stem}-{draw}{_check(stem, draw)}{kind}{suffix}")


def is_temporary(name: str, target: Path | None = None, kind: str | None = None) -> bool:
    """Whether ``temporary_path`` made this name (for ``target`` and of that kind, if given)."""
    match = _NAME.match(name)
    if match is None or match["check"] != _check(match["stem"], match["draw"]):
        return False
    return (target is None or match["stem"] == _stem(target)) and (kind is None or match["kind"] == kind)


def _stem(target: Path) -> str:
    stem = target.name
    while len(os.fsencode(stem)) > _LONGEST_STEM:
        stem = stem[:-1]
    return stem


def _check(stem: str, draw: str) -> str:
    return hashlib.blake2s(b"ilrm " + os.fsencode(stem) + draw.encode(), digest_size=4).hexdigest()


class LockedElsewhere(Exception):
    """The lock is held by another process, which is therefore alive."""


def lock(path: Path) -> int | None:
    """Lock a file or folder; the lock ends with the process.

    Returns:
        a file descriptor to close, or None if the system or the file system has no locks.

    Raises:
        LockedElsewhere: another process has the lock.
        OSError: the path cannot be opened.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise LockedElsewhere(path) from error
    except OSError:
        os.close(handle)
        return None
    return handle


@contextmanager
def locked(path: Path, make: Callable[[Path], object] | None = None) -> Iterator[None]:
    """Hold the lock of a path during the body; ``make`` creates the path first. Raises LockedElsewhere, OSError."""
    if make is not None:
        make(path)
    handle = lock(path)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


@contextmanager
def locked_within(path: Path, seconds: float) -> Iterator[None]:
    """As ``locked``, but waits up to ``seconds`` for another process. Raises LockedElsewhere after that."""
    until = time.monotonic() + seconds
    while True:
        try:
            handle = lock(path)
            break
        except LockedElsewhere:
            if time.monotonic() > until:
                raise
            time.sleep(_POLL_S)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def is_being_written(folder: Path, target: Path) -> bool:
    """Whether another process is writing ``target``: it has a locked temporary folder for it in ``folder``."""
    for entry in _temporaries(folder, target, PARTIAL):
        with suppress(OSError):
            try:
                handle = lock(entry)
            except LockedElsewhere:
                return True
            if handle is not None:
                os.close(handle)
    return False


def remove_abandoned(folder: Path, target: Path | None = None) -> None:
    """Remove unfinished files and folders that dead processes left directly in a folder.

    If ``target`` is given, only those for it. Locked ones stay, and so does an interrupted swap (see ``swap``), which
    contains the only copy of an earlier result. Errors are ignored: this is only a clean-up.
    """
    for entry in _temporaries(folder, target, PARTIAL):
        if not (entry / "journal.json").exists():
            remove_unless_locked(entry)


def remove_unless_locked(entry: Path) -> None:
    """Remove a temporary file or folder unless a process has locked it."""
    with suppress(OSError, LockedElsewhere), locked(entry):
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _temporaries(folder: Path, target: Path | None, kind: str) -> list[Path]:
    with suppress(OSError):
        return [entry for entry in folder.iterdir() if is_temporary(entry.name, target, kind)]
    return []
