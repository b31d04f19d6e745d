"""Which places may be written: not what the same run reads, and not over what somebody else has put there."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ilrm.core.errors import OutputError
from ilrm.files.atomic import atomic_file, explained, write_text
from ilrm.files.manifest import MANIFEST, Entry, foreign, manifest_text, read_manifest, state
from ilrm.files.paths import absolute
from ilrm.files.swap import settle
from ilrm.files.temporary import remove_abandoned

_OVERWRITE = "choose another folder, move that file elsewhere, or give --overwrite to replace it"


def check_apart(output: Path | str, reads: Iterable[Path | str]) -> None:
    """Refuse an output that equals, contains or lies in something that the same run reads, also through links.

    Args:
        output: the file or folder that is to be written.
        reads: files, and folders all of whose content counts.

    Raises:
        OutputError: names both.
    """
    target = str(absolute(output))
    for read in reads:
        source = str(absolute(read))
        if source == target or _same(source, target):
            relation = "is"
        elif _lies_in(source, target):
            relation = "contains"
        elif os.path.isdir(source) and _lies_in(target, source):
            relation = "lies in"
        else:
            continue
        raise OutputError(
            f"The output {output} {relation} {read}, which this command reads.",
            expected="an output apart from the input, so that nothing of the input can be lost",
            fix="choose another place to write to",
        )


def check_folder(output: Path | str) -> None:
    """Refuse an output folder that is a file. Raises OutputError."""
    target = absolute(output)
    with explained(target):
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is a file, not a folder")


def _lies_in(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip(os.sep) + os.sep)


def _same(a: str, b: str) -> bool:
    try:
        return os.path.samefile(a, b)
    except (OSError, ValueError):
        return False


def claim_file(path: Path | str, *, reads: Iterable[Path | str] = (), overwrite: bool = False) -> None:
    """Make sure, before any work, that a file may be written.

    A file that exists is replaced only if it is a result of ours that nobody has changed (the manifest of its folder
    says so), or with ``overwrite``.

    Args:
        reads: what the same run reads, see ``check_apart``.

    Raises:
        OutputError: it may not.
    """
    check_apart(path, reads)
    target = absolute(path)
    settle(target.parent)
    remove_abandoned(target.parent, target.with_name(target.stem))
    with explained(target):
        if overwrite or not target.is_file():  # what is neither file nor absent is told when it is written
            return
        if state(target.parent, target.name, read_manifest(target.parent)) == "ours":
            return
    raise OutputError(
        f"{path} exists already.",
        expected="the name of a new file",
        fix="choose another name, or give --overwrite to replace it",
    )


@contextmanager
def output_file(path: Path | str, *, reads: Iterable[Path | str] = (), overwrite: bool = False) -> Iterator[Path]:
    """``atomic_file`` for a result that a person has named: claimed first, and listed where its folder has a list.

    Raises:
        OutputError: see ``claim_file`` and ``atomic_file``.
    """
    claim_file(path, reads=reads, overwrite=overwrite)
    with atomic_file(path) as temporary:
        yield temporary
    note_written(path)


def note_written(path: Path | str) -> None:
    """Put a file that was just written on the list of its folder, if that has one. Raises OutputError."""
    target = absolute(path)
    if target.is_file() and (target.parent / MANIFEST).is_file():
        with explained(target):
            files = {**read_manifest(target.parent), target.name: (Entry.of(target),)}
        write_text(target.parent / MANIFEST, manifest_text(files))


def write_owned(folder: Path, name: str, text: str) -> None:
    """Write a text file that belongs to a growing folder of results, and that later calls may replace.

    The new content is announced in the folder's list before it is written, so that a process that dies in between
    leaves a file that is still known as ours.

    Raises:
        OutputError: it cannot be written, or somebody else has put a file there.
    """
    claim_names(folder, [name])
    files = read_manifest(folder)
    content = Entry.of_bytes(text.encode())
    earlier = files.get(name, ())[-1:]
    write_text(folder / MANIFEST, manifest_text({**files, name: (*earlier, content)}))
    write_text(folder / name, text)
    write_text(folder / MANIFEST, manifest_text({**files, name: (content,)}))


def claim_names(folder: Path, names: Iterable[str]) -> None:
    """Refuse files in a folder that have one of these names and are not ours.

    Args:
        names: relative; those that end in / are sub-folders, of which every file counts.

    Raises:
        OutputError: names the first of them.
    """
    files = read_manifest(folder)
    with explained(folder):
        found = foreign(folder, names, files)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        known = "was changed since this program wrote it" if found[0] in files else "was not written by this program"
        raise OutputError(
            f"{folder / found[0]}{more} is in the way: it {known}.",
            expected="a folder without other files of the names that are to be written",
            fix=_OVERWRITE,
        )
