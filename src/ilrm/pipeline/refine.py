"""Post-prediction optimisation: Gaussians are fitted further to the photos they came from.

Works in the unit frame of the input cameras, so that nothing depends on the scale of the world. Only so many views are
rendered at once, and their gradients summed: memory does not grow with the number of views.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ilrm.core.cameras import Cameras, normalise
from ilrm.core.checks import free_memory
from ilrm.core.errors import GaussiansError, SceneError
from ilrm.core.gaussians import Gaussians
from ilrm.core.scene import Scene
from ilrm.evaluate.agreement import warn_if_apart
from ilrm.evaluate.metrics import mean_of_known, psnr
from ilrm.pipeline.refining.config import LearningRates, RefineConfig
from ilrm.pipeline.refining.losses import load_loss_kernels
from ilrm.pipeline.refining.pace import Pace
from ilrm.pipeline.refining.state import RefineState
from ilrm.render import render
from ilrm.render.warm_up import load_kernels
from ilrm.scenes.views import evenly_spaced

__all__ = ["LearningRates", "Progress", "RefineConfig", "RefineResult", "RefineStep", "mean_psnr", "refine"]

# Photos in memory, if they take no more than this; in a GPU's, if they take no more than this share of what is free.
_MOST_BYTES, _SHARE_OF_FREE = 4 << 30, 0.25
# Steps whose numbers come from a GPU together: asking for them after each one would make every step wait.
_STEPS_A_REPORT = 10
# Photos that are measured before the first step and after the last.
_MOST_PROBES = 8


@dataclass(frozen=True)
class RefineStep:
    """What is known after a step.

    Attributes:
        step: counts from 1; 0 is the state before the first step.
        loss: of the step; NaN at step 0.
        psnr: of the views that the step rendered, in dB; NaN at step 0.
        watch_psnr: mean of the watched views, where they were measured at this step.
        num_gaussians: after any pruning.
    """

    step: int
    loss: float
    psnr: float
    watch_psnr: float | None
    num_gaussians: int


@dataclass(frozen=True)
class RefineResult:
    """Refined Gaussians and how they came about.

    Attributes:
        gaussians: in the scene's world frame; with watched views the best state measured, else the last.
        history: one entry a step.
        best_step: the step that ``gaussians`` come from.
        stopped_early: whether the watched views stopped the optimisation.
        skipped_steps: steps without effect because a gradient was not finite.
        psnr_inputs_before, psnr_inputs: mean over the photos to fit (at most 8, evenly chosen) in dB, of the Gaussians
            that were given and of those that are returned, through the cameras that were given.
        cameras: of the photos, in the scene's world frame: those that were given, or moved with
            ``RefineConfig.poses``.
    """

    gaussians: Gaussians
    history: tuple[RefineStep, ...]
    best_step: int
    stopped_early: bool
    skipped_steps: int
    psnr_inputs_before: float
    psnr_inputs: float
    cameras: Cameras


Progress = Callable[[RefineStep], None]


def refine(
    gaussians: Gaussians,
    scene: Scene,
    steps: int | None = None,
    *,
    seconds: float | None = None,
    config: RefineConfig | None = None,
    watch: Scene | None = None,
    progress: Progress | None = None,
) -> RefineResult:
    """Fit Gaussians to photos.

    Args:
        gaussians: N Gaussians in the scene's world frame. Their device is computed on. Those counted from the world's
            own origin are counted from ``scene.cameras.local_origin()`` afterwards, which differs only far from it.
        scene: the photos to fit; pixels outside their mask pull at nothing.
        steps: how many steps of Adam; 10 by default, unless ``seconds`` are given.
        seconds: end after so much time, counted from the first step, or after ``RefineConfig.passes`` over the photos.
            Rates and all else that changes on the way follow it, so a short time is used as well as a long one. Results
            then depend on the machine; with ``steps`` alone they can be repeated.
        config: ``RefineConfig.for_steps(steps)`` by default.
        watch: other photos. They are only measured: when they get worse for ``patience`` checks the optimisation
            stops, and the best state is returned.
        progress: called for every step: after it, or on a GPU for ten steps together.

    Raises:
        GaussiansError: no Gaussians, batched ones, or values that are not finite.
        SceneError: no views.
        ConfigError: a negative number of steps or seconds.
    """
    steps = 10 if steps is None and seconds is None else steps
    config = config or RefineConfig.for_steps(steps)
    if steps is None:
        steps = config.most_steps(len(scene))
    pace = Pace(steps, seconds)
    _check(gaussians, scene)
    _, to_world = normalise(scene.cameras)
    to_unit = to_world.inverse()
    photos = _at_hand(scene, gaussians.device).transform(to_unit)
    watched = watch.loaded(_MOST_BYTES).transform(to_unit) if watch is not None and len(watch) > 0 else None
    generator = torch.Generator().manual_seed(config.seed)
    start = gaussians.detach().to(dtype=torch.float32).transform(to_unit, origin=torch.zeros(3))
    origin = gaussians.origin if gaussians.origin.any() else scene.cameras.local_origin()
    best = _Best(start, config.patience)
    probes = photos.select(evenly_spaced(len(photos), _MOST_PROBES))
    each = _each_psnr(start, probes)
    before = _mean(each)
    state = RefineState(start, photos.cameras, config, _root_mean_square(each))
    warn_if_apart(start, probes, before)
    if watched is not None:
        best.measured(0, mean_psnr(best.gaussians, watched), best.gaussians)
    history = _History(progress, 1 if gaussians.device.type == "cpu" else _STEPS_A_REPORT)
    views = _view_rounds(len(photos), config.views_per_step, generator)
    if seconds is not None:
        load_kernels(gaussians.device)
        if gaussians.device.type == "cpu":
            load_loss_kernels()
    step, share = 0, pace.share(0)
    while share is not None:
        step += 1
        measured = state.step(photos, next(views), progress=share)
        share = pace.share(step)
        if config.prune_every and step % config.prune_every == 0:
            state.prune()
        watch_psnr = None
        if watched is not None and (step % config.check_every == 0 or share is None):
            watch_psnr = mean_psnr(state.gaussians(), watched)
            best.measured(step, watch_psnr, state.gaussians(), _moved(state))
        history.add(step, measured, watch_psnr, len(state))
        if best.exhausted:
            break
    history.tell()
    if watched is None and history.steps:
        best.measured(len(history.steps), math.inf, state.gaussians(), _moved(state))
    return RefineResult(
        best.gaussians.transform(to_world, origin=origin),
        tuple(history.steps),
        best.step,
        best.exhausted,
        state.skipped_steps,
        psnr_inputs_before=before,
        psnr_inputs=mean_psnr(best.gaussians, probes),
        cameras=scene.cameras if best.cameras is None else best.cameras.transform(to_world),
    )


def _moved(state: RefineState) -> Cameras | None:
    """The moved cameras in the unit frame, in float64 as scenes have them; None if they do not move."""
    return None if state.poses is None else state.poses.moved().to("cpu", torch.float64)


def _at_hand(scene: Scene, device: torch.device) -> Scene:
    """The scene with its photos decoded and where they are used, if there is room: no step reads a JPEG again."""
    scene = scene.loaded(_MOST_BYTES)
    if device.type == "cpu" or not isinstance(scene.images, Tensor):
        return scene
    free = free_memory(device)
    fits = free is None or scene.images.numel() * scene.images.element_size() <= _SHARE_OF_FREE * free
    return scene.to(device) if fits else scene


class _History:
    """The steps so far. Their numbers stay on the device until some have come together, or a step was measured.

    Args:
        progress: is told each step.
        every: how many come together.
    """

    def __init__(self, progress: Progress | None, every: int) -> None:
        self.steps: list[RefineStep] = []
        self._progress, self._every = progress, every
        self._waiting: list[tuple[int, Tensor, float | None, int]] = []

    def add(self, step: int, measured: Tensor, watch_psnr: float | None, count: int) -> None:
        """A step: loss and PSNR (2,), and what else ``RefineStep`` holds."""
        self._waiting.append((step, measured, watch_psnr, count))
        if len(self._waiting) >= self._every or watch_psnr is not None:
            self.tell()

    def tell(self) -> None:
        """Fetch what has come together."""
        waiting, self._waiting = self._waiting, []
        values = torch.stack([measured for _, measured, _, _ in waiting]).tolist() if waiting else []
        for (step, _, watch_psnr, count), (loss, decibels) in zip(waiting, values, strict=True):
            self.steps.append(RefineStep(step, loss, decibels, watch_psnr, count))
            if self._progress is not None:
                self._progress(self.steps[-1])


@torch.no_grad()
def mean_psnr(gaussians: Gaussians, scene: Scene, *, near: float = 0.01) -> float:
    """Mean over the views of the PSNR of their renderings, in dB (NaN if no pixel counts); one view at a time."""
    return _mean(_each_psnr(gaussians, scene, near))


@torch.no_grad()
def _each_psnr(gaussians: Gaussians, scene: Scene, near: float = 0.01) -> list[float]:
    """Of every view, in dB; NaN if no pixel of it counts."""
    values = []
    for view in range(len(scene)):
        rgb = render(gaussians, scene.cameras[view], near=near).rgb
        mask = scene.mask_of([view])
        values.append(psnr(rgb.cpu(), scene.images[[view]].cpu(), None if mask is None else mask.cpu()).item())
    return values


def _mean(values: list[float]) -> float:
    mean = mean_of_known(values)
    return math.nan if mean is None else mean


def _root_mean_square(decibels: list[float]) -> float:
    """The error that PSNRs mean together; a view without any error (infinite dB) counts as 0 and hides no other."""
    return _mean([10 ** (-value / 10) for value in decibels]) ** 0.5


def _check(gaussians: Gaussians, scene: Scene) -> None:
    if len(scene) == 0:
        raise SceneError("There are no photos to refine with.", expected="at least one view")
    if gaussians.means.ndim != 2 or len(gaussians) == 0:
        raise GaussiansError(f"Gaussians of shape {tuple(gaussians.means.shape)} cannot be refined.", expected="(N, 3)")
    if not (possible := gaussians.possible()).all():
        raise GaussiansError(
            f"{int((~possible).sum())} of {len(gaussians)} Gaussians hold NaN or infinite values, negative scales, "
            "opacities outside [0, 1] or the rotation 0 0 0 0.",
            fix="keep only gaussians[gaussians.possible()]",
        )


def _view_rounds(count: int, per_step: int | None, generator: torch.Generator) -> Iterator[list[int]]:
    """Endless selections of views: all in order, or ``per_step`` at a time from shuffled rounds."""
    if per_step is None or per_step >= count:
        while True:
            yield list(range(count))
    queue: list[int] = []
    while True:
        if len(queue) < per_step:
            queue += torch.randperm(count, generator=generator).tolist()
        yield queue[:per_step]
        del queue[:per_step]


@dataclass
class _Best:
    """The best state that the watched views have seen."""

    gaussians: Gaussians
    patience: int
    step: int = 0
    value: float = -math.inf
    failures: int = 0
    cameras: Cameras | None = None

    def measured(self, step: int, value: float, gaussians: Gaussians, cameras: Cameras | None = None) -> None:
        if value > self.value:
            self.gaussians, self.step, self.value, self.failures = gaussians, step, value, 0
            self.cameras = cameras
        else:
            self.failures += 1

    @property
    def exhausted(self) -> bool:
        return self.failures >= self.patience
