"""Names and locks of unfinished files and folders.

A temporary name proves that we made it: half of its digits are a digest of the other half. A lock on the file itself
says that the process that writes it is alive. Only what is ours by its name, and held by nobody, is ever removed.
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
_LONGEST_STEM = 80  # in bytes: names may have 255, and suffixes take some
_POLL_S = 0.05


def temporary_path(target: Path, kind: str = PARTIAL, suffix: str = "", draw: str | None = None) -> Path:
    """A hidden name beside ``target`` that only we would make.

    Args:
        kind: ``PARTIAL`` for what becomes the target, ``KEPT`` for finished parts that wait for the next call.
        suffix: added at the end, for writers that look at it.
        draw: 8 hexadecimal digits instead of random ones.
    """
    stem = _stem(target)
    draw = draw or secrets.token_hex(4)
    return target.with_name(f".{stem}-{draw}{_check(stem, draw)}{kind}{suffix}")


def is_temporary(name: str, target: Path | None = None, kind: str | None = None) -> bool:
    """Whether we gave that name to something unfinished (for ``target``, of that kind, where these are given)."""
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


class Held(Exception):
    """Another living process has the lock."""


def lock(path: Path) -> int | None:
    """The handle of a lock on a file or folder that ends with the process; None where system or disk know none.

    Raises:
        Held: somebody else has it.
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
        raise Held(path) from error
    except OSError:
        os.close(handle)
        return None
    return handle


@contextmanager
def held(path: Path, make: Callable[[Path], object] | None = None) -> Iterator[None]:
    """Hold the lock of a path while inside; ``make`` creates it first. Raises Held, OSError."""
    if make is not None:
        make(path)
    handle = lock(path)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


@contextmanager
def held_patiently(path: Path, seconds: float) -> Iterator[None]:
    """``held``, waiting for another process for a while. Raises Held when that is over."""
    until = time.monotonic() + seconds
    while True:
        try:
            handle = lock(path)
            break
        except Held:
            if time.monotonic() > until:
                raise
            time.sleep(_POLL_S)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def in_work(folder: Path, target: Path) -> bool:
    """Whether a living process is writing ``target``, as far as its temporary folders in ``folder`` show."""
    for entry in _temporaries(folder, target, PARTIAL):
        with suppress(OSError):
            try:
                handle = lock(entry)
            except Held:
                return True
            if handle is not None:
                os.close(handle)
    return False


def remove_abandoned(folder: Path, target: Path | None = None) -> None:
    """Remove unfinished files and folders that dead processes have left directly in a folder.

    Only those for ``target`` if it is given. What a living process holds stays, and so does an interrupted swap
    (see ``swap``), which holds the only copy of an earlier result. Errors are passed over: this only tidies up.
    """
    for entry in _temporaries(folder, target, PARTIAL):
        if not (entry / "journal.json").exists():
            remove_unless_held(entry)


def remove_unless_held(entry: Path) -> None:
    """Remove a file or folder of ours whose process is dead."""
    with suppress(OSError, Held), held(entry):
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _temporaries(folder: Path, target: Path | None, kind: str) -> list[Path]:
    with suppress(OSError):
        return [entry for entry in folder.iterdir() if is_temporary(entry.name, target, kind)]
    return []
