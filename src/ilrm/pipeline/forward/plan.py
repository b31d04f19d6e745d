"""Before the work: how many photos, in which groups, and what that is expected to cost."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from ilrm.core.errors import ConfigError, warn
from ilrm.core.scene import Scene
from ilrm.model.ilrm import ILRM
from ilrm.pipeline.forward.budget import Budget, Effort
from ilrm.pipeline.forward.cost import (
    Cost,
    Work,
    expected_cost,
    gaussians_of_view,
    memory_in_use,
)
from ilrm.pipeline.forward.groups import Group, group_count, make_groups, view_affinity
from ilrm.pipeline.options import REFINE_SECONDS, RunOptions
from ilrm.pipeline.refining.config import RefineConfig
from ilrm.pipeline.views import ViewSplit, split_views
from ilrm.scenes.views import covered_share

# Default limit on the pixels of all inputs: 16 views of 256x256 on a CPU, 64 on a GPU.
_PIXEL_BUDGET = {"cpu": 16 * 256 * 256, "cuda": 64 * 256 * 256}
_MOST_INPUTS = 32
# A group has up to twice as many, and eight of any size: the larger the groups, the better the pictures.
_WHOLE, _LEAST_WHOLE = 2, 8
# Groups cover the rest where one group's inputs cover less than this share of what all photos do.
_WELL_COVERED = 0.95
# Matching needs another view, and groups need neighbours.
_LEAST_INPUTS, _LEAST_GROUP = 2, 4
# Of the seconds allowed, where refinement has no time of its own, the share for everything else.
_FORWARD_SHARE = 0.5
VIDEO_FRAMES = 90  # three seconds


@dataclass(frozen=True, eq=False)
class Plan:
    """What a run will do.

    Attributes:
        split: the use of every view.
        groups: of the inputs, by their place in ``split.inputs``.
        effort: how much refinement; 0 steps are none.
        cost: what is expected.
    """

    split: ViewSplit
    groups: list[Group]
    effort: Effort
    cost: Cost

    def describe(self) -> str:
        """One line for the user."""
        parts = []
        if self.effort.seconds:
            parts.append(f"{_duration(self.effort.seconds)} of refinement")
        if self.cost.compile:
            parts.append(f"{_duration(self.cost.compile)} of compilation, this once")
        seconds = ", ".join(parts)
        if self.cost.seconds is not None:
            seconds = f"about {_duration(self.cost.seconds)}" + (f" ({seconds})" if parts else "")
        seconds += ", " if seconds else ""
        groups = f" in {len(self.groups)} groups" if len(self.groups) > 1 else ""
        return (
            f"{len(self.split.inputs)} photos{groups}, {self.cost.gaussians:,} Gaussians; expected: "
            f"{seconds}about {self.cost.memory / 1e9:.1f} GB"
        )

    def report(self, budget: Budget) -> dict[str, Any]:
        """Of metrics.json: what was allowed and what was expected."""
        seconds = self.cost.seconds
        return {
            "budget": {"gaussians": budget.gaussians, "memory_gb": _gb(budget.memory), "seconds": budget.seconds},
            "expected": {
                "gaussians": self.cost.gaussians,
                "seconds": None if seconds is None else round(seconds, 1),
                "peak_memory_gb": _gb(self.cost.memory),
            },
        }


def make_plan(
    scene: Scene, options: RunOptions, model: ILRM, feedback: int, slowness: float | None, *, compiled: bool = True
) -> Plan:
    """Decide on the use of every view.

    Without ``options.views`` the limits of the budget decide on the number of inputs; without those, what is usual.
    More than one group holds are chosen only where one group cannot cover the scene: else it gives better pictures.

    Args:
        slowness: of this machine, from ``measure_slowness``; None (on a GPU) expects no time.
        compiled: whether the kernels are there.

    Raises:
        ConfigError, SceneError: as ``split_views``; a limit on Gaussians or memory that two photos exceed.

    Warns (IlrmWarning) where the time, or what was asked for by ``options.views``, exceeds a limit.
    """
    planner = _Planner(scene, options, model, feedback, slowness, compiled)
    split = _split(scene, options, planner)
    groups = [Group(tuple(range(len(split.inputs))))]
    if len(split.inputs) > planner.whole:
        groups = make_groups(view_affinity(scene.select(split.inputs)), planner.whole)
    fitted = len(split.inputs) + (0 if options.watch == "spare" else len(split.spare))
    work = tuple(map(len, groups)), len(split.inputs), len(split.held_out), fitted
    effort = planner.effort(planner.cost(*work, effort=Effort()).seconds)
    cost = planner.cost(*work, effort=effort)
    _warn_of_excess(cost, planner.budget)
    return Plan(split, groups, effort, cost)


def _split(scene: Scene, options: RunOptions, planner: _Planner) -> ViewSplit:
    """The inputs that are asked for; else those of one group, or as many as the budget allows if one group leaves much
    of the scene out."""

    def of(most: int) -> ViewSplit:
        return split_views(scene, options.input, options.views, options.holdout, most=most, seed=options.seed)

    if options.views is not None:
        return of(options.views)
    limited = not planner.budget.unlimited
    most = planner.affordable() if limited else len(scene)
    split = of(min(most, planner.whole if limited else planner.usual))
    if split.spare and most > len(split.inputs):
        share = covered_share(scene, split.inputs, [*split.inputs, *split.spare])
        split = of(most) if share < _WELL_COVERED else split
    return split


class _Planner:
    """Costs of runs on one scene.

    Attributes:
        budget: limits on them.
        usual: inputs where nothing is asked for.
        whole: the most views of a group.
    """

    def __init__(
        self,
        scene: Scene,
        options: RunOptions,
        model: ILRM,
        feedback: int,
        slowness: float | None,
        compiled: bool,
    ) -> None:
        self.config, device = model.config, next(model.parameters()).device
        self.budget, self._asked = options.budget(), options.effort()
        self._inputs_alone = options.watch == "spare"
        self._usual_seconds = REFINE_SECONDS[device.type]
        if device.type != "cpu" and self.budget.seconds is not None:
            raise ConfigError(
                "--seconds was given, but the time is known in advance on a CPU only.", fix="use --gaussians or --views"
            )
        self._machine = (slowness, memory_in_use(device))
        self._scene = scene
        self._work = Work(
            groups=(),
            inputs=0,
            held_out=0,
            width=scene.cameras.width,
            height=scene.cameras.height,
            feedback=feedback,
            frames=VIDEO_FRAMES if "video" in options.export and options.output is not None else 0,
            decode=_time_of_a_photo(scene),
            compile=not compiled,
        )
        each = scene.cameras.width * scene.cameras.height
        pixels = _PIXEL_BUDGET[device.type]
        self.usual = self._fitting(min(max(pixels // each, _LEAST_INPUTS), _MOST_INPUTS))
        self.whole = self._fitting(min(max(_WHOLE * pixels // each, _LEAST_WHOLE), _MOST_INPUTS))

    def cost(
        self,
        groups: tuple[int, ...],
        inputs: int,
        held_out: int,
        fitted: int | None = None,
        effort: Effort | None = None,
    ) -> Cost:
        """Of a run with so many views in each group.

        Args:
            fitted: views that are refined on; by default as many as there can be.
            effort: of refinement; what was asked for by default.
        """
        effort = effort or self._asked
        fitted = inputs if effort.none else self._fitted(inputs) if fitted is None else fitted
        config = RefineConfig.for_steps(effort.steps, 0).for_views(fitted, 0)
        work = replace(self._work, groups=groups, inputs=inputs, held_out=held_out, fitted=fitted, refine=effort)
        return expected_cost(
            replace(work, step_views=min(config.views_per_step or fitted, fitted)), self.config, *self._machine
        )

    def _fitted(self, inputs: int) -> int:
        return inputs if self._inputs_alone else max(inputs, len(self._scene) * 7 // 8)

    def effort(self, others: float | None) -> Effort:
        """How much refinement there is: what was asked for, else what the budget leaves, else what is usual.

        Args:
            others: expected seconds of everything else.
        """
        if self._asked != Effort():
            return self._asked
        if self.budget.seconds is None:
            return Effort(seconds=self._usual_seconds)
        return Effort(seconds=max(self.budget.seconds - (others or 0.0), 0.0))

    def affordable(self) -> int:
        """The most inputs that the budget allows, at least two. Raises ConfigError."""
        self._check_least()
        fitting = [n for n in range(_LEAST_INPUTS, len(self._scene) + 1) if self._affords(n)]
        return max(fitting, default=_LEAST_INPUTS)

    def _affords(self, inputs: int) -> bool:
        budget = self.budget
        if self._asked == Effort() and budget.seconds is not None:
            budget = replace(budget, seconds=_FORWARD_SHARE * budget.seconds)
        return not _excess(self.cost(self._groups(inputs), inputs, len(self._scene) // 8), budget)

    def _groups(self, inputs: int) -> tuple[int, ...]:
        """About how many views each group has where there are ``inputs`` in all."""
        return (inputs,) if inputs <= self.whole else (self.whole,) * group_count(inputs, self.whole)

    def _fitting(self, wanted: int) -> int:
        """The wanted size of a group, or as much of it as the memory allows."""
        least = min(wanted, _LEAST_GROUP)
        limit = self.budget.memory
        sizes = range(wanted, least, -1)
        return next((n for n in sizes if limit is None or self.cost((n,), n, 0).memory <= limit), least)

    def _check_least(self) -> None:
        """Raises ConfigError where not even two photos can be within a limit that is known exactly, or nearly."""
        least = self.cost((_LEAST_INPUTS,), _LEAST_INPUTS, 0)
        each = gaussians_of_view(self.config, self._scene.cameras.width, self._scene.cameras.height)
        size, fix = f"{self._scene.cameras.width}x{self._scene.cameras.height}", "allow more, or reduce --size"
        if self.budget.gaussians is not None and least.gaussians > self.budget.gaussians:
            raise ConfigError(
                f"--gaussians {self.budget.gaussians} was given, but a photo of {size} makes {each}.",
                expected=f"{least.gaussians} or more, for two photos",
                fix=fix,
            )
        if self.budget.memory is not None and least.memory > self.budget.memory:
            raise ConfigError(
                f"--memory {self.budget.memory / 1e9:.2f}GB was given, but two photos of {size} need about "
                f"{least.memory / 1e9:.2f} GB.",
                fix=fix,
            )


def _excess(cost: Cost, budget: Budget) -> list[str]:
    """The limits that a cost exceeds."""
    limits = [("gaussians", budget.gaussians), ("memory", budget.memory), ("seconds", budget.seconds)]
    return [name for name, limit in limits if limit is not None and (getattr(cost, name) or 0) > limit]


def _warn_of_excess(cost: Cost, budget: Budget) -> None:
    said = {
        "gaussians": f"{cost.gaussians} Gaussians are more than --gaussians allows",
        "memory": f"About {cost.memory / 1e9:.1f} GB of memory are expected, more than --memory allows",
        "seconds": f"About {cost.seconds or 0:.0f} s are expected, more than --seconds allows",
    }
    for name in _excess(cost, budget):
        warn(said[name])


def _time_of_a_photo(scene: Scene) -> float:
    """Seconds to read one; 0 where they are in memory. By the clock of this thread: others compile kernels."""
    if isinstance(scene.images, torch.Tensor) or not len(scene):
        return 0.0
    start = time.thread_time()
    scene.images[0]
    return time.thread_time() - start


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _gb(size: float | None) -> float | None:
    return None if size is None else round(size / 1e9, 3)
