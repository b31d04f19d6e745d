"""Runs readers on damaged files in a separate process, and watches its time and memory."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from ilrm.core.errors import IlrmError
from tests.fuzz.mutations import mutate

# Importing torch and making a valid input, on a busy machine.
_START_SECONDS = 300.0


@dataclass(frozen=True)
class Limits:
    """The limits for one file.

    Attributes:
        seconds: of the processor; six times as many by the clock, since other programs may run as well.
        most_bytes: resident in the process. Measured on Linux alone, as the seconds of the processor.
    """

    seconds: float = 10.0
    most_bytes: int = 2 << 30


@dataclass
class Tally:
    """What happened to one reader's damaged files.

    Attributes:
        counts: of "read", "refused" (with our own error), "foreign" (another exception, or the end of the process),
            "hang" (over the time limit) and "memory" (over the memory limit, whatever came of it).
        failures: number of a mutation -> what happened, of the last three kinds.
    """

    counts: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)

    def add(self, number: int, verdict: str, told: str) -> None:
        self.counts[verdict] += 1
        if verdict in ("foreign", "hang", "memory"):
            self.failures[number] = f"{verdict}: {told}"


class _Job(NamedTuple):
    """What the watched process gets besides its tasks; it works in the folder ``place``."""

    seed: int
    limits: Limits
    place: Path
    keep: Path | None
    table: str


class _Report(NamedTuple):
    """What the watched process reports: that it begins a mutation, or its outcome."""

    reader: str
    number: int
    file: str
    verdict: str = "begin"
    told: str = ""
    peak: int = 0


def fuzz(
    readers: Sequence[str],
    mutations: int,
    seed: int = 0,
    *,
    limits: Limits | None = None,
    keep: Path | None = None,
    table: str = "tests.fuzz.readers",
) -> dict[str, Tally]:
    """Damage the input of each reader the given number of times, and read it.

    Args:
        keep: an existing folder for the files that failed, as READER-NUMBER-NAME.
        table: the module with the readers (``READERS``).
    """
    tallies = {reader: Tally() for reader in readers}
    begin = dict.fromkeys(readers, 0)
    while left := {reader: range(begin[reader], mutations) for reader in readers if begin[reader] < mutations}:
        with tempfile.TemporaryDirectory(prefix="ilrm-fuzz-") as place:
            _watch(left, _Job(seed, limits or Limits(), Path(place), keep, table), tallies, begin)
    return tallies


def _watch(tasks: Mapping[str, range], job: _Job, tallies: Mapping[str, Tally], begin: dict[str, int]) -> None:
    """Watch one process until it finishes, dies or must be killed; ``begin`` is where the next one continues."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_read_spoiled, args=(theirs, dict(tasks), job), daemon=True)
    child.start()
    theirs.close()
    at, since, used = None, time.monotonic(), 0.0
    try:
        while True:
            ended, report = "", None
            if ours.poll(0.02):
                try:
                    report = ours.recv()
                except EOFError:
                    if all(begin[reader] == tasks[reader].stop for reader in tasks):
                        return
                    ended = "foreign: the process died"
            elif at is None and time.monotonic() - since > _START_SECONDS:
                ended = "hang: at the start"
            elif at is not None and _is_stuck(child.pid or 0, since, used, job.limits.seconds):
                ended = f"hang: over {job.limits.seconds:g} s"
            elif _resident(child.pid or 0) > job.limits.most_bytes:
                ended = f"memory: over {job.limits.most_bytes >> 20} MB, ended"
            if ended:
                assert at is not None, f"the first input was not read: {ended}"
                report = at._replace(verdict=ended.split(":")[0], told=ended.split(": ")[1])
            if report is None:
                continue
            if report.verdict == "begin":
                at, since, used = report, time.monotonic(), _processor_seconds(child.pid or 0)
                continue
            assert report.verdict != "broken", f"{report.reader} could not be tried: {report.told}"
            if report.peak > job.limits.most_bytes:
                report = report._replace(verdict="memory", told=f"{report.peak >> 20} MB; {report.told}")
            tallies[report.reader].add(report.number, report.verdict, report.told)
            begin[report.reader] = report.number + 1
            if ended:
                _keep(report, job.keep)
                return
            at, since = None, time.monotonic()
    finally:
        child.kill()
        child.join()
        ours.close()


def _keep(report: _Report, keep: Path | None) -> None:
    if keep is not None:
        name = f"{report.reader.replace(' ', '_')}-{report.number}-{Path(report.file).name}"
        shutil.copyfile(report.file, keep / name)


def _is_stuck(pid: int, since: float, used: float, seconds: float) -> bool:
    by_clock = time.monotonic() - since
    return by_clock > seconds and (by_clock > 6 * seconds or _processor_seconds(pid) - used > seconds)


def _processor_seconds(pid: int) -> float:
    """Processor seconds of a process so far; wall-clock seconds if the system does not report them."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return time.monotonic()


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


# --- in the watched process -----------------------------------------------------------------------------------------


def _read_spoiled(parent: Connection, tasks: dict[str, range], job: _Job) -> None:
    warnings.simplefilter("ignore")
    quiet = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # COLMAP's and others' own notes
        os.dup2(quiet, stream)
    for reader, numbers in tasks.items():
        try:
            _read_all(parent, reader, numbers, job)
        except Exception:  # ours: of the valid input, or of a mutation
            parent.send(_Report(reader, numbers.start, "", "broken", traceback.format_exc()))
            return


def _read_all(parent: Connection, reader: str, numbers: range, job: _Job) -> None:
    tools, folder = importlib.import_module(job.table).READERS[reader], job.place / reader
    folder.mkdir()
    files = tools.make(folder)
    tools.read(folder, files[0])
    valid = [file.read_bytes() for file in files]
    for number in numbers:
        draw = random.Random(f"{job.seed} {reader} {number}")
        which = draw.randrange(len(files))
        files[which].write_bytes(tools.pack(valid[which], mutate(tools.unpack(valid[which]), tools.kinds, draw)))
        report = _Report(reader, number, str(files[which]))
        parent.send(report)
        _forget_peak()
        verdict, told = _verdict(tools.read, folder, files[which])
        report = report._replace(verdict=verdict, told=told, peak=_peak())
        if verdict == "foreign" or report.peak > job.limits.most_bytes:
            _keep(report, job.keep)
        parent.send(report)
        files[which].write_bytes(valid[which])
    shutil.rmtree(folder, ignore_errors=True)


def _verdict(read: Callable[[Path, Path], object], folder: Path, file: Path) -> tuple[str, str]:
    try:
        read(folder, file)
    except IlrmError:
        return "refused", ""
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if f"{os.sep}ilrm{os.sep}" in frame.filename] or frames
        return "foreign", f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno} {error!s:.200}"
    return "read", ""


def _forget_peak() -> None:
    with suppress(OSError):  # not on Linux
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """Highest resident bytes since ``_forget_peak``; 0 if the system does not report it."""
    if sys.platform != "linux":
        return 0
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), 0)
