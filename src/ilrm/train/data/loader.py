"""Batches of a training run, made ahead by worker processes or by a thread."""

from __future__ import annotations

import queue
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.data import DataLoader

from ilrm.core.errors import ConfigError, IlrmError, WorkerError
from ilrm.train.config import TrainConfig
from ilrm.train.data.batch import Batch
from ilrm.train.data.batch_maker import BatchMaker, validation_batches

__all__ = ["BatchMaker", "batches", "validation_batches"]

_BATCHES_AHEAD = 2


def batches(
    config: TrainConfig,
    *,
    rank: int = 0,
    world_size: int = 1,
    start_step: int = 0,
    steps: int | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """This rank's batches in order, prepared ahead by ``config.workers`` processes, or by a thread if that is 0.

    Each step gives ``config.accumulate`` batches. Close the iterator (or let it go) to stop the workers.

    Args:
        config: the run.
        rank, world_size: this process's place among those that train together.
        start_step: the first optimiser step.
        steps: how many steps; endless by default.
        device: where procedural scenes are made, and where batches lie; only the CPU with worker processes.

    Raises:
        ConfigError: see ``BatchMaker``; another device with worker processes.
        SceneError: a source that cannot be opened, or that has too little that can be used; the latter while iterating.
        WorkerError: a worker process died; while iterating.
    """
    if config.workers and torch.device(device).type != "cpu":
        raise ConfigError(
            f"{config.workers} worker processes cannot make batches on {device}.",
            expected="the CPU, or workers = 0 (a thread of the training process)",
            fix="set workers to 0",
        )
    maker = BatchMaker(config, rank=rank, world_size=world_size, device=device)
    end = sys.maxsize if steps is None else (start_step + steps) * config.accumulate
    indices = range(start_step * config.accumulate, end)
    return _from_processes(maker, indices, config.workers) if config.workers else _from_thread(maker, indices)


def _from_thread(maker: BatchMaker, indices: range) -> Iterator[Batch]:
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=_BATCHES_AHEAD)
    stopped = threading.Event()

    def put(item: Batch | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for index in indices:
                if not put(maker[index]):
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
            yield item
    finally:
        stopped.set()
        thread.join()


def _from_processes(maker: BatchMaker, indices: range, workers: int) -> Iterator[Batch]:
    loader = DataLoader(
        _Guarded(maker),  # type: ignore[arg-type]  # a map-style data set needs no more than __getitem__
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


class _Guarded:
    """The maker for another process: its refusals come back as values, which keeps what they say."""

    def __init__(self, maker: BatchMaker) -> None:
        self._maker = maker

    def __getitem__(self, index: int) -> Batch | IlrmError:
        try:
            return self._maker[index]
        except IlrmError as error:
            return error


def _start_worker(_: int) -> None:
    # Ctrl-C, and the SIGTERM that a scheduler sends to every process of a job, are the training process's to answer:
    # it needs batches until its step is done. A worker ends with the iterator, or when its parent is gone.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
