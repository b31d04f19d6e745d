"""A background thread that runs only the latest request of each kind."""

from __future__ import annotations

import threading
from collections.abc import Callable

Job = Callable[[], None]


class LatestWorker:
    """Runs jobs one after the other; a job that has not started is replaced by the next one of the same name.

    Args:
        on_error: called with the exception of a job; the thread continues.
    """

    def __init__(self, on_error: Callable[[Exception], None]) -> None:
        self._on_error = on_error
        self._jobs: dict[str, Job] = {}
        self._busy = False
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="ilrm-view", daemon=True)
        self._thread.start()

    def submit(self, name: str, job: Job) -> None:
        """Queue a job; ignored after ``close``."""
        with self._changed:
            if not self._closed:
                self._jobs[name] = job
                self._changed.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all jobs are done; return False after ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._jobs and not self._busy, timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Drop jobs that have not started, and wait for the running one."""
        with self._changed:
            self._closed = True
            self._jobs.clear()
            self._changed.notify_all()
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if self._closed:
                    return
                job = self._jobs.pop(next(iter(self._jobs)))
                self._busy = True
            try:
                job()
            except Exception as error:
                self._on_error(error)
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()
