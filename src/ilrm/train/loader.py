"""Batches of a training run: any of them can be made alone, and many are made ahead.

Everything is a pure function of the config, the optimiser step and the place in the batch: the number of ranks,
parts and workers only decides who makes what, so a run can stop and go on anywhere.
"""

from __future__ import annotations

import queue
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ilrm.errors import ConfigError, IlrmError, SceneError, WorkerError
from ilrm.scene import Scene
from ilrm.train.batch import Batch, Problem
from ilrm.train.config import Procedural, Source, Stage, TrainConfig
from ilrm.train.mixture import Mixture, Pick
from ilrm.train.preparation import Sample, make_sample, mirror
from ilrm.train.samplers import choose_views, draw_inputs, for_made_scenes, frames_of_made_scene
from ilrm.train.sources import ProceduralSource

# What a random generator is for; part of its seed, so that no two draws are related.
_INPUTS, _SAMPLE = 0, 1
_BATCHES_AHEAD = 2


class BatchMaker:
    """Makes this rank's part of any batch of a run: ``maker[step * config.accumulate + part]``.

    Rank r of w has the r-th of w equal contiguous shares of a step's batch, split into ``accumulate`` contiguous
    parts. All samples of a step have the same number of input views.

    Args:
        config: the run.
        rank, world_size: this process's place among those that train together.
        device: where procedural scenes are made, and where batches lie.

    Raises:
        ConfigError: a batch that does not divide by ranks and parts.
        SceneError: a source that cannot be opened.
    """

    def __init__(
        self, config: TrainConfig, *, rank: int = 0, world_size: int = 1, device: torch.device | str = "cpu"
    ) -> None:
        assert 0 <= rank < world_size, (rank, world_size)
        for stage in config.stages:
            _check_divisible(stage, world_size, config.accumulate)
        self.config = config
        self.rank, self.world_size = rank, world_size
        self.device = torch.device(device)
        self._mixture = Mixture(config.stages)
        self._opened: dict[Source, ProceduralSource] = {}
        for stage in config.stages:
            for source in stage.sources:
                self._opened.setdefault(_unweighted(source), _open(source))

    def __getitem__(self, index: int) -> Batch:
        step, part = divmod(index, self.config.accumulate)
        stage = self.config.stage_at(step)
        share = stage.batch // self.world_size // self.config.accumulate
        first = (self.rank * self.config.accumulate + part) * share
        return self._make(step, stage, range(first, first + share))

    def _make(self, step: int, stage: Stage, places: Sequence[int]) -> Batch:
        inputs = draw_inputs(stage.sampler, self._rng(_INPUTS, step))
        orders = [_Order(place, self._mixture.pick(step, place)) for place in places]
        samples: dict[int, tuple[str, Sample]] = {}
        for index, source in enumerate(stage.sources):
            chosen = [order for order in orders if order.pick.source == index]
            if chosen:
                samples.update(self._procedural(step, stage, source, chosen, inputs))
        made = [samples[place] for place in places]
        return _stack([sample for _, sample in made], inputs, tuple(name for name, _ in made)).to(self.device)

    def _procedural(
        self, step: int, stage: Stage, source: Source, orders: Sequence[_Order], inputs: int
    ) -> Iterator[tuple[int, tuple[str, Sample]]]:
        opened = self._opened[_unweighted(source)]
        numbers = [order.pick.count for order in orders]
        frames = frames_of_made_scene(stage.sampler, inputs)
        for order, scene in zip(orders, opened.make(numbers, frames, stage.size, self.device), strict=True):
            rng = self._rng(_SAMPLE, self._mixture.sample_number(step, order.place))
            views = choose_views(for_made_scenes(stage.sampler), scene.cameras.c2w, step, rng, inputs)
            chosen = scene.select([*views.inputs, *views.targets])
            sample = make_sample(self._maybe_mirrored(chosen, stage, rng), inputs, self.config.model.normalisation)
            yield order.place, (opened.name(order.pick.count), sample)

    def _maybe_mirrored(self, scene: Scene, stage: Stage, rng: np.random.Generator) -> Scene:
        return mirror(scene) if stage.flip and rng.random() < 0.5 else scene

    def _rng(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, *purpose])


@dataclass(frozen=True)
class _Order:
    """A sample to be made: its place in the step's batch, and what was picked for it."""

    place: int
    pick: Pick


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
    try:
        for item in loader:
            if isinstance(item, IlrmError):
                raise item
            yield item
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise WorkerError(
            f"A process that prepares batches died: {str(error).splitlines()[0]}",
            expected=f"{workers} processes that live as long as the training",
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the training process's to answer
    torch.set_num_threads(1)


def _check_divisible(stage: Stage, world_size: int, accumulate: int) -> None:
    if stage.batch % (world_size * accumulate):
        raise ConfigError(
            f"A batch of {stage.batch} (stage from step {stage.start}) does not divide into {world_size} ranks "
            f"times {accumulate} accumulated parts.",
            expected=f"a multiple of {world_size * accumulate}",
            fix="change the stage's batch, accumulate, or the number of devices",
        )


def _unweighted(source: Source) -> Source:
    return replace(source, weight=1.0)


def _open(source: Source) -> ProceduralSource:
    if isinstance(source, Procedural):
        return ProceduralSource(source)
    raise SceneError(f"{source.kind} sources cannot be opened yet.")


def _stack(samples: Sequence[Sample], inputs: int, names: tuple[str, ...], problems: tuple[Problem, ...] = ()) -> Batch:
    return Batch(
        images=torch.stack([sample.images for sample in samples]),
        c2w=torch.stack([sample.c2w for sample in samples]),
        K=torch.stack([sample.K for sample in samples]),
        inputs=inputs,
        names=names,
        depth=_stacked_depth(samples),
        problems=problems,
    )


def _stacked_depth(samples: Sequence[Sample]) -> Tensor | None:
    if all(sample.depth is None for sample in samples):
        return None
    unknown = torch.zeros_like(samples[0].images[..., 0])
    return torch.stack([unknown if sample.depth is None else sample.depth for sample in samples])
