"""Batches of a training run, made ahead by worker processes or by a thread."""

from __future__ import annotations

import queue
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from itertools import chain, islice
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader

from ilrm.core.errors import IlrmError, WorkerError
from ilrm.train.config import TrainConfig
from ilrm.train.data.batch import Batch
from ilrm.train.data.batch_maker import BatchMaker, BegunBatch, validation_batches

__all__ = ["BatchMaker", "batches", "validation_batches"]

T = TypeVar("T")
_BATCHES_AHEAD = 2


def batches(
    config: TrainConfig,
    *,
    rank: int = 0,
    world_size: int = 1,
    start_step: int = 0,
    steps: int | None = None,
    device: torch.device | str = "cpu",
    cast_here: bool | None = None,
) -> Iterator[Batch]:
    """This rank's batches in order, prepared ahead by ``config.workers`` processes, or by a thread if that is 0.

    Each step gives ``config.accumulate`` batches. Close the iterator (or let it go) to stop the workers.

    For a GPU, workers decode photos and describe procedural worlds. A thread of this process copies photos in 8 bits
    through pinned memory and casts the rays, one batch ahead, on a stream of its own.

    Args:
        config: the run.
        rank, world_size: this process's place among those that train together.
        start_step: the first optimiser step.
        steps: how many steps; endless by default.
        device: where batches lie.
        cast_here: take the GPU's way; by default on any device but the CPU, where workers do everything.

    Raises:
        ConfigError: see ``BatchMaker``.
        SceneError: a source that cannot be opened, or that has too little that can be used; the latter while iterating.
        WorkerError: a worker process died; while iterating.
    """
    device = torch.device(device)
    maker = BatchMaker(config, rank=rank, world_size=world_size, device=device)
    end = sys.maxsize if steps is None else (start_step + steps) * config.accumulate
    indices = range(start_step * config.accumulate, end)
    if cast_here or (cast_here is None and device.type != "cpu"):
        return _finished_here(maker, indices)
    if config.workers:
        return _from_processes(_Guarded(maker.__getitem__), indices, config.workers)
    return _from_thread((maker[index] for index in indices), _BATCHES_AHEAD)


def _finished_here(maker: BatchMaker, indices: range) -> Iterator[Batch]:
    """Batches that workers begin and a thread of this process finishes, on a stream of its own where there are any."""
    workers, device = maker.config.workers, maker.device
    begun = _from_processes(_Guarded(maker.begin), indices, workers) if workers else map(maker.begin, indices)
    with closing(begun) if isinstance(begun, Generator) else nullcontext(), worker_deaths_explained():
        # Processes are started here and not in the thread: a thread's fork may find locks of this one taken.
        first = list(islice(begun, 1))
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None

        def finish(item: BegunBatch) -> tuple[Batch, torch.cuda.Event | None]:
            with nullcontext() if stream is None else torch.cuda.stream(stream):
                batch = maker.finish(item)
            if stream is None:
                return batch, None
            event = torch.cuda.Event()
            event.record(stream)
            return batch, event

        ready = _from_thread(map(finish, chain(first, begun)), 1)
        with closing(ready):
            for batch, event in ready:
                if event is not None:
                    current = torch.cuda.current_stream(device)
                    current.wait_event(event)  # the stream waits, not this thread
                    for tensor in batch.tensors:
                        tensor.record_stream(current)
                yield batch


def _from_thread(items: Iterator[T], ahead: int) -> Generator[T]:
    """The same items, made by a thread that is so many ahead."""
    ready: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(maxsize=ahead)
    stopped = threading.Event()

    def put(item: tuple[T] | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put((item,)):
                    return
            put(None)
        except BaseException as error:  # carried over to the consumer
            put(error)

    thread = threading.Thread(target=produce, name="batches", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0]
    finally:
        stopped.set()
        thread.join()


def _from_processes(make: _Guarded[T], indices: range, workers: int) -> Generator[T]:
    loader = DataLoader(
        make,  # type: ignore[arg-type]  # a map-style data set needs no more than __getitem__
        batch_size=None,
        sampler=indices,
        num_workers=workers,
        prefetch_factor=_BATCHES_AHEAD,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # its own: the training's random numbers do not depend on the workers
    )
    iterator = iter(loader)
    processes = list(getattr(iterator, "_workers", ()))
    try:
        with worker_deaths_explained():
            for item in iterator:
                if isinstance(item, IlrmError):
                    raise item
                yield item
    finally:
        del iterator  # asks them to end, for some seconds, and then by SIGTERM, which they do not hear
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()


@contextmanager
def worker_deaths_explained() -> Iterator[None]:
    """Turn torch's report of a dead worker into a ``WorkerError``.

    torch raises it from a signal handler, so wherever the training process happens to be: this also belongs around
    whatever is done between two batches.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):  # an error of the worker's own, carried over
            raise
        raise WorkerError(
            f"A process that prepares batches died: {str(error).splitlines()[0]}",
            expected="processes that live as long as the training",
            fix="free some memory (or shared memory, /dev/shm), lower workers, or set workers to 0",
        ) from error


class _Guarded(Generic[T]):
    """A way to make items for another process: its refusals come back as values, which keeps what they say."""

    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make

    def __getitem__(self, index: int) -> T | IlrmError:
        try:
            return self._make(index)
        except IlrmError as error:
            return error


def _start_worker(_: int) -> None:
    # Ctrl-C, and the SIGTERM that a scheduler sends to every process of a job, are the training process's to answer:
    # it needs batches until its step is done. A worker ends with the iterator, or when its parent is gone.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
