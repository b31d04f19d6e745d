"""Which paths a command may write: nothing that the same run reads, and no file that somebody else put there."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ilrm.core.errors import OutputError
from ilrm.files.atomic import as_output_error, atomic_file, write_text
from ilrm.files.manifest import MANIFEST, Entry, foreign, manifest_text, read_manifest, state
from ilrm.files.paths import absolute
from ilrm.files.swap import settle
from ilrm.files.temporary import remove_abandoned

_OVERWRITE = "choose another folder, move that file elsewhere, or give --overwrite to replace it"


def check_apart(output: Path | str, reads: Iterable[Path | str]) -> None:
    """Refuse an output that equals, contains or lies in something that the same run reads; links are followed.

    Args:
        output: the file or folder to write.
        reads: files and folders; a folder stands for everything in it.

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
    with as_output_error(target):
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
    """Check before any work that a file may be written.

    An existing file is replaced only if we wrote it and nobody has changed it since, according to the manifest of its
    folder, or with ``overwrite``.

    Args:
        reads: what the same run reads, see ``check_apart``.

    Raises:
        OutputError: the file may not be written.
    """
    check_apart(path, reads)
    target = absolute(path)
    settle(target.parent)
    remove_abandoned(target.parent, target.with_name(target.stem))
    with as_output_error(target):
        if overwrite or not target.is_file():  # folders and devices are refused by atomic_file
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
    """``atomic_file`` for a path that the user gave: claimed first, then recorded if its folder has a manifest.

    Raises:
        OutputError: see ``claim_file`` and ``atomic_file``.
    """
    claim_file(path, reads=reads, overwrite=overwrite)
    with atomic_file(path) as temporary:
        yield temporary
    note_written(path)


def note_written(path: Path | str) -> None:
    """Record a file that was just written in the manifest of its folder, if there is one. Raises OutputError."""
    target = absolute(path)
    if target.is_file() and (target.parent / MANIFEST).is_file():
        with as_output_error(target):
            files = {**read_manifest(target.parent), target.name: (Entry.of(target),)}
        write_text(target.parent / MANIFEST, manifest_text(files))


def write_owned(folder: Path, name: str, text: str) -> None:
    """Write a text file into a folder of results that grows; later calls may replace it.

    Raises:
        OutputError: it cannot be written, or somebody else has put a file there.
    """
    claim_names(folder, [name])
    files = read_manifest(folder)
    content = Entry.of_bytes(text.encode())
    earlier = files.get(name, ())[-1:]
    # Three writes, each atomic. The manifest first lists the old and the new content: if the process dies before the
    # last write, either of them is still recognised as ours.
    write_text(folder / MANIFEST, manifest_text({**files, name: (*earlier, content)}))
    write_text(folder / name, text)
    write_text(folder / MANIFEST, manifest_text({**files, name: (content,)}))


def claim_names(folder: Path, names: Iterable[str]) -> None:
    """Refuse files in a folder that have one of these names and are not ours.

    Args:
        names: relative paths; one that ends in / is a sub-folder and stands for every file in it.

    Raises:
        OutputError: names the first of them.
    """
    files = read_manifest(folder)
    with as_output_error(folder):
        found = foreign(folder, names, files)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        known = "was changed since this program wrote it" if found[0] in files else "was not written by this program"
        raise OutputError(
            f"{folder / found[0]}{more} is in the way: it {known}.",
            expected="a folder that has no other files of the same names",
            fix=_OVERWRITE,
        )
