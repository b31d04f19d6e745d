"""Work spread over processes: every item once, answers as they come."""

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

# A process takes seconds to start, as long as a few scenes take.
_ITEMS_WORTH_A_PROCESS = 4
_SECONDS_TO_TIDY_UP = 5.0


@dataclass(frozen=True)
class Lost:
    """Instead of an answer: the process that worked on the item was killed.

    Attributes:
        exit_code: its status; minus the signal's number where a signal ended it.
    """

    exit_code: int | None

    @property
    def reason(self) -> str:
        """What happened, in words."""
        return f"The process that worked on it ended with {self.exit_code}, for want of memory perhaps."


def choose_jobs(asked: int | None, items: int) -> int:
    """The number of processes for so many items; by default one a core, but none that would hardly do anything.

    Raises:
        ConfigError: fewer than one was asked for.
    """
    if asked is not None and asked < 1:
        raise ConfigError(f"{asked} processes were asked for.", expected="at least 1")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(asked, items) if asked else min(cores, items // _ITEMS_WORTH_A_PROCESS))


def run_each(work: Callable[[Item], Answer], items: Sequence[Item], jobs: int) -> Iterator[tuple[int, Answer | Lost]]:
    """Call ``work`` on every item and yield (index of the item, answer) in the order of completion.

    One job works in this process; more are processes of one torch thread each, to which ``work``, the items and the
    answers must be picklable. They end with the iterator, and with this process even if that is killed.

    Raises:
        IlrmError: the processes cannot start.
        Exception: whatever ``work`` raises; the rest is not done then.
    """
    if jobs == 1:
        for index, item in enumerate(items):
            yield index, work(item)
        return
    waiting = deque(range(len(items)))
    workers: list[_Worker[Item, Answer]] = []
    try:
        with _interrupts_held_back():
            workers += [_Worker(work) for _ in range(min(jobs, len(items)))]
        while any(worker.expected for worker in workers):
            ready = wait([worker.pipe for worker in workers if worker.expected])
            for worker in [worker for worker in workers if worker.pipe in ready]:
                index, answer = worker.receive()
                if isinstance(answer, Lost):
                    workers.remove(worker)
                    if waiting:
                        with _interrupts_held_back():
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
    """A process and the pipe to it. It greets first; then it answers items one by one."""

    def __init__(self, work: Callable[[Item], Answer]) -> None:
        # Not forked: torch's threads do not survive that.
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

    def receive(self) -> tuple[int | None, Answer | Lost | None]:
        """The item's index and the answer; (None, None) for the greeting."""
        self.expected = False
        try:
            answer = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            if not self.greeted:
                raise IlrmError(
                    f"The processes that should share the work do not start (exit code {self.process.exitcode}).",
                    fix="work in one process (jobs 1); a script needs an `if __name__ == '__main__'` around its calls",
                ) from None
            return self.index, Lost(self.process.exitcode)
        self.greeted = True
        if isinstance(answer, _Failure):
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
class _Failure:
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
            answer = _Failure(_portable(error), traceback.format_exc())
        pipe.send(answer)


def _stop(*_: object) -> NoReturn:
    raise SystemExit  # unwinds the stack, so that temporary files are removed


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _portable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # exceptions may demand arguments that they do not keep
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Processes started inside never see Ctrl-C: the terminal sends it to all, but ending them is up to this one."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # the first process would start it, and that lets the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
