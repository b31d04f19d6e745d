"""Expected time and memory of a run, from constants measured once and a short measurement of this machine.

Seconds are those of a reference machine (one thread of an Intel Xeon, Cascade Lake), times how much longer this one
takes for some matrix products and sums. The constants are fits to ``ilrm-small`` at 2 to 8 views of 128 and 256 px and
to whole runs of 12 to 21 views; other networks are scaled by the operations of their layers. Expect a factor of two.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ilrm.core.checks import peak_memory
from ilrm.files.reading import read_text
from ilrm.model.config import ILRMConfig
from ilrm.model.tokens import round_size
from ilrm.pipeline.forward.budget import NO_REFINEMENT, Effort

# Seconds a pixel of all views and plane of the sweep (its network included), and for each source view.
_SWEEP, _SWEEP_SOURCE = 1.2e-7, 4.8e-8
# Floating point operations a second in the network's layers.
_RATE = 6e10
# Seconds a pixel of all views and iteration of feedback, and for each view that Gaussians are looked at from.
_FEEDBACK, _FEEDBACK_VIEW = 3.2e-6, 3.5e-7
# Seconds a Gaussian and a pixel of a rendering; a pixel of a score; a Gaussian and a pixel of a view that refines.
_DRAW, _DRAW_PIXEL, _SCORE_PIXEL = 5e-7, 2.7e-7, 8e-7
_STEP, _STEP_PIXEL = 1.75e-6, 1.05e-6
# Seconds that judging a Gaussian from one view takes where groups are fused.
_JUDGE = 8e-8
# Seconds of compilation where kernels are new: those of renderings, and of their gradients. One thread does it, so
# that it is not scaled by what all threads manage.
_COMPILE, _COMPILE_GRADIENTS = 16.0, 14.0
# Bytes a pixel of a group: activations, matching volumes and images; of a Gaussian that is kept, drawn or refined; of a
# photo's pixel as floats and as bytes; and of what is loaded and compiled after the estimate.
_GROUP_PIXEL, _GAUSSIAN, _REFINED, _PHOTO_PIXEL, _LATER = 1700, 200, 700, 15, 150e6
# Seconds of ``_exercise`` on the reference machine.
_REFERENCE = 0.025
_SIDE, _LENGTH, _ROUNDS = 256, 1 << 18, 5


@dataclass(frozen=True)
class Work:
    """What a run has to do.

    Attributes:
        groups: number of views in each group.
        inputs: of all groups, each counted once.
        held_out: views that are scored.
        width, height: of the photos in pixels.
        feedback: iterations.
        fitted: views that refinement fits; those that are no inputs are held in memory for it.
        refine: how much refinement; steps are of ``step_views`` views each.
        frames: renderings for a video.
        decode: seconds that one photo takes to read.
        compile: whether kernels have to be compiled.
    """

    groups: tuple[int, ...]
    inputs: int
    held_out: int
    width: int
    height: int
    feedback: int
    fitted: int = 0
    refine: Effort = NO_REFINEMENT
    step_views: int = 2
    frames: int = 0
    decode: float = 0.0
    compile: bool = False


@dataclass(frozen=True)
class Cost:
    """An estimate for a whole run.

    Attributes:
        gaussians: of the forward pass, before groups are fused.
        seconds: of reading, forward pass, refinement, scores and renderings; None on a GPU, where nothing was measured.
        memory: bytes that the process holds at its peak; on a GPU, of the device.
        after: of the seconds, those that follow refinement.
        compile: of the seconds, those that no later run will need.
    """

    gaussians: int
    seconds: float | None
    memory: float
    after: float = 0.0
    compile: float = 0.0


def gaussians_of_view(config: ILRMConfig, width: int, height: int) -> int:
    """How many Gaussians one photo of that size makes."""
    across, down = (round_size(side, config.size_multiple) // config.viewpoint_factor for side in (width, height))
    return across * down


def expected_cost(work: Work, config: ILRMConfig, slowness: float | None, base: float) -> Cost:
    """The cost of a run.

    Args:
        slowness: of this machine, see ``measure_slowness``; None leaves out the time.
        base: bytes that the process holds before the run.
    """
    each = gaussians_of_view(config, work.width, work.height)
    pixels = round_size(work.width, config.size_multiple) * round_size(work.height, config.size_multiple)
    count = each * work.inputs
    group = _GROUP_PIXEL * pixels * max(work.groups)
    kept = _GAUSSIAN * count + _PHOTO_PIXEL * pixels * (max(work.inputs, work.fitted) + work.held_out)
    memory = base + _LATER + kept + max(group, 0 if work.refine.none else _REFINED * count)
    if slowness is None:
        return Cost(count, None, memory)
    seconds = sum(_group_seconds(views, pixels, each, work.feedback, config) for views in work.groups)
    if len(work.groups) > 1:
        seconds += _JUDGE * count * work.inputs + work.inputs * _drawn(max(work.groups) * each, pixels / 4)
    drawn = _drawn(count, pixels)
    scored = work.held_out * (drawn + _SCORE_PIXEL * pixels)
    if not work.refine.none:
        seconds += (work.refine.steps or 0) * work.step_views * (_STEP * count + _STEP_PIXEL * pixels) + scored
    after = slowness * (scored + (work.held_out + work.frames) * drawn)
    read = work.decode * (max(work.inputs, work.fitted) + work.held_out)
    compiled = work.compile * (_COMPILE + (0.0 if work.refine.none else _COMPILE_GRADIENTS))
    whole = slowness * seconds + (work.refine.seconds or 0.0) + after + read + compiled
    return Cost(count, whole, memory, after, compiled)


def _drawn(gaussians: float, pixels: float) -> float:
    return _DRAW * gaussians + _DRAW_PIXEL * pixels


def _group_seconds(views: int, pixels: int, each: int, feedback: int, config: ILRMConfig) -> float:
    """Of one group's forward pass on the reference machine."""
    everything = views * pixels
    seconds = _operations(views, pixels, config) / _RATE
    if config.matching is not None:
        sources = min(config.matching.sources, views - 1)
        share = 4 * each / pixels  # of the viewpoint grid that the constants were measured on
        seconds += (_SWEEP + sources * _SWEEP_SOURCE) * everything * config.matching.planes * share
    return seconds + feedback * everything * (_FEEDBACK + views * _FEEDBACK_VIEW)


def _operations(views: int, pixels: int, config: ILRMConfig) -> float:
    """Multiplications and additions of the update layers."""
    width, patch = config.width, config.patch_size
    viewpoint = pixels / (patch * config.viewpoint_factor) ** 2  # tokens of a view
    image = pixels / (patch * config.image_factor) ** 2
    lifted = viewpoint * config.uplift**2 if config.uplift > 1 else viewpoint
    products = 2 * width**2 * (2 * image + 2 * lifted + (4 + 4 * config.mlp_ratio) * viewpoint)
    attention = 4 * width * (lifted * image + (viewpoint**2 * views if config.self_attention else 0))
    return config.layers * views * (products + attention)


def measure_slowness(clock: Callable[[], float] = time.perf_counter) -> float:
    """How many times longer than the reference machine this one takes, with the threads that torch uses: the median of
    a few short measurements, a tenth of a second in all."""
    _exercise()
    times = []
    for _ in range(_ROUNDS):
        start = clock()
        _exercise()
        times.append(clock() - start)
    return max(sorted(times)[_ROUNDS // 2], 1e-6) / _REFERENCE


def _exercise() -> None:
    """Some of what the network does most: products of matrices, and sums of arrays that caches do not hold."""
    matrix = torch.full((_SIDE, _SIDE), 0.5)
    for _ in range(16):
        matrix = matrix @ matrix / _SIDE
    values = torch.linspace(-1, 1, _LENGTH)
    for _ in range(16):
        values = (values.square() + 0.5).rsqrt() - values


def memory_in_use(device: torch.device) -> float:
    """Bytes that this process holds now (on a GPU, those of torch there); its peak so far where that is unknown."""
    if device.type == "cuda":
        return float(torch.cuda.memory_allocated(device))
    if sys.platform == "linux":
        import resource

        pages = int(read_text("/proc/self/statm").split()[1])
        return float(pages * resource.getpagesize())
    return float(peak_memory(device) or 0)
