"""Files that are either whole or absent: written to a temporary name beside the target, then renamed.

An error, a full disk or Ctrl-C leaves what was there before, and no temporary file.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ilrm.errors import OutputError

_FIXES = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "free some of your quota, or write to another disk",
    errno.EFBIG: "raise the file size limit (ulimit -f), or write to another disk",
    errno.EACCES: "choose a folder you may write to, or change its permissions",
    errno.EPERM: "choose a folder you may write to, or change its permissions",
    errno.EROFS: "choose a folder on a disk that is not mounted read-only",
    errno.ENOTDIR: "one of the folders on the way is a file; choose another path",
    errno.EEXIST: "one of the folders on the way is a file; choose another path",
    errno.EISDIR: "that is a folder; give a file name",
    errno.ENAMETOOLONG: "choose a shorter name",
}

_PARTIAL = re.compile(r"^\..*-[0-9a-f]{8}\.partial(\.\w+)?$")  # the temporary names given below


def output_error(error: OSError, path: Path | str) -> OutputError:
    """The reason why ``path`` could not be written, in words, with what to do about it."""
    reason = error.strerror or str(error)
    fix = _FIXES.get(error.errno or 0, "choose another place to write to")
    return OutputError(f"Cannot write {path}: {reason[:1].lower()}{reason[1:]}.", fix=fix)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise output_error(error, path) from error


@contextmanager
def _parents(path: Path) -> Iterator[None]:
    """Create the missing folders above ``path``; remove them again if the body fails."""
    missing = [folder for folder in path.parents if not folder.exists()]
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):  # not empty: someone else uses it by now
                folder.rmdir()
        raise


@contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Write one file: the body fills the yielded temporary path, which becomes ``path`` when the body succeeds.

    The temporary name keeps the suffix, so writers that look at it work. Missing folders are created, links
    are followed.

    Raises:
        OutputError: the file cannot be written; OSErrors of the body are taken to be about it.
    """
    target = Path(os.path.realpath(path))
    with _explained(target):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if target.exists() and not target.is_file():
            raise OutputError(f"Cannot write {target}: it is a device, not a file.", fix="give a file name")
    temporary = target.with_name(f".{target.stem[:80]}-{secrets.token_hex(4)}.partial{target.suffix}")
    with _parents(target):
        try:
            with _explained(target):
                temporary.touch(exist_ok=False)  # fails now rather than after the work, if it has to fail
                yield temporary
                os.replace(temporary, target)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write a whole file or nothing. Raises OutputError."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path | str, text: str) -> None:
    """Write a whole UTF-8 text file or nothing. Raises OutputError."""
    write_bytes(path, text.encode())


def write_json(path: Path | str, value: object) -> None:
    """Write a whole JSON file or nothing (NaN and infinity are our mistake). Raises OutputError."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


@contextmanager
def only_writer(folder: Path | str) -> Iterator[None]:
    """Keep other processes that ask the same out of a folder, which is created if need be, while results grow in it.

    What an earlier writer that was killed has left of unfinished files directly in the folder is removed.

    Raises:
        OutputError: the folder cannot be written, or another process is writing to it.
    """
    folder = Path(folder)
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        handle = _locked(folder)
    try:
        remove_partials(folder)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def remove_partials(folder: Path) -> None:
    """Remove unfinished files directly in a folder that nobody else writes to. Raises OutputError."""
    with _explained(folder):
        for entry in [entry for entry in folder.iterdir() if _PARTIAL.search(entry.name)]:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _locked(folder: Path) -> int | None:
    """The handle of a lock that ends with the process; None where the system or the disk knows none."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise OutputError(f"Another process is writing to {folder}.", fix="wait until it ends, or stop it") from error
    except OSError:
        os.close(handle)
        return None
    return handle


@contextmanager
def resumable_folder(path: Path | str, fingerprint: str) -> Iterator[Path]:
    """A hidden folder beside ``path`` that keeps finished parts of it from an interrupted call to the next one.

    When the body succeeds, it goes, and with it all that calls with other fingerprints have left for the same ``path``.
    When the body fails, it stays if anything is in it. Files in it must be written with ``atomic_file``.

    Args:
        path: the file or folder that is to be. Where that is a folder, the hidden one lies inside, on the same disk.
        fingerprint: 8 or more hexadecimal digits of a hash of everything that the parts depend on.

    Raises:
        OutputError: the folder cannot be written, or another process works on the same.
    """
    target = Path(os.path.realpath(path))
    with _explained(target):
        holder = target if target.is_dir() else target.parent
    stem = f".{target.name[:80]}-"
    folder = holder / f"{stem}{fingerprint[:8]}.partial"
    with _parents(folder):
        try:
            with only_writer(folder):
                yield folder
        except OutputError as error:
            _remove_if_empty(folder)
            raise _about(target, folder, error) from error
        except BaseException:
            _remove_if_empty(folder)  # else the next call goes on from it
            raise
        finished = [holder, target] if target.is_dir() else [holder]
        for place in finished:
            for entry in place.glob(f"{glob.escape(stem)}*.partial"):
                if entry.is_dir() and _PARTIAL.search(entry.name):
                    shutil.rmtree(entry, ignore_errors=True)


@contextmanager
def atomic_folder(path: Path | str, owns: Sequence[str] | None = None) -> Iterator[Path]:
    """Write a folder of results: the body fills the yielded temporary folder, whose content then moves to ``path``.

    Where ``path`` exists already its entries of the same names are replaced, all of them or none; other files stay.

    Args:
        path: the folder to write. It may exist (even as a mount point) or not.
        owns: names that a result may hold. Those that an earlier result has left and the new one lacks are removed.

    Raises:
        OutputError: the folder cannot be written; raised on entering where that is known by then.
    """
    target = Path(os.path.realpath(path))
    with _explained(target):
        existed = target.is_dir()
    # Inside an existing folder, because its parent may be another disk or closed to us.
    holder = target if existed else target.parent
    staging = holder / f".{target.name[:80]}-{secrets.token_hex(4)}.partial"
    with _parents(target if not existed else target / "x"):
        try:
            with _explained(target):
                if target.exists() and not existed:
                    raise NotADirectoryError(errno.ENOTDIR, "it is a file, not a folder")
                staging.mkdir()
            yield staging
            with _explained(target):
                if existed or not _moved(staging, target):
                    _swap_entries(staging, target, owns or ())
        except OutputError as error:
            raise _about(target, staging, error) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _about(target: Path, temporary: Path, error: OutputError) -> OutputError:
    """The same error in terms of the name that the user knows."""
    problem = error.problem.replace(str(temporary), str(target))
    return OutputError(problem, expected=error.expected, fix=error.fix)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _moved(staging: Path, target: Path) -> bool:
    """Rename a folder; False if another process has made one of that name meanwhile, with something in it."""
    try:
        os.rename(staging, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and target.is_dir():
            return False
        raise
    return True


def _swap_entries(staging: Path, target: Path, owns: Sequence[str]) -> None:
    """Move the entries of ``staging`` into ``target``; put the earlier ones back if that fails midway."""
    fresh = sorted(entry.name for entry in staging.iterdir())
    earlier = staging / f".earlier-{secrets.token_hex(4)}"
    earlier.mkdir()
    retired, placed = [], []
    try:
        for name in [*fresh, *(name for name in owns if name not in fresh)]:
            if os.path.lexists(target / name):
                os.rename(target / name, earlier / name)
                retired.append(name)
        for name in fresh:
            os.rename(staging / name, target / name)
            placed.append(name)
    except BaseException:
        for name in placed:
            os.rename(target / name, staging / name)
        for name in retired:
            os.rename(earlier / name, target / name)
        raise
