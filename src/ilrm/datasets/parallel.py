"""Running a function on many items in several processes, with results in the order of completion."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, NoReturn, TypeVar

import torch

from ilrm.core.errors import ConfigError, IlrmError

Item = TypeVar("Item")
Answer = TypeVar("Answer")

# Starting a process takes seconds, as long as processing a few scenes.
_ITEMS_WORTH_A_PROCESS = 4
_SECONDS_TO_TIDY_UP = 5.0


@dataclass(frozen=True)
class LostWorker:
    """The result for an item whose process was killed.

    Attributes:
        exit_code: exit status of the process; minus the signal number if a signal ended it.
    """

    exit_code: int | None

    @property
    def reason(self) -> str:
        """The reason as a sentence."""
        return f"The process that worked on it ended with status {self.exit_code}, possibly because memory ran out."


def choose_jobs(requested: int | None, items: int) -> int:
    """The number of processes for ``items``; by default one per core, but only if each has several items to process.

    Raises:
        ConfigError: fewer than one process.
    """
    if requested is not None and requested < 1:
        raise ConfigError(f"{requested} processes were requested.", expected="at least 1")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(requested, items) if requested else min(cores, items // _ITEMS_WORTH_A_PROCESS))


def run_each(
    work: Callable[[Item], Answer], items: Sequence[Item], jobs: int
) -> Iterator[tuple[int, Answer | LostWorker]]:
    """Call ``work`` on every item and yield (index of the item, result) in the order of completion.

    A single job runs in this process. Otherwise each job is a process with one torch thread, and ``work``, the items
    and the results must be picklable. The processes end with the iterator, and also if this process is killed.

    Raises:
        IlrmError: the processes cannot start.
        Exception: any exception of ``work``; the remaining items are then not processed.
    """
    if jobs == 1:
        for index, item in enumerate(items):
            yield index, work(item)
        return
    waiting = deque(range(len(items)))
    workers: list[_Worker[Item, Answer]] = []
    try:
        with _interrupts_blocked():
            workers += [_Worker(work) for _ in range(min(jobs, len(items)))]
        while any(worker.expected for worker in workers):
            ready = wait([worker.pipe for worker in workers if worker.expected])
            for worker in [worker for worker in workers if worker.pipe in ready]:
                index, answer = worker.receive()
                if isinstance(answer, LostWorker):
                    workers.remove(worker)
                    if waiting:
                        with _interrupts_blocked():
                            workers.append(_Worker(work))
                elif waiting:
                    worker.give(waiting[0], items[waiting.popleft()])
                if index is not None:
                    yield index, answer  # type: ignore[misc]  # only the greeting has no index, and no answer
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.end()


class _Worker(Generic[Item, Answer]):
    """A process and the pipe to it. The process first sends a greeting, then one result per item."""

    def __init__(self, work: Callable[[Item], Answer]) -> None:
        # Spawned, because torch's threads do not survive a fork.
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        self.process.start()
        theirs.close()
        self.index: int | None = None
        self.expected = True
        self.greeted = False

    def give(self, index: int, item: Item) -> None:
        self.index, self.expected = index, True
        self.pipe.send(item)

    def receive(self) -> tuple[int | None, Answer | LostWorker | None]:
        """The item's index and its result; (None, None) for the greeting."""
        self.expected = False
        try:
            answer = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            if not self.greeted:
                raise IlrmError(
                    f"The worker processes do not start (exit code {self.process.exitcode}).",
                    fix="use one process (jobs 1); in a script, put the call under `if __name__ == '__main__':`",
                ) from None
            return self.index, LostWorker(self.process.exitcode)
        self.greeted = True
        if isinstance(answer, _WorkerFailure):
            raise answer.error from RuntimeError(answer.trace)
        return self.index, answer

    def end(self) -> None:
        self.process.join(_SECONDS_TO_TIDY_UP)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()
        self.pipe.close()


@dataclass(frozen=True)
class _WorkerFailure:
    error: Exception
    trace: str


def _serve(pipe: Connection, work: Callable[[Any], Any]) -> None:
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    pipe.send(None)
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        try:
            answer = work(item)
        except Exception as error:
            answer = _WorkerFailure(_portable(error), traceback.format_exc())
        pipe.send(answer)


def _stop(*_: object) -> NoReturn:
    raise SystemExit  # unwind the stack, so that temporary files are removed


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _portable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # some exceptions cannot be unpickled, because __init__ needs other arguments
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Start processes that ignore Ctrl-C: the terminal sends it to all of them, but this process ends them itself."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    # The first worker would start the resource tracker, and starting it unblocks the signal.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
