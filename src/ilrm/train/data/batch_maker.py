"""Any batch of a training run, made alone.

Everything is a pure function of the config, the optimiser step and the place in the batch: the number of ranks,
parts and workers only decides who makes what, so a run can stop and go on anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ilrm.core.errors import ConfigError, IlrmError, SceneError
from ilrm.core.scene import Scene
from ilrm.datasets.procedural import DescribedScene
from ilrm.train.config import Bounded, BoundedV2, Source, Stage, TrainConfig
from ilrm.train.data.batch import Batch, Problem
from ilrm.train.data.captures import CaptureSource, plain
from ilrm.train.data.mixture import Mixture, Pick, visit_order
from ilrm.train.data.noise import disturb_inputs
from ilrm.train.data.options import Captures
from ilrm.train.data.preparation import Sample, fitted, make_sample, mirror, moved, to_bytes
from ilrm.train.data.samplers import Unusable, choose_views, draw_inputs, for_made_scenes, frames_of_made_scene
from ilrm.train.data.sources import FiniteSource, ProceduralSource, open_source

# What a random generator is for; part of its seed, so that no two draws are related.
_INPUTS, _SAMPLE, _ORDER, _SUBSTITUTE = range(4)
# So many scenes of one source in a row that cannot be used are no accident.
_MOST_SUBSTITUTES = 20
_VALIDATION_SEED = 0


class BatchMaker:
    """Makes this rank's part of any batch of a run: ``maker[step * config.accumulate + part]``.

    Rank r of w has the r-th of w equal contiguous shares of a step's batch, split into ``accumulate`` contiguous
    parts. All samples of a step have the same number of input views.

    Args:
        config: the run.
        rank, world_size: this process's place among those that train together.
        device: where rays of procedural scenes are cast, and where batches lie.
        in_bytes: photos are kept in 8 bits until they are on the device; by default if that is a GPU.

    Raises:
        ConfigError: a batch that does not divide by ranks and parts.
        SceneError: a source that cannot be opened.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        in_bytes: bool | None = None,
    ) -> None:
        assert 0 <= rank < world_size, (rank, world_size)
        for stage in config.stages:
            _check_divisible(stage, world_size, config.accumulate)
        self.config = config
        self.rank, self.world_size = rank, world_size
        self.device = torch.device(device)
        self._in_bytes = self.device.type != "cpu" if in_bytes is None else in_bytes
        self._mixture = Mixture(config.stages)
        self._opened: dict[Source, FiniteSource | CaptureSource | ProceduralSource] = {}
        for source in (source for stage in config.stages for source in stage.sources):
            if _unweighted(source) not in self._opened:
                self._opened[_unweighted(source)] = open_source(source)

    def __getitem__(self, index: int) -> Batch:
        return self.finish(self.begin(index))

    def begin(self, index: int) -> BegunBatch:
        """What numpy and the CPU do for a batch, in any process: photos are decoded, worlds are described."""
        step, part = divmod(index, self.config.accumulate)
        share = self.config.stage_at(step).batch // self.world_size // self.config.accumulate
        first = (self.rank * self.config.accumulate + part) * share
        return self._begin(step, range(first, first + share))

    def samples(self, step: int, places: Sequence[int]) -> Batch:
        """Any samples of a step's batch, by their places in the whole of it."""
        return self.finish(self._begin(step, places))

    def _begin(self, step: int, places: Sequence[int]) -> BegunBatch:
        stage = self.config.stage_at(step)
        inputs = draw_inputs(stage.sampler, self._rng(_INPUTS, step))
        views = frames_of_made_scene(stage.sampler, inputs)
        begun = BegunBatch(step, tuple(places), inputs)
        for place in places:
            order = self._order(step, stage, place, inputs)
            opened = self._opened[_unweighted(stage.sources[order.pick.source])]
            if isinstance(opened, ProceduralSource):
                begun.described[place] = opened.describe(order.pick.count, views, stage.size)
                continue
            made = self._from_files(opened, order)
            if self._in_bytes:
                made = replace(made, sample=replace(made.sample, images=to_bytes(made.sample.images)))
            begun.made[place] = made
        return begun

    @torch.no_grad()
    def finish(self, begun: BegunBatch) -> Batch:
        """What is left to do on the device: rays are cast."""
        stage = self.config.stage_at(begun.step)
        orders = [self._order(begun.step, stage, place, begun.inputs) for place in begun.places]
        made = dict(begun.made)
        for index, source in enumerate(stage.sources):
            opened = self._opened[_unweighted(source)]
            if isinstance(opened, ProceduralSource):
                chosen = [order for order in orders if order.pick.source == index]
                made.update(self._cast(opened, chosen, [begun.described[order.place] for order in chosen]))
        kinds = tuple(stage.sources[order.pick.source].kind for order in orders)
        return replace(_batch([made[place] for place in begun.places], begun.inputs, self.device), kinds=kinds)

    def _order(self, step: int, stage: Stage, place: int, inputs: int) -> _Order:
        number = self._mixture.sample_number(step, place)
        return _Order(step, stage, place, number, inputs, self._mixture.pick(step, place))

    def _cast(
        self, source: ProceduralSource, orders: Sequence[_Order], described: Sequence[DescribedScene]
    ) -> Iterator[tuple[int, _MadeBatch]]:
        if not orders:
            return
        stage, inputs = orders[0].stage, orders[0].inputs
        sampler = for_made_scenes(stage.sampler)
        views = frames_of_made_scene(stage.sampler, inputs)
        scenes = source.cast(described, views, stage.size, self.device)
        for order, scene in zip(orders, scenes, strict=True):
            rng = self._rng(_SAMPLE, order.number)
            chosen = choose_views(sampler, scene.cameras.c2w, order.step, rng, inputs)
            scene = scene.select([*chosen.inputs, *chosen.targets])
            if stage.flip and rng.random() < 0.5:
                scene = mirror(scene)
            yield order.place, _MadeBatch(source.name(order.pick.count), self._sample(scene, order, rng))

    def _from_files(self, source: FiniteSource | CaptureSource, order: _Order) -> _MadeBatch:
        """The scene whose turn it is or, where that cannot be used, others drawn from the same source."""
        problems: list[Problem] = []
        for attempt, key in enumerate(self._candidates(source, order)):
            try:
                sample = self._from_file(source, key, order, self._rng(_SAMPLE, order.number, attempt))
                return _MadeBatch(key, sample, tuple(problems))
            except (IlrmError, OSError) as error:
                problems.append(Problem(key, source.label, _one_line(error), not isinstance(error, Unusable)))
        last = "; ".join(f"{problem.scene}: {problem.reason}" for problem in problems[-3:])
        raise SceneError(
            f"{len(problems)} scenes of {source.label} in a row could not be used; the last ones: {last}",
            expected="scenes that are whole and fit the stage's sampler and size",
            fix="look at the scenes with 'ilrm data check', or change the sampler or fit",
        )

    def _candidates(self, source: FiniteSource | CaptureSource, order: _Order) -> Iterator[str]:
        scenes = len(source.keys)
        yield source.keys[visit_order((self.config.seed, _ORDER, order.pick.data), scenes, order.pick.count)]
        rng = self._rng(_SUBSTITUTE, order.number)
        for _ in range(_MOST_SUBSTITUTES):
            yield source.keys[int(rng.integers(scenes))]

    def _from_file(
        self, source: FiniteSource | CaptureSource, key: str, order: _Order, rng: np.random.Generator
    ) -> Sample:
        stage = order.stage
        if isinstance(source, CaptureSource):
            scene = source.draw(key, order.inputs, stage.sampler.targets, stage.size, rng)
            if stage.flip and rng.random() < 0.5:
                scene = mirror(scene)
            return self._sample(scene, order, rng)
        clip = source.load(key)
        views = choose_views(stage.sampler, clip.c2w, order.step, rng, order.inputs)
        scene = fitted(clip, [*views.inputs, *views.targets], stage.size, stage.fit)
        if stage.flip and rng.random() < 0.5:
            # The released training code mirrors without moving the principal point; the stretching one never mirrors.
            scene = mirror(scene, move_principal_point=stage.fit in ("exact", "stretch"))
        return self._sample(scene, order, rng)

    def _sample(self, scene: Scene, order: _Order, rng: np.random.Generator) -> Sample:
        if order.stage.noise is not None:
            scene = disturb_inputs(scene, order.inputs, order.stage.noise, rng)
        return make_sample(scene, order.inputs, self.config.model.normalisation)

    def _rng(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, *purpose])


@dataclass(frozen=True)
class _Order:
    """A sample to be made.

    Attributes:
        step, stage: what it is for.  place: in the step's batch.  number: in the whole run.
        inputs: number of input views.
        pick: the source, and which scene of it.
    """

    step: int
    stage: Stage
    place: int
    number: int
    inputs: int
    pick: Pick


@dataclass(frozen=True, eq=False)
class _MadeBatch:
    """A sample, its scene's name and what could not be used instead of it."""

    name: str
    sample: Sample
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, eq=False)
class BegunBatch:
    """A batch whose procedural scenes are not cast yet; travels between processes.

    Attributes:
        step, places, inputs: which samples it has, and their number of input views.
        made: those from files, by their places.
        described: the worlds of the others.
    """

    step: int
    places: tuple[int, ...]
    inputs: int
    made: dict[int, _MadeBatch] = field(default_factory=dict)
    described: dict[int, DescribedScene] = field(default_factory=dict)


def validation_batches(config: TrainConfig, device: torch.device | str = "cpu") -> list[Batch]:
    """The same ``config.validation_scenes`` samples whenever they are asked for; none without ``config.validation``.

    They depend on the validation stage and the network's normalisation only: not on the run's seed or step (windows
    are those of the end of the warm-up). They have the stage's first size and are neither mirrored nor disturbed, and
    captures are shown as they are.

    Raises:
        SceneError: a source that cannot be opened, or that has too little that can be used.
    """
    if config.validation is None:
        return []
    sources = tuple(plain(source) if isinstance(source, Captures) else source for source in config.validation.sources)
    stage = replace(config.validation, sources=sources, start=0, flip=False, shapes=(), noise=None)
    if isinstance(stage.sampler, Bounded | BoundedV2):
        stage = replace(stage, sampler=replace(stage.sampler, warm_up=0))
    maker = BatchMaker(
        replace(config, stages=(stage,), validation=None, patience=0, seed=_VALIDATION_SEED, accumulate=1),
        device=device,
    )
    firsts = range(0, config.validation_scenes, stage.batch)
    return [
        maker.samples(step, range(min(stage.batch, config.validation_scenes - first)))
        for step, first in enumerate(firsts)
    ]


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


def _one_line(error: Exception) -> str:
    text = error.problem if isinstance(error, IlrmError) else str(error)
    return " ".join(text.split())


def _batch(made: Sequence[_MadeBatch], inputs: int, device: torch.device) -> Batch:
    samples = [each.sample for each in made]
    return Batch(
        images=torch.stack([moved(sample.images, device) for sample in samples]),
        c2w=moved(torch.stack([sample.c2w for sample in samples]), device),
        K=moved(torch.stack([sample.K for sample in samples]), device),
        inputs=inputs,
        names=tuple(each.name for each in made),
        depth=_stacked_depth(samples, device),
        problems=tuple(problem for each in made for problem in each.problems),
    )


def _stacked_depth(samples: Sequence[Sample], device: torch.device) -> Tensor | None:
    if all(sample.depth is None for sample in samples):
        return None
    unknown = torch.zeros(samples[0].images.shape[:-1], device=device)
    return torch.stack([unknown if sample.depth is None else moved(sample.depth, device) for sample in samples])
