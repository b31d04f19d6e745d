"""Folders of results: written as a whole, next to whatever else their owner keeps there."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ilrm.core.errors import OutputError
from ilrm.files.atomic import explained, output_error, parents_made
from ilrm.files.claims import check_folder, claim_names
from ilrm.files.manifest import MANIFEST, Entry, Files, files_at, manifest_text, read_manifest, state
from ilrm.files.paths import absolute
from ilrm.files.swap import NEW, Swap, carry_out, settle
from ilrm.files.temporary import (
    KEPT,
    Held,
    held,
    in_work,
    is_temporary,
    remove_abandoned,
    remove_unless_held,
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

    ``path`` may exist and hold other things, which stay. Of what is there only files that an earlier call has written
    and nobody has changed since are replaced or removed (the folder's manifest lists them). The move is complete or
    not done, whatever happens; a process that is killed in it leaves a journal, see ``settle``.

    Args:
        path: the folder to write; it may exist (even as a mount point) or not.
        names: what this result may hold, relative: files, and sub-folders with / at the end. Earlier files of ours
            of these names that the new result lacks are removed.
        former: further files of ours to remove, by relative name.
        overwrite: replace files of somebody else that have the same names, too.

    Raises:
        OutputError: the folder cannot be written, is in use, or holds other files of these names; raised on entering
            where that is known by then.
    """
    target, names = absolute(path), tuple(names)
    with ExitStack() as stack:
        existed = _opened(target, stack)
        if existed and not overwrite:
            claim_names(target, names)
        # Inside an existing folder, because its parent may be another disk or closed to us.
        staging = temporary_path(target / target.name if existed else target)
        stack.enter_context(parents_made(staging))
        stack.callback(_remove_staging, staging)
        with explained(target):
            stack.enter_context(held(staging, lambda folder: (folder / NEW).mkdir(parents=True)))
        try:
            yield staging / NEW
            _move_in(staging, target, names, former, overwrite)
        except OutputError as error:
            raise _about(target, staging / NEW, error) from error
        except OSError as error:
            if error.errno not in _DISK and not _lies_in(error.filename, staging):
                raise  # not about what is written
            raise output_error(error, target) from error


def _opened(target: Path, stack: ExitStack) -> bool:
    """Whether the folder exists; then it is ours alone until the stack unwinds. Raises OutputError."""
    check_folder(target)
    with explained(target):
        existed = target.is_dir()
        if existed and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    if existed:
        stack.enter_context(_alone(target))
        settle(target)
        remove_abandoned(target, target)
    if in_work(target.parent, target):
        raise _in_use(target)
    remove_abandoned(target.parent, target)
    return existed


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            with explained(folder):
                stack.enter_context(held(folder))
        except Held as error:
            raise _in_use(folder) from error
        yield


def _in_use(folder: Path) -> OutputError:
    return OutputError(f"Another process is writing to {folder}.", fix="wait until it ends, or stop it")


def _move_in(
    staging: Path, target: Path, names: tuple[str, ...], former: Callable[[str], bool], overwrite: bool
) -> None:
    new = staging / NEW
    with explained(target), ExitStack() as stack:
        fresh = [name.removeprefix(f"{NEW}/") for name in files_at(staging, NEW)]
        written: Files = {name: (Entry.of(new / name),) for name in fresh}
        if staging.parent != target:
            (new / MANIFEST).write_text(manifest_text(written), "utf-8")
            if _moved(new, target):
                return
            stack.enter_context(_alone(target))  # another process has made it meanwhile
            inside = temporary_path(target / target.name)
            stack.callback(_remove_staging, inside)
            stack.enter_context(held(inside, lambda folder: folder.mkdir()))
            os.rename(new, inside / NEW)
            staging = inside
        files = read_manifest(target)
        if not overwrite:
            claim_names(target, (*names, *fresh))
        retired = _retired(target, files, fresh, names, former)
        gone = {*retired, *fresh}
        kept = {name: them for name, them in files.items() if name not in gone and os.path.lexists(target / name)}
        (staging / NEW / MANIFEST).write_text(manifest_text({**kept, **written}), "utf-8")
        if os.path.lexists(target / MANIFEST):
            retired[MANIFEST] = Entry.of(target / MANIFEST)
        carry_out(Swap(staging, retired, [*fresh, MANIFEST]))


def _retired(
    target: Path, files: Files, fresh: list[str], names: tuple[str, ...], former: Callable[[str], bool]
) -> dict[str, Entry | None]:
    """What leaves the folder: ours of these names, and whatever has a name of a new file."""
    retired: dict[str, Entry | None] = {}
    for name in files:
        if (_is_among(name, names) or former(name)) and state(target, name, files) == "ours":
            retired[name] = Entry.of(target / name)
    for name in fresh:
        path = target / name
        if name not in retired and os.path.lexists(path):
            if path.is_dir() and not path.is_symlink():
                raise IsADirectoryError(errno.EISDIR, f"{name} is a folder there")
            retired[name] = None if path.is_symlink() else Entry.of(path)
    return retired


def _is_among(name: str, names: tuple[str, ...]) -> bool:
    return any(name.startswith(there) if there.endswith("/") else name == there for there in names)


def _moved(folder: Path, target: Path) -> bool:
    """Rename a folder; False if another process has made one of that name meanwhile, with something in it."""
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
    """Remove it, unless it has a swap in it that could not be undone and is to be completed."""
    if not (staging / "journal.json").exists():
        shutil.rmtree(staging, ignore_errors=True)


def _about(target: Path, temporary: Path, error: OutputError) -> OutputError:
    """The same error in terms of the name that the user knows."""
    problem = error.problem.replace(str(temporary), str(target)).replace(str(temporary.parent), str(target))
    return OutputError(problem, expected=error.expected, fix=error.fix)


@contextmanager
def only_writer(folder: Path | str) -> Iterator[None]:
    """Keep other processes that ask the same out of a folder, which is created if need be, while results grow in it.

    What an earlier writer that was killed has left of unfinished files directly in the folder is removed.

    Raises:
        OutputError: the folder cannot be written, or another process is writing to it.
    """
    folder = Path(folder)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    with _alone(folder):
        settle(folder)
        remove_abandoned(folder)
        yield


@contextmanager
def resumable_folder(path: Path | str, fingerprint: str) -> Iterator[Path]:
    """A hidden folder beside ``path`` that keeps finished parts of it from an interrupted call to the next one.

    When the body succeeds, it goes, and with it all that calls with other fingerprints have left for the same ``path``
    and no process holds. When the body fails, it stays if anything is in it. Files in it must be written with
    ``atomic_file``.

    Args:
        path: the file or folder that is to be. Where that is a folder, the hidden one lies inside, on the same disk.
        fingerprint: 8 or more hexadecimal digits of a hash of everything that the parts depend on.

    Raises:
        OutputError: the folder cannot be written, or another process works on the same.
    """
    target = absolute(path)
    with explained(target):
        holder = target if target.is_dir() else target.parent
    settle(holder)
    folder = temporary_path(holder / target.name, KEPT, draw=fingerprint[:8])
    with parents_made(folder):
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
            for entry in place.iterdir():
                if is_temporary(entry.name, target, KEPT):
                    remove_unless_held(entry)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
