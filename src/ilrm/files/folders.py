"""Atomic writes of a folder of results, which may also contain files of the user."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ilrm.core.errors import OutputError
from ilrm.files.atomic import as_output_error, output_error, with_parents
from ilrm.files.claims import check_folder, claim_names
from ilrm.files.manifest import MANIFEST, Entry, Files, files_at, manifest_text, read_manifest, state
from ilrm.files.paths import absolute
from ilrm.files.swap import NEW, Swap, carry_out, settle
from ilrm.files.temporary import (
    KEPT,
    LockedElsewhere,
    is_being_written,
    is_temporary,
    locked,
    remove_abandoned,
    remove_unless_locked,
    temporary_path,
)

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@contextmanager
def atomic_folder(
    path: Path | str,
    names: Iterable[str] = (),
    *,
    former: Callable[[str], bool] = lambda name: False,
    overwrite: bool = False,
) -> Iterator[Path]:
    """Write a folder of results: the body fills the yielded temporary folder, whose content then moves to ``path``.

    ``path`` may exist and contain other files, which stay. Only files that an earlier call wrote and that nobody has
    changed since are replaced or removed; the folder's manifest lists them. The move is all or nothing. If the process
    is killed during the move, it leaves a journal from which the next command completes it, see ``settle``.

    Args:
        path: the folder to write. It need not exist, and it may be a mount point.
        names: relative paths that this kind of result may contain: files, and sub-folders with / at the end. Earlier
            files of ours with these names that the new result lacks are removed.
        former: selects further files of ours to remove, by relative name.
        overwrite: also replace files of somebody else that have the same names.

    Raises:
        OutputError: the folder cannot be written, is in use, or contains other files of these names. What is known
            before the body runs is raised on entering.
    """
    target, names = absolute(path), tuple(names)
    with ExitStack() as stack:
        existed = _prepare_target(target, stack)
        if existed and not overwrite:
            claim_names(target, names)
        # Staged inside an existing folder: its parent may be another disk, where a rename fails, or not writable.
        staging = temporary_path(target / target.name if existed else target)
        stack.enter_context(with_parents(staging, target))
        stack.callback(_remove_staging, staging)
        with as_output_error(target):
            stack.enter_context(locked(staging, lambda folder: (folder / NEW).mkdir(parents=True)))
        try:
            yield staging / NEW
            _install(staging, target, names, former, overwrite)
        except OutputError as error:
            raise _reworded_for(target, error, staging / NEW, staging) from error
        except OSError as error:
            if error.errno not in _DISK and not _lies_in(error.filename, staging):
                raise  # an error of something that the body reads
            raise output_error(error, target) from error


def _prepare_target(target: Path, stack: ExitStack) -> bool:
    """Whether the folder exists; if so, it stays locked until the stack unwinds. Raises OutputError."""
    check_folder(target)
    with as_output_error(target):
        existed = target.is_dir()
        if existed and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    if existed:
        stack.enter_context(_exclusive_access(target))
        settle(target)
        remove_abandoned(target, target)
    if is_being_written(target.parent, target):
        raise _in_use_error(target)
    remove_abandoned(target.parent, target)
    return existed


@contextmanager
def _exclusive_access(folder: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            with as_output_error(folder):
                stack.enter_context(locked(folder))
        except LockedElsewhere as error:
            raise _in_use_error(folder) from error
        yield


def _in_use_error(folder: Path) -> OutputError:
    return OutputError(f"Another process is writing to {folder}.", fix="wait until it ends, or stop it")


def _install(
    staging: Path, target: Path, names: tuple[str, ...], former: Callable[[str], bool], overwrite: bool
) -> None:
    new = staging / NEW
    with as_output_error(target), ExitStack() as stack:
        fresh = [name.removeprefix(f"{NEW}/") for name in files_at(staging, NEW)]
        written: Files = {name: (Entry.of(new / name),) for name in fresh}
        if staging.parent != target:  # the target did not exist: a single rename does it
            (new / MANIFEST).write_text(manifest_text(written), "utf-8")
            if _try_rename(new, target):
                return
            # Another process created the target meanwhile: stage inside it and swap, as for any existing folder.
            stack.enter_context(_exclusive_access(target))
            inside = temporary_path(target / target.name)
            stack.callback(_remove_staging, inside)
            stack.enter_context(locked(inside, lambda folder: folder.mkdir()))
            os.rename(new, inside / NEW)
            staging = inside
        files = read_manifest(target)
        if not overwrite:
            claim_names(target, (*names, *fresh))
        retired = _files_to_retire(target, files, fresh, names, former)
        gone = {*retired, *fresh}
        kept = {name: them for name, them in files.items() if name not in gone and os.path.lexists(target / name)}
        (staging / NEW / MANIFEST).write_text(manifest_text({**kept, **written}), "utf-8")
        if os.path.lexists(target / MANIFEST):
            retired[MANIFEST] = Entry.of(target / MANIFEST)
        carry_out(Swap(staging, retired, [*fresh, MANIFEST]))


def _files_to_retire(
    target: Path, files: Files, fresh: list[str], names: tuple[str, ...], former: Callable[[str], bool]
) -> dict[str, Entry | None]:
    """The files to remove from the folder: ours with these names, and any that a new file replaces."""
    retired: dict[str, Entry | None] = {}
    for name in files:
        if (_is_covered_by(name, names) or former(name)) and state(target, name, files) == "ours":
            retired[name] = Entry.of(target / name)
    for name in fresh:
        path = target / name
        if name not in retired and os.path.lexists(path):
            if path.is_dir() and not path.is_symlink():
                raise IsADirectoryError(errno.EISDIR, f"{name} is a folder there")
            retired[name] = None if path.is_symlink() else Entry.of(path)
    return retired


def _is_covered_by(name: str, names: tuple[str, ...]) -> bool:
    return any(name.startswith(there) if there.endswith("/") else name == there for there in names)


def _try_rename(folder: Path, target: Path) -> bool:
    """Rename a folder; False if another process has meanwhile created a folder of that name that is not empty."""
    try:
        os.rename(folder, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and target.is_dir():
            return False
        raise
    return True


def _lies_in(name: object, folder: Path) -> bool:
    return isinstance(name, str | os.PathLike) and Path(name).is_relative_to(folder)


def _remove_staging(staging: Path) -> None:
    """Remove a staging folder, unless it contains an unfinished swap, which the next command completes."""
    if not (staging / "journal.json").exists():
        shutil.rmtree(staging, ignore_errors=True)


def _reworded_for(target: Path, error: OutputError, *temporary: Path) -> OutputError:
    """The same error with the path that the user gave in place of the temporary ones, the longer ones first."""
    # At once: the path may lie below a temporary one, or contain one.
    problem = re.sub("|".join(re.escape(str(path)) for path in temporary), lambda _: str(target), error.problem)
    return OutputError(problem, expected=error.expected, fix=error.fix)


@contextmanager
def only_writer(folder: Path | str) -> Iterator[None]:
    """Hold the lock of a folder that results are added to one by one; the folder is created if necessary.

    Unfinished files that a killed writer left directly in the folder are removed.

    Raises:
        OutputError: the folder cannot be written, or another process is writing to it.
    """
    folder = Path(folder)
    with as_output_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    with _exclusive_access(folder):
        settle(folder)
        remove_abandoned(folder)
        yield


@contextmanager
def resumable_folder(path: Path | str, fingerprint: str) -> Iterator[Path]:
    """A hidden folder beside ``path`` that keeps finished parts after an interruption, for the next call to reuse.

    When the body succeeds, the folder is removed, together with those that calls with other fingerprints left for the
    same ``path`` and that no process has locked. When the body fails, the folder stays unless it is empty. Files in it
    must be written with ``atomic_file``.

    Args:
        path: the file or folder that will be written. If it is an existing folder, the hidden one is created inside it,
            and so on the same disk.
        fingerprint: at least 8 hexadecimal digits of a hash of everything that the parts depend on.

    Raises:
        OutputError: the folder cannot be written, or another process is writing the same output.
    """
    target = absolute(path)
    with as_output_error(target):
        holder = target if target.is_dir() else target.parent
    settle(holder)
    folder = temporary_path(holder / target.name, KEPT, draw=fingerprint[:8])
    with with_parents(folder, target):
        try:
            with only_writer(folder):
                yield folder
        except OutputError as error:
            _remove_if_empty(folder)
            raise _reworded_for(target, error, folder) from error
        except BaseException:
            _remove_if_empty(folder)  # one with finished parts stays for the next call
            raise
        finished = [holder, target] if target.is_dir() else [holder]
        for place in finished:
            for entry in place.iterdir():
                if is_temporary(entry.name, target, KEPT):
                    remove_unless_locked(entry)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
