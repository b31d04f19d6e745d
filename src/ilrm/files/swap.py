"""Replacing files in an existing folder: the earlier files go and the new ones come, all of them or none.

A staging folder inside the target contains ``new/``, ``old/`` and ``journal.json``. The journal is written once
``new/`` is complete; it lists the files to retire and to place. From then on the swap will be completed: by the
process itself or, if that dies, by the next command that uses the folder. No file is deleted before all are in place.

Every step is one rename, so where a file is now shows whether its step is done. The journal itself is never updated:

    target/x  --retire-->  staging/old/x          for each earlier file
    staging/new/x  --place-->  target/x           for each new file
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from ilrm.core.errors import OutputError
from ilrm.files.manifest import Entry, inner_name
from ilrm.files.temporary import PARTIAL, LockedElsewhere, is_temporary, locked_within

NEW, OLD, JOURNAL = "new", "old", "journal.json"
_PATIENCE_S = 60.0  # a swap is a few renames; a process that takes longer is suspended or hangs


@dataclass(frozen=True)
class Swap:
    """The files to retire and to place.

    Attributes:
        staging: the folder with ``new/``, inside the target.
        retire: earlier files by relative name, with their size and digest (None for a link).
        place: relative names of the new files.
    """

    staging: Path
    retire: Mapping[str, Entry | None]
    place: Sequence[str]

    @property
    def target(self) -> Path:
        return self.staging.parent

    def announce(self) -> None:
        """Write the journal, after flushing all files that it lists to disk. Raises OSError."""
        for place, _, names in os.walk(self.staging):
            for name in names:
                _flush(Path(place) / name)
            _flush(Path(place))
        retire = {name: entry and asdict(entry) for name, entry in self.retire.items()}
        unfinished = self.staging / f"{JOURNAL}.unfinished"
        unfinished.write_text(json.dumps({"retire": retire, "place": list(self.place)}), "utf-8")
        _flush(unfinished)
        os.rename(unfinished, self.staging / JOURNAL)
        _flush(self.staging)

    def forward(self) -> None:
        """Do all steps that are not done yet; safe to repeat.

        Raises:
            OutputError: somebody else has meanwhile put other files there.
            OSError: a file cannot be moved.
        """
        old, new = self.staging / OLD, self.staging / NEW
        for name, entry in self.retire.items():
            there = self.target / name
            if not os.path.lexists(old / name) and os.path.lexists(there):
                if entry is not None and not (there.is_file() and Entry.of(there) == entry):
                    raise _in_the_way(there, self.staging)
                _move(there, old / name)
        for name in self.place:
            if os.path.lexists(new / name):
                if os.path.lexists(self.target / name):
                    raise _in_the_way(self.target / name, self.staging)
                _move(new / name, self.target / name)
        for name in self.retire:
            _remove_empty_folders(self.target, name)

    def back(self) -> None:
        """Undo all steps that are done. Raises OSError."""
        old, new = self.staging / OLD, self.staging / NEW
        for name in self.place:
            if not os.path.lexists(new / name) and os.path.lexists(self.target / name):
                _move(self.target / name, new / name)
                _remove_empty_folders(self.target, name)
        for name in self.retire:
            if os.path.lexists(old / name):
                _move(old / name, self.target / name)

    def finish(self) -> None:
        """Remove the journal, which marks the swap as done, then the staging folder."""
        (self.staging / JOURNAL).unlink()
        shutil.rmtree(self.staging, ignore_errors=True)


def carry_out(swap: Swap) -> None:
    """Write the journal and do the swap; an error undoes all steps.

    Raises:
        OutputError, OSError: see ``Swap.forward``; the earlier files are restored.
    """
    swap.announce()
    try:
        swap.forward()
    except BaseException:
        swap.back()
        (swap.staging / JOURNAL).unlink()
        raise
    swap.finish()


def settle(path: Path | str) -> None:
    """Complete a swap that a dead process has left in a folder, or in the folder of a file.

    Every command calls this for all paths among its arguments before it reads or writes there.

    Raises:
        OutputError: the swap cannot be completed; the message says why. No file is lost.
    """
    path = Path(path)
    with suppress(OSError, ValueError):
        folder = path if path.is_dir() else path.parent
        for entry in sorted(folder.iterdir()):
            if is_temporary(entry.name, kind=PARTIAL) and (entry / JOURNAL).exists():
                _settle(entry)


def _settle(staging: Path) -> None:
    try:
        with locked_within(staging, _PATIENCE_S):
            if not (staging / JOURNAL).exists():  # another process completed it meanwhile
                return
            swap = _read(staging)
            swap.forward()
            swap.finish()
    except LockedElsewhere as error:
        raise OutputError(f"Another process is writing to {staging.parent}.", fix="wait until it ends") from error
    except OSError as error:
        if error.errno == errno.ENOENT and not staging.exists():
            return
        reason = error.strerror or str(error)
        raise OutputError(
            f"{staging.parent} contains a result that was only partly written, and it cannot be completed: {reason}.",
            fix=f"make the folder writable; the earlier files are in {staging / OLD}, the new ones in {staging / NEW}",
        ) from error


def _read(staging: Path) -> Swap:
    try:
        stored = json.loads((staging / JOURNAL).read_text("utf-8"))
        retire = {inner_name(name): entry and Entry(**entry) for name, entry in stored["retire"].items()}
        return Swap(staging, retire, [inner_name(name) for name in stored["place"]])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise OutputError(
            f"{staging / JOURNAL}, the journal of an interrupted write, is damaged: {error}.",
            fix=f"look into {staging / OLD} and {staging / NEW} for the files, then remove {staging}",
        ) from error


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(source, target)


def _remove_empty_folders(folder: Path, name: str) -> None:
    """Remove the folders of a relative name that are empty now, innermost first."""
    with suppress(OSError):
        for parent in PurePosixPath(name).parents:
            if parent.parts:
                (folder / parent).rmdir()


def _in_the_way(path: Path, staging: Path) -> OutputError:
    return OutputError(
        f"{path} is in the way of completing a result that was only partly written.",
        fix=f"move it elsewhere and repeat the command; all files of that result are in {staging}",
    )


def _flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    if os.name == "nt" and path.is_dir():  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
