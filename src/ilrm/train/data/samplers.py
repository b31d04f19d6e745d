"""Which frames of a sequence are inputs and which are targets.

Pure functions of a sampler's config, the poses, the optimiser step and a random generator. The windows of ``Bounded``
and ``BoundedV2`` grow with the step as in the released training code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ilrm.core.cameras import Cameras
from ilrm.core.errors import SceneError
from ilrm.scenes.views import farthest_points, select_inputs, split_holdout
from ilrm.train.config import Bounded, BoundedV2, Range, Sampler, Spread

SamplerStage = Literal["train", "test"]


class Unusable(SceneError):
    """A sound scene that this run has no use for."""


class TooFewFrames(Unusable):
    """A sequence that is too short for the sampler."""


class SampledViews(NamedTuple):
    """Indices into a sequence."""

    inputs: tuple[int, ...]
    targets: tuple[int, ...]


def scheduled(bounds: Range, step: int, warm_up: int) -> int:
    """The value of a bound at optimiser step ``step``: from bounds[0] to bounds[1] over the warm-up.

    The released rule: growing bounds grow linearly, shrinking ones jump to their end at once.
    """
    first, last = bounds
    return last if step >= warm_up else min(first + int((last - first) * step / warm_up), last)


def draw_inputs(sampler: Sampler, rng: np.random.Generator) -> int:
    """How many input views all samples of one optimiser step have."""
    match sampler:
        case Bounded():
            return sampler.inputs
        case BoundedV2():
            return int(rng.integers(sampler.inputs[0], sampler.inputs[1] + 1))
        case Spread():
            return int(rng.choice(sampler.inputs))


def frames_of_made_scene(sampler: Sampler, inputs: int) -> int:
    """The fewest frames of a scene that is made to order: enough for ``for_made_scenes(sampler)``."""
    spread = for_made_scenes(sampler)
    frames = inputs + spread.targets
    while spread.hold_out_every and not _enough(spread, inputs, frames):
        frames += 1
    return frames


def for_made_scenes(sampler: Sampler) -> Spread:
    """The sampler of scenes that are made with exactly the frames needed: windows of a long video make no sense there,
    so their inputs are spread over the whole path."""
    return sampler if isinstance(sampler, Spread) else Spread(targets=sampler.targets)


def choose_views(
    sampler: Sampler,
    c2w: Tensor,
    step: int,
    rng: np.random.Generator,
    inputs: int,
    *,
    stage: SamplerStage = "train",
) -> SampledViews:
    """Draw the input and target frames of one sample.

    Args:
        sampler: the rule.
        c2w: (N, 4, 4) camera-to-world of all frames, in the order of the sequence.
        step: optimiser step, which the bounds of the window follow.
        rng: source of all chance.
        inputs: number of input views (see ``draw_inputs``).
        stage: "test" is the released protocol for scoring with a windowed sampler: the longest window, from the first
            frame on, all of its frames being targets.

    Raises:
        TooFewFrames: the sequence is too short.
        Unusable: not enough distinct camera centres for the farthest-point choice.
    """
    match sampler:
        case Bounded():
            return _bounded(sampler, len(c2w), step, rng, inputs, stage)
        case BoundedV2():
            return _bounded_v2(sampler, c2w, step, rng, inputs, stage)
        case Spread():
            return _spread(sampler, c2w, rng, inputs)


def _bounded(
    sampler: Bounded, frames: int, step: int, rng: np.random.Generator, inputs: int, stage: SamplerStage
) -> SampledViews:
    if stage == "test":
        left, right = _longest_window(sampler.max_gap[1], frames)
    else:
        least = max(scheduled(sampler.min_gap, step, sampler.warm_up), 2 * sampler.min_distance)
        left, right = _window(least, scheduled(sampler.max_gap, step, sampler.warm_up), frames, rng)
    chosen = _evenly(range(left, right + 1), inputs)
    if stage == "test":
        return SampledViews(chosen, tuple(range(left, right + 1)))
    # The window's ends may be targets too, as released; inputs that were added between them may not (paper).
    between = chosen[1:-1]
    candidates = [
        frame
        for frame in range(left + sampler.min_distance, right - sampler.min_distance + 1)
        if all(abs(frame - view) >= max(sampler.min_distance, 1) for view in between)
    ]
    return SampledViews(chosen, _draw(candidates, sampler.targets, rng, "targets in a window"))


def _bounded_v2(
    sampler: BoundedV2, c2w: Tensor, step: int, rng: np.random.Generator, inputs: int, stage: SamplerStage
) -> SampledViews:
    frames = len(c2w)
    if stage == "test":
        left, right = _longest_window(sampler.max_gap[1], frames)
        targets = tuple(range(left, right + 1))
    else:
        # Fewer views bound shorter windows, so that neighbours stay about as far apart.
        divisor = max(sampler.inputs[1] // inputs, 1)
        least = scheduled(sampler.min_gap, step, sampler.warm_up) // divisor
        left, right = _window(least, scheduled(sampler.max_gap, step, sampler.warm_up) // divisor, frames, rng)
        first, last = max(left - sampler.extension, 0), min(right + sampler.extension, frames - 1)
        targets = tuple(sorted(_draw(range(first, last + 1), sampler.targets, rng, "targets in a window")))
    if inputs == 2:
        return SampledViews((left, right), targets)
    if sampler.strategy == "random":
        between = _draw(range(left + 1, right), inputs - 2, rng, "inputs between the ends of a window")
        return SampledViews((left, *sorted(between), right), targets)
    chosen = sorted({left + index for index in farthest_points(c2w[left : right + 1, :3, 3], inputs)})
    if len(chosen) < inputs:
        raise Unusable(
            f"A window of {right - left + 1} frames has {len(chosen)} distinct camera centres.",
            expected=f"at least {inputs}, one for each input",
        )
    return SampledViews(tuple(chosen), targets)


def _spread(sampler: Spread, c2w: Tensor, rng: np.random.Generator, inputs: int) -> SampledViews:
    frames = len(c2w)
    if not _enough(sampler, inputs, frames):
        held = f" with every {sampler.hold_out_every}-th held out" if sampler.hold_out_every else ""
        raise TooFewFrames(
            f"A sequence of {frames} frames is too short for {inputs} inputs and {sampler.targets} targets{held}.",
            expected=f"at least {frames_of_made_scene(sampler, inputs)} frames",
            fix="leave the sequence out, or ask for fewer views",
        )
    pool, held_out = _pools(sampler, frames)
    match sampler.selection:
        case "uniform":
            chosen = _evenly(pool, inputs)
        case "random":
            chosen = tuple(sorted(_draw(pool, inputs, rng, "inputs")))
        case "kmeans":
            cameras = Cameras(c2w, torch.eye(3).expand(frames, 3, 3), 1, 1)  # only the poses count
            chosen = tuple(select_inputs(cameras, inputs, pool, seed=int(rng.integers(2**31))))
    candidates = held_out or [frame for frame in pool if frame not in chosen]
    return SampledViews(chosen, tuple(sorted(_draw(candidates, sampler.targets, rng, "targets"))))


def _pools(sampler: Spread, frames: int) -> tuple[Sequence[int], Sequence[int]]:
    """Frames that may be inputs, and those held out as targets (none: targets are what the inputs leave)."""
    return split_holdout(frames, sampler.hold_out_every) if sampler.hold_out_every else (range(frames), ())


def _enough(sampler: Spread, inputs: int, frames: int) -> bool:
    pool, held_out = _pools(sampler, frames)
    if sampler.hold_out_every:
        return len(pool) >= inputs and len(held_out) >= sampler.targets
    return len(pool) >= inputs + sampler.targets


def _window(least: int, most: int, frames: int, rng: np.random.Generator) -> tuple[int, int]:
    """First and last frame of a window: its length uniform in [least, most], its place uniform in the sequence."""
    most = min(most, frames - 1)
    if most < least:
        raise _too_short(frames, least)
    gap = int(rng.integers(least, most + 1))
    left = int(rng.integers(0, frames - gap))
    return left, left + gap


def _longest_window(gap: int, frames: int) -> tuple[int, int]:
    if frames - 1 < gap:
        raise _too_short(frames, gap)
    return 0, gap


def _too_short(frames: int, gap: int) -> TooFewFrames:
    return TooFewFrames(
        f"A sequence of {frames} frames is too short for a window of {gap + 1}.",
        expected=f"at least {gap + 1} frames",
        fix="leave the sequence out, or lower the sampler's min_gap",
    )


def _evenly(pool: Sequence[int], count: int) -> tuple[int, ...]:
    """``count`` members of the pool at even distances, the first and the last included; the middle one for one."""
    places = np.linspace(0, len(pool) - 1, count) if count > 1 else np.array([(len(pool) - 1) / 2])
    return tuple(pool[place] for place in np.rint(places).astype(int).tolist())


def _draw(pool: Sequence[int], count: int, rng: np.random.Generator, what: str) -> tuple[int, ...]:
    """``count`` distinct members of the pool, in the order of drawing."""
    if len(pool) < count:
        raise TooFewFrames(f"There are {len(pool)} frames to draw {count} {what} from.")
    return tuple(pool[place] for place in rng.choice(len(pool), count, replace=False).tolist())
