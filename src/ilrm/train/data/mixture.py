"""Which scene of which source each sample of a run is: pure functions of the sample's number."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ilrm.files import paths
from ilrm.train.config import Chunks, Folders, Procedural, SceneList, Source, Stage
from ilrm.train.data.options import Captures

# Weights are kept to one part in so many.
_PERIOD = 1024


@dataclass(frozen=True)
class Pick:
    """Which scene a sample is.

    Attributes:
        source: place of the source in its stage.
        data: number of the data behind it; sources of the same data share it.
        count: how many samples of this data were drawn before, in the whole run.
    """

    source: int
    data: int
    count: int


class Mixture:
    """The sources of all stages, interleaved by their weights.

    A stage repeats a fixed pattern of 1024 samples in which each source has its share, evenly spread. So how often a
    source was drawn before any sample has a closed form, and any sample of the run can be made without the others.
    Sources that are the same data (the same path, or the same procedural seeds) share one counter, in one stage and
    across stages: no procedural seed is ever made twice, and no scene is seen again before its source is used up.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = tuple(stages)
        self._patterns = [_Pattern(stage) for stage in stages]
        self._data = list(dict.fromkeys(key for pattern in self._patterns for key in pattern.keys))
        self._first_sample = [0]
        self._first_counts: list[dict[Hashable, int]] = [{}]
        for stage, following, pattern in zip(stages, stages[1:], self._patterns, strict=False):
            samples = (following.start - stage.start) * stage.batch
            before = self._first_counts[-1]
            drawn = pattern.counts(samples)
            self._first_counts.append({key: before.get(key, 0) + drawn.get(key, 0) for key in {*before, *drawn}})
            self._first_sample.append(self._first_sample[-1] + samples)

    def sample_number(self, step: int, place: int) -> int:
        """The number of a sample in the whole run: sample ``place`` of the batch of optimiser step ``step``."""
        stage = self._stage(step)
        return self._first_sample[stage] + (step - self._stages[stage].start) * self._stages[stage].batch + place

    def pick(self, step: int, place: int) -> Pick:
        """The source, and which scene of it, of sample ``place`` of step ``step``."""
        stage = self._stage(step)
        pattern = self._patterns[stage]
        number = self.sample_number(step, place) - self._first_sample[stage]
        source = pattern.source(number)
        key = pattern.keys[source]
        count = self._first_counts[stage].get(key, 0) + pattern.count(key, number)
        return Pick(source, self._data.index(key), count)

    def _stage(self, step: int) -> int:
        return max(index for index, stage in enumerate(self._stages) if stage.start <= step)


class _Pattern:
    """A period of one stage's samples."""

    def __init__(self, stage: Stage) -> None:
        self.keys = [_identity(source) for source in stage.sources]
        shares = _apportioned(np.array([source.weight for source in stage.sources]))
        # The k-th of n samples of a source is due at (k + 1/2) / n of the period.
        due = np.concatenate([(np.arange(share) + 0.5) / share for share in shares])
        owner = np.repeat(np.arange(len(shares)), shares)
        self._sources = owner[np.argsort(due, kind="stable")]
        self._drawn = {
            key: np.concatenate([[0], np.cumsum([self.keys[source] == key for source in self._sources])])
            for key in set(self.keys)
        }

    def source(self, number: int) -> int:
        return int(self._sources[number % len(self._sources)])

    def count(self, key: Hashable, number: int) -> int:
        """How many of the stage's first ``number`` samples have this identity."""
        periods, rest = divmod(number, len(self._sources))
        return periods * int(self._drawn[key][-1]) + int(self._drawn[key][rest])

    def counts(self, number: int) -> dict[Hashable, int]:
        return {key: self.count(key, number) for key in self._drawn}


def _apportioned(weights: np.ndarray) -> np.ndarray:
    """Whole shares of the period, at least one for each; a source alone has a period of one."""
    if len(weights) == 1:
        return np.array([1])
    exact = weights / weights.sum() * _PERIOD
    shares = np.maximum(np.floor(exact).astype(int), 1)
    # Largest remainders first.
    for index in np.argsort(shares - exact, kind="stable")[: max(_PERIOD - shares.sum(), 0)]:
        shares[index] += 1
    return shares


def _identity(source: Source) -> Hashable:
    match source:
        case Procedural():
            return source.kind, source.first_seed
        case Chunks() | SceneList() | Folders():
            return source.kind, str(paths.absolute(paths.expanded(source.path)))
        case Captures():
            return source.kind, str(paths.absolute(paths.expanded(source.path))), source.only, source.leave_out


def visit_order(seed: Sequence[int], scenes: int, count: int) -> int:
    """Which of ``scenes`` scenes visit ``count`` goes to: each once an epoch, in an order drawn anew for each epoch."""
    epoch, place = divmod(count, scenes)
    return int(_permutation((*seed, epoch), scenes)[place])


@lru_cache(maxsize=16)  # a few sources, each between two epochs
def _permutation(seed: tuple[int, ...], scenes: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(scenes)
