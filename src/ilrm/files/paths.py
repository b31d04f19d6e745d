"""Questions about paths: whether something exists, and what a folder contains.

Path.exists and its relatives raise for some paths, depending on the Python version. Here an impossible name (too long,
with a null byte, in a wrong encoding), a loop of links or a path through a file simply does not exist. A folder that we
may not read raises AccessError: "does not exist" would mislead the user. ``tests/files/test_paths.py`` checks that the
rest of the package uses these functions.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from ilrm.core.errors import AccessError

# Windows reports EINVAL for names with characters that it does not allow.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EILSEQ)
_FORBIDDEN = (errno.EACCES, errno.EPERM)
_SURROGATE = re.compile("[\ud800-\udfff]")


def exists(path: Path | str) -> bool:
    """Whether the path exists; links are followed. Raises AccessError."""
    return _status(path) is not None


def is_file(path: Path | str) -> bool:
    """Whether the path is a file; links are followed. Raises AccessError."""
    return _has_kind(stat.S_ISREG, path)


def is_dir(path: Path | str) -> bool:
    """Whether the path is a folder; links are followed. Raises AccessError."""
    return _has_kind(stat.S_ISDIR, path)


def is_visible_file(path: Path | str) -> bool:
    """As ``is_file``, but False where a folder in the path may not be read."""
    try:
        return is_file(path)
    except AccessError:
        return False


def entries(folder: Path | str, pattern: str = "*") -> list[Path]:
    """The paths directly in a folder, sorted by name; empty if there is no such folder.

    Args:
        pattern: which names, such as ``*.json``; case-sensitive.

    Raises:
        AccessError: the folder may not be read, or its disk fails.
    """
    try:
        names = os.listdir(folder)
    except (OSError, ValueError) as error:
        if _means_absent(error):
            return []
        raise access_error(folder, error) from error
    return [Path(folder) / name for name in sorted(names) if fnmatchcase(name, pattern)]


def files_below(folder: Path | str) -> Iterator[Path]:
    """All files at any depth; unreadable folders are skipped, and links to folders are not followed."""
    for place, _, names in os.walk(folder):
        yield from (path for name in names if is_visible_file(path := Path(place) / name))


def absolute(path: Path | str) -> Path:
    """The absolute path with all links resolved; loops of links are left as they are."""
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError):
        return Path(os.path.abspath(path))


def expanded(path: Path | str) -> Path:
    """The path with ~ replaced by the home folder, if there is one."""
    return Path(os.path.expanduser(path))


def shown(path: Path | str) -> str:
    """The path as printable text: bytes that are not UTF-8, which Python keeps as lone surrogates, become \\xNN.

    Other lone surrogates, which can only come from JSON, become U+FFFD.
    """

    def form(found: re.Match[str]) -> str:
        data = _bytes(found[0])
        return f"\\x{data[0]:02x}" if len(data) == 1 else "\ufffd"

    return _SURROGATE.sub(form, os.fspath(path))


def portable(name: str) -> str:
    """A name for a new file that is valid UTF-8: bytes that are not become %NN, everything else stays."""
    return _SURROGATE.sub(lambda found: "".join(f"%{byte:02X}" for byte in _bytes(found[0])), name)


def _bytes(surrogate: str) -> bytes:
    byte = ord(surrogate) - 0xDC00  # PEP 383: byte 0xNN is U+DCNN
    return bytes([byte]) if 0x80 <= byte <= 0xFF else surrogate.encode("utf-8", "surrogatepass")


def access_error(path: Path | str, error: OSError | ValueError) -> AccessError:
    """An AccessError that says why ``path`` could not be read and what to do about it."""
    reason = getattr(error, "strerror", None) or str(error)
    forbidden = getattr(error, "errno", None) in _FORBIDDEN
    return AccessError(
        f"Cannot access {path}: {reason[:1].lower()}{reason[1:]}.",
        expected="a path that this user may read",
        fix="change its permissions, or copy it to a folder of your own"
        if forbidden
        else "check the disk, and try again",
    )


def _has_kind(kind: Callable[[int], bool], path: Path | str) -> bool:
    status = _status(path)
    return status is not None and kind(status.st_mode)


def _status(path: Path | str) -> os.stat_result | None:
    """The result of stat; None if the path does not exist."""
    try:
        return os.stat(path)
    except (OSError, ValueError) as error:
        if _means_absent(error):
            return None
        raise access_error(path, error) from error


def _means_absent(error: OSError | ValueError) -> bool:
    return isinstance(error, ValueError) or error.errno in _ABSENT
