"""Atomic writes of one file: to a temporary name beside the target, then renamed.

After an error, a full disk or Ctrl-C the previous file is still there, and no temporary file is left behind.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ilrm.core.errors import OutputError
from ilrm.files.paths import absolute
from ilrm.files.temporary import LockedElsewhere, lock, temporary_path

_FIXES = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "free some of your quota, or write to another disk",
    errno.EFBIG: "raise the file size limit (ulimit -f), or write to another disk",
    errno.EACCES: "choose a folder you may write to, or change its permissions",
    errno.EPERM: "choose a folder you may write to, or change its permissions",
    errno.EROFS: "choose a folder on a disk that is not mounted read-only",
    errno.ENOTDIR: "one of the folders in this path is a file; choose another path",
    errno.EEXIST: "one of the folders in this path is a file; choose another path",
    errno.EISDIR: "that is a folder; give a file name",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def output_error(error: OSError, path: Path | str) -> OutputError:
    """An OutputError that says why ``path`` could not be written and what to do about it."""
    reason = error.strerror or str(error)
    fix = _FIXES.get(error.errno or 0, "choose another place to write to")
    return OutputError(f"Cannot write {path}: {reason[:1].lower()}{reason[1:]}.", fix=fix)


@contextmanager
def as_output_error(path: Path) -> Iterator[None]:
    """Convert an OSError raised in the body into an OutputError about ``path``."""
    try:
        yield
    except OSError as error:
        raise output_error(error, path) from error


@contextmanager
def with_parents(path: Path, given: Path | None = None) -> Iterator[None]:
    """Create the missing folders above ``path``; remove them again if the body fails.

    Args:
        given: the path that errors are about, where ``path`` is a temporary one.
    """
    missing = [folder for folder in path.parents if not folder.exists()]
    with as_output_error(given or path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):  # not empty: another process uses it by now
                folder.rmdir()
        raise


@contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Write one file: the body fills the yielded temporary path, which becomes ``path`` when the body succeeds.

    The temporary name keeps the suffix, because some writers choose the format by it. Missing folders are created,
    links are followed.

    Raises:
        OutputError: the file cannot be written. Any OSError of the body is assumed to be about this file.
    """
    target = absolute(path)
    with as_output_error(target):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if target.exists() and not target.is_file():
            raise OutputError(f"Cannot write {target}: it is a device, not a file.", fix="give a file name")
    with with_parents(target):
        temporary, handle = _create_temporary(target)
        try:
            with as_output_error(target):
                yield temporary
                os.replace(temporary, target)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            if handle is not None:
                os.close(handle)


def _create_temporary(target: Path) -> tuple[Path, int | None]:
    """Create and lock an empty temporary file, so that an unwritable folder fails before the work starts."""
    with as_output_error(target):
        while True:
            temporary = temporary_path(target.with_name(target.stem), suffix=target.suffix)
            temporary.touch(exist_ok=False)
            # Between touch and lock another process may take the file for abandoned and remove it: try again.
            with suppress(LockedElsewhere, FileNotFoundError):
                handle = lock(temporary)
                if temporary.exists():
                    return temporary, handle


def check_writable(folder: Path | str) -> None:
    """Check that files can be created in a folder, which is created if necessary. Raises OutputError."""
    probe = temporary_path(absolute(folder) / "probe")
    with with_parents(probe, Path(folder)), as_output_error(Path(folder)):
        probe.touch(exist_ok=False)
        probe.unlink()


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write a file atomically. Raises OutputError."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path | str, text: str) -> None:
    """Write a UTF-8 text file atomically; lone surrogates are escaped, see ``as_json``. Raises OutputError."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path | str, value: object) -> None:
    """Write a JSON file atomically; NaN and infinity are a bug (ValueError). Raises OutputError."""
    write_text(path, as_json(value))


def as_json(value: object) -> str:
    """A value as the text of a JSON file; NaN and infinity are a bug (ValueError).

    In Python, file names that are not UTF-8 contain lone surrogates. They are written as JSON escapes, which read back
    as the same names; all other text stays readable.
    """
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace").decode()
