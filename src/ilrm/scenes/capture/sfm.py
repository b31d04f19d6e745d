"""Running the stages of structure from motion in a child process: time limits, progress, results that are kept."""

from __future__ import annotations

import json
import os
import queue
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilrm.core.errors import WorkerError
from ilrm.core.reporting import Advance, Reporter
from ilrm.files import write_json
from ilrm.files.paths import exists
from ilrm.files.reading import read_json
from ilrm.scenes.capture import worker

_POLL_S = 0.2
# Limits only end hangs: a quiet machine needs a tenth. Seconds of a stage, and for each photo (or pair).
_LIMITS = {
    "features": (120.0, 60.0),
    "match": (300.0, 5.0),
    "survey": (300.0, 5.0),
    "incremental": (300.0, 40.0),
    "together": (300.0, 40.0),
}


@dataclass
class Stages:
    """The stages of one capture, in the folder that keeps them.

    Attributes:
        folder: for the database, jobs, models and results.
        job: what every stage is told.
        seconds: receives what each stage took, of earlier runs, too.
        prefix: of the stages' names there.
    """

    folder: Path
    job: dict[str, Any]
    reporter: Reporter
    seconds: dict[str, float]
    prefix: str = ""

    @property
    def database(self) -> Path:
        return self.folder / "database.db"

    def matched(self, photos: int, pairs: int) -> dict[str, Any]:
        """Find features of all photos, match at most ``pairs`` pairs, and say what these show: ``worker.survey``."""
        self._run("features", "features", photos, {}, lambda: _rows(self.database, "keypoints"))
        listed = {"pairs": str(self.folder / "pairs.txt")}
        self._run("match", "matching", pairs, listed, lambda: _rows(self.database, "two_view_geometries"))
        return self._run("survey", "survey", pairs, {"result": str(self.folder / "survey.json")}, None)

    def models(self, stage: str, photos: int) -> list[dict[str, Any]]:
        """Models by the mapper "incremental" or "together"; none if it found none. See ``worker``."""
        out = self.folder / stage
        extra: dict[str, Any] = {"models": str(out), "result": str(self.folder / f"{stage}.json")}
        extra["seconds"] = int(_limit(stage, photos) * 0.8)  # the mapper then ends by itself, with what it has
        label = {"incremental": "cameras", "together": "cameras, all at once"}[stage]
        found = self._run(stage, label, photos, extra, None)["models"]
        return [{**model, "folder": str(out / model["folder"]), "mapper": stage} for model in found]

    def _run(
        self, stage: str, label: str, total: int, extra: dict[str, Any], count: Callable[[], int] | None
    ) -> dict[str, Any]:
        """Run a stage, unless it is done; return its result."""
        done = self.folder / f"{stage}.done.json"
        if exists(done):
            self.seconds[self.prefix + stage] = read_json(done)["seconds"]
        else:
            job = {**self.job, "stage": stage, "database": str(self.database), **extra}
            start = time.perf_counter()
            with self.reporter.progress(self.prefix + label, total) as advance:
                _call(job, self.folder / f"{stage}.job.json", _limit(stage, total), advance, count)
            taken = self.seconds[self.prefix + stage] = round(time.perf_counter() - start, 2)
            write_json(done, {"seconds": taken})
        return read_json(Path(extra["result"])) if "result" in extra else {}


def _limit(stage: str, count: int) -> float:
    base, each = _LIMITS[stage]
    return base + each * count


def _call(job: dict[str, Any], file: Path, limit_s: float, advance: Advance, count: Callable[[], int] | None) -> None:
    """Run one stage in a process of its own. Raises WorkerError."""
    write_json(file, job)
    log = file.with_suffix(".log")
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    with (
        open(log, "wb") as errors,
        subprocess.Popen(
            [sys.executable, worker.__file__, str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches us, and we end it
        ) as process,
    ):
        try:
            _watch(process, job["stage"], limit_s, advance, count)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise _failed(job["stage"], process.returncode, log)


def _watch(
    process: subprocess.Popen[bytes], stage: str, limit_s: float, advance: Advance, count: Callable[[], int] | None
) -> None:
    told: queue.Queue[dict[str, int]] = queue.Queue()
    assert process.stdout is not None
    threading.Thread(target=_read, args=(process.stdout, told), daemon=True).start()
    until, seen = time.monotonic() + limit_s, 0
    while process.poll() is None:
        if time.monotonic() > until:
            raise WorkerError(
                f"Structure from motion ({stage}) did not end within {limit_s:.0f} seconds.",
                fix="use fewer photos (--frames), or smaller ones; the same command goes on where it was",
            )
        with suppress(queue.Empty):
            while True:
                news = told.get_nowait()
                if "total" in news:
                    advance(steps=0, total=news["total"])
                if "done" in news:
                    advance(steps=news["done"])
        if count is not None and (now := count()) > seen:
            advance(steps=now - seen)
            seen = now
        time.sleep(_POLL_S)


def _read(stream: Any, told: queue.Queue[dict[str, int]]) -> None:
    for line in stream:
        with suppress(ValueError):
            news = json.loads(line)
            if isinstance(news, dict):
                told.put(news)


def _failed(stage: str, status: int, log: Path) -> WorkerError:
    with open(log, "rb") as file:
        lines = [line for line in file.read(1 << 20).decode("utf-8", "replace").splitlines() if line.strip()]
    last = f" Its last words: {lines[-1].strip()[:300]}" if lines else ""
    ended = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
    memory = " Memory may have run out." if status == -9 else ""
    return WorkerError(
        f"Structure from motion ({stage}) {ended}.{memory}{last}",
        fix="give the same command again: it goes on where it was; with little memory, use fewer photos (--frames)",
    )


def _rows(database: Path, table: str) -> int:
    """Rows of a table so far; 0 if that cannot be told."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as opened:
        return int(opened.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0])
    return 0
