"""The last step of writing a folder that exists already: earlier files out, new files in, all of them or none.

A staging folder inside the target holds ``new/``, ``old/`` and ``journal.json``. The journal appears when ``new/`` is
complete, and says which files go and which come. From then on the swap is carried to its end: by the process itself,
or, if that dies, by the next command that looks at the folder. Nothing is deleted before everything is in place.

Every step is one rename, and which steps are done can be seen from where the files lie:

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
from ilrm.files.temporary import PARTIAL, Held, held_patiently, is_temporary

NEW, OLD, JOURNAL = "new", "old", "journal.json"
_PATIENCE_S = 60.0  # a swap is a few renames; a process that holds one for longer is stopped or hangs


@dataclass(frozen=True)
class Swap:
    """A swap that is to be carried out.

    Attributes:
        staging: the folder with ``new/``, inside the target.
        retire: earlier files by relative name, with their content (None for a link).
        place: relative names of the new files.
    """

    staging: Path
    retire: Mapping[str, Entry | None]
    place: Sequence[str]

    @property
    def target(self) -> Path:
        return self.staging.parent

    def announce(self) -> None:
        """Write the journal, after everything that it speaks of is on the disk itself. Raises OSError."""
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
        """Do all steps that are not done yet.

        Raises:
            OutputError: somebody has put other files in the way meanwhile.
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
        """Say that nothing is left to be done, then remove the staging folder."""
        (self.staging / JOURNAL).unlink()
        shutil.rmtree(self.staging, ignore_errors=True)


def carry_out(swap: Swap) -> None:
    """Announce a swap and do it; an error on the way undoes it.

    Raises:
        OutputError, OSError: see ``Swap.forward``; the earlier files are back.
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

    Every command calls this for the places that it is given, before it looks at what is there.

    Raises:
        OutputError: it cannot be completed; the message says why. Nothing is lost then.
    """
    path = Path(path)
    with suppress(OSError, ValueError):
        folder = path if path.is_dir() else path.parent
        for entry in sorted(folder.iterdir()):
            if is_temporary(entry.name, kind=PARTIAL) and (entry / JOURNAL).exists():
                _settle(entry)


def _settle(staging: Path) -> None:
    try:
        with held_patiently(staging, _PATIENCE_S):
            if not (staging / JOURNAL).exists():  # another process has done it meanwhile
                return
            swap = _read(staging)
            swap.forward()
            swap.finish()
    except Held as error:
        raise OutputError(f"Another process is writing to {staging.parent}.", fix="wait until it ends") from error
    except OSError as error:
        if error.errno == errno.ENOENT and not staging.exists():
            return
        reason = error.strerror or str(error)
        raise OutputError(
            f"{staging.parent} holds a result that was written half-way, and it cannot be completed: {reason}.",
            fix=f"make the folder writable; the earlier files are in {staging / OLD}, the new ones in {staging / NEW}",
        ) from error


def _read(staging: Path) -> Swap:
    try:
        stored = json.loads((staging / JOURNAL).read_text("utf-8"))
        retire = {inner_name(name): entry and Entry(**entry) for name, entry in stored["retire"].items()}
        return Swap(staging, retire, [inner_name(name) for name in stored["place"]])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise OutputError(
            f"{staging / JOURNAL}, which says how far an interrupted write came, is damaged: {error}.",
            fix=f"look into {staging / OLD} and {staging / NEW} for the files, then remove {staging}",
        ) from error


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(source, target)


def _remove_empty_folders(folder: Path, name: str) -> None:
    """The folders on the way to a name, from below, as far as nothing is left in them."""
    with suppress(OSError):
        for parent in PurePosixPath(name).parents:
            if parent.parts:
                (folder / parent).rmdir()


def _in_the_way(path: Path, staging: Path) -> OutputError:
    return OutputError(
        f"{path} is in the way of completing a result that was written half-way.",
        fix=f"move it elsewhere and repeat the command; all files of that result are in {staging}",
    )


def _flush(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk itself."""
    if os.name == "nt" and path.is_dir():  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
