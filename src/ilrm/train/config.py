"""What a training run is made of. Frozen; contradictions fail when the config is built."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from ilrm.core.errors import ConfigError
from ilrm.core.typed_config import check_finite, check_range
from ilrm.datasets.procedural import ProceduralConfig
from ilrm.model import ComputeConfig, ILRMConfig
from ilrm.train.data.options import Captures, InputNoise

Range = tuple[int, int]
Fit = Literal["exact", "released", "released_shim", "stretch"]

# Beyond any real run: a mistyped number is refused before anything of that size is tried.
_MOST_VIEWS, _MOST_STEPS, _LARGEST_SIDE = 10_000, 10**12, 16_384
_LARGEST_SEED = 2**63 - 1
_MOST_CLOSER, _MOST_ITERATIONS = 8, 100
# Sets the draw of a step's shape apart from all draws of its samples.
_SHAPE = 101
# Gradient norms whose median says which stand out.
NORMS_KEPT = 64


# --- which views of a sequence are inputs and targets ---------------------------------------------------------------


@dataclass(frozen=True)
class Bounded:
    """Two inputs that bound a window of a video, targets inside it (RE10K training; window grows with the step).

    Attributes:
        targets: distinct target frames from the window, its ends included.
        min_gap, max_gap: (at step 0, at the end of the warm-up) bounds of the window's length.
        warm_up: steps over which the bounds move.
        min_distance: frames between any target and the inputs at least.
        inputs: 2, or more: further inputs are spread evenly between the two ends.
    """

    targets: int = 4
    min_gap: Range = (25, 45)
    max_gap: Range = (45, 135)
    warm_up: int = 30_000
    min_distance: int = 0
    inputs: int = 2
    kind: Literal["bounded"] = "bounded"

    def __post_init__(self) -> None:
        check_range(self, 0, _MOST_VIEWS, "targets", "min_distance", "inputs")
        _check_gaps(self.min_gap, self.max_gap, self.warm_up)
        if self.inputs < 2 or self.targets < 1 or self.min_distance < 0:
            raise ConfigError(f"{self}.", expected="at least 2 inputs and 1 target, and a min_distance from 0")
        shortest = max(min(self.min_gap), 2 * self.min_distance)
        between = (self.inputs - 2) * (2 * max(self.min_distance, 1) - 1)
        room = shortest + 1 - 2 * self.min_distance - between
        if room < self.targets:
            raise ConfigError(
                f"A window of {shortest + 1} frames has room for {max(room, 0)} targets, not {self.targets}.",
                fix="raise min_gap, or lower inputs, targets or min_distance",
            )


@dataclass(frozen=True)
class BoundedV2:
    """Several inputs from a window of a video, targets from the window (DL3DV training).

    Attributes:
        inputs: (fewest, most) input views; drawn anew for each step.
        extension: frames beyond either end of the window that may be targets.
        strategy: how inputs are chosen from the window: "farthest_point" on camera centres, or "random".
    """

    inputs: Range = (2, 6)
    targets: int = 4
    min_gap: Range = (15, 20)
    max_gap: Range = (30, 50)
    warm_up: int = 10_000
    extension: int = 0
    strategy: Literal["farthest_point", "random"] = "farthest_point"
    kind: Literal["bounded_v2"] = "bounded_v2"

    def __post_init__(self) -> None:
        check_range(self, 0, _MOST_VIEWS, "inputs", "targets", "extension")
        _check_gaps(self.min_gap, self.max_gap, self.warm_up)
        fewest, most = self.inputs
        if not 2 <= fewest <= most or self.targets < 1 or self.extension < 0:
            raise ConfigError(f"{self}.", expected="at least 2 inputs and 1 target, and an extension from 0")
        for inputs in range(fewest, most + 1):
            shortest = min(self.min_gap) // max(most // inputs, 1) + 1
            if shortest < max(inputs, self.targets):
                raise ConfigError(
                    f"With {inputs} inputs, windows get as short as {shortest} frames.",
                    expected=f"at least {max(inputs, self.targets)} frames, for inputs and targets",
                    fix="raise min_gap, or lower targets (fewer inputs divide the gaps by most // inputs)",
                )


@dataclass(frozen=True)
class Spread:
    """Inputs spread over the whole sequence, targets between them (folders, procedural scenes, Long-LRM protocol).

    Attributes:
        inputs: numbers of input views to draw from, one for each step; naming a number twice doubles its chance.
        selection: "uniform" (evenly over the frames, ends included), "random", or "kmeans" on the cameras.
        hold_out_every: N draws targets from every N-th frame, which is then never an input; 0 = from all others.
    """

    inputs: tuple[int, ...] = (2, 3, 4, 6)
    targets: int = 2
    selection: Literal["uniform", "random", "kmeans"] = "uniform"
    hold_out_every: int = 0
    kind: Literal["spread"] = "spread"

    def __post_init__(self) -> None:
        check_range(self, 0, _MOST_VIEWS, "inputs", "targets", "hold_out_every")
        if not self.inputs or min(self.inputs) < 1 or self.targets < 1:
            raise ConfigError(f"{self}.", expected="at least one number of inputs, from 1, and at least 1 target")
        if self.hold_out_every < 0 or self.hold_out_every == 1:
            raise ConfigError(f"hold_out_every = {self.hold_out_every}.", expected="0 for none, or at least 2")


Sampler = Bounded | BoundedV2 | Spread


def _check_gaps(least: Range, most: Range, warm_up: int) -> None:
    if warm_up < 0 or not all(0 < low <= high for low, high in zip(least, most, strict=True)):
        raise ConfigError(
            f"min_gap = {least} and max_gap = {most} over {warm_up} steps.",
            expected="gaps above 0 with min_gap <= max_gap at both ends",
        )


# --- where scenes come from -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chunks:
    """pixelSplat chunks: a folder with index.json and NNNNNN.torch files."""

    path: Path
    weight: float = 1.0
    kind: Literal["chunks"] = "chunks"


@dataclass(frozen=True)
class SceneList:
    """A text file of paths (one a line, relative to it) of opencv_cameras.json, transforms.json or scene folders."""

    path: Path
    weight: float = 1.0
    kind: Literal["list"] = "list"


@dataclass(frozen=True)
class Folders:
    """A folder of scene folders that ``load_scene`` reads (nerfstudio, COLMAP, ...), or one scene's folder."""

    path: Path
    weight: float = 1.0
    kind: Literal["folders"] = "folders"


@dataclass(frozen=True)
class Procedural:
    """Endless procedural scenes; scene n of the run is seed ``first_seed + n``. Views and size come from the stage."""

    scenes: ProceduralConfig = field(default_factory=ProceduralConfig)
    first_seed: int = 10**7
    weight: float = 1.0
    kind: Literal["procedural"] = "procedural"

    def __post_init__(self) -> None:
        check_range(self, 0, _LARGEST_SEED - _MOST_STEPS, "first_seed")


Source = Chunks | SceneList | Folders | Captures | Procedural


@dataclass(frozen=True)
class Stage:
    """A part of the run, from step ``start`` to the start of the next one.

    Attributes:
        batch: samples of one optimiser step, over all ranks and accumulated parts.
        size: (height, width) of the images.
        sources: mixed by their weights.
        fit: how photos get this size: "exact" (cover and centre crop, the principal point moves with the crop),
            "released" (the same as the released RE10K data code: principal point not moved), "released_shim" (the
            released DL3DV code: centre crop to multiples of 64), "stretch" (the released undistorted-DL3DV code).
        flip: mirror half of the samples.
        shapes: further sizes, of about as many pixels; each step draws one of them or ``size`` for its whole batch.
        noise: errors of poses and photos on the inputs of some samples.
    """

    size: Range
    batch: int
    sampler: Sampler
    sources: tuple[Source, ...]
    start: int = 0
    fit: Fit = "exact"
    flip: bool = True
    shapes: tuple[Range, ...] = ()
    noise: InputNoise | None = None

    def __post_init__(self) -> None:
        check_range(self, 0, _MOST_STEPS, "batch", "start")
        for size in (self.size, *self.shapes):
            if self.batch < 1 or not all(8 <= side <= _LARGEST_SIDE for side in size):
                raise ConfigError(
                    f"batch {self.batch}, size {size}, start {self.start}.",
                    expected=f"at least 1 sample, and sides of 8 to {_LARGEST_SIDE} pixels",
                )
        if not self.sources or not all(0 < source.weight < float("inf") for source in self.sources):
            raise ConfigError("A stage needs sources, each with a weight above 0.")


# --- what is minimised, and how -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms; 0 leaves a term out. Each is logged by its name.

    Attributes:
        mse: squared error of rendered targets, unclamped.
        perceptual: "lpips" (LPIPS-VGG) or "vgg" (VGG-19 features, as GS-LRM and LVSM train with), or None.
        perceptual_weight: .5 in the paper.  perceptual_start: step from which it is active.
        depth: |log z - log z_true| of the input views' Gaussians, where depth is known.
        points: distance of Gaussian centres from the true surface points of their pixels, relative to their depth.
        opacity: mean opacity.  scale: mean scale relative to depth.
        iterations: weight of the mse after earlier update layers, the layer l of L weighs iterations * decay^(L-1-l).
            Where feedback is trained, of its earlier iterations instead.
        iterations_decay: .9 as in recurrent reconstruction.
        matching: cross-entropy of learned plane-sweep matching, where depth is known.
        logarithmic: mse, iterations and closer count by the natural logarithm of each sample's error: a decibel is
            worth the same in every scene, however hard or dark it is.
        closer: mse of one target a sample, rendered at a multiple of its size and averaged down: holes that only a
            closer look finds cost something.
        closer_factors: the multiples, one is drawn for each step.
    """

    mse: float = 1.0
    perceptual: Literal["lpips", "vgg"] | None = None
    perceptual_weight: float = 0.5
    perceptual_start: int = 0
    depth: float = 0.0
    points: float = 0.0
    opacity: float = 0.0
    scale: float = 0.0
    iterations: float = 0.0
    iterations_decay: float = 0.9
    matching: float = 0.0
    logarithmic: bool = False
    closer: float = 0.0
    closer_factors: tuple[int, ...] = (2, 3, 4)

    def __post_init__(self) -> None:
        terms = ("mse", "perceptual_weight", "depth", "points", "opacity", "scale", "iterations", "matching", "closer")
        for name in terms:
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(
                    f"The loss weight {name} is {getattr(self, name)}.", expected="a finite number from 0"
                )
        if not 0 < self.iterations_decay <= 1:
            raise ConfigError(f"iterations_decay = {self.iterations_decay}.", expected="above 0, at most 1")
        if not self.closer_factors or not all(2 <= factor <= _MOST_CLOSER for factor in self.closer_factors):
            raise ConfigError(
                f"closer_factors = {self.closer_factors}.", expected=f"whole numbers from 2 to {_MOST_CLOSER}"
            )
        perceptual = self.perceptual is not None and self.perceptual_weight > 0 and self.perceptual_start == 0
        if self.mse == self.depth == self.points == self.matching == 0 and not perceptual:
            raise ConfigError("No loss term has a weight that would teach the network.", fix="give mse a weight")


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW without decay on norm gains, and its schedule.

    Attributes:
        schedule: "one_cycle" (the released code: peak/25 -> peak in 1 % of the steps -> peak/25e4, cosine),
            "cosine" (the paper: linear warm-up over ``warm_up`` steps, cosine to 0) or "constant" (after the warm-up).
        outlier: a step whose gradient norm is above ``outlier`` times the median of the last 64 is left out and
            counted; 0 leaves none out.
    """

    peak: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.05
    schedule: Literal["one_cycle", "cosine", "constant"] = "cosine"
    warm_up: int = 2500
    clip: float = 1.0
    ema: float = 0.0
    outlier: float = 0.0

    def __post_init__(self) -> None:
        check_finite(self)
        if self.outlier != 0 and self.outlier <= 1:
            raise ConfigError(f"optimiser.outlier = {self.outlier}.", expected="above 1, or 0 to leave no step out")
        check_range(self, 0, _MOST_STEPS, "warm_up")
        for name in ("peak", "eps", "clip"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"optimiser.{name} = {getattr(self, name)}.", expected="a finite number above 0")
        if not all(0 <= x < 1 for x in (*self.betas, self.ema)):
            raise ConfigError(f"optimiser.betas = {self.betas}, ema = {self.ema}.", expected="shares in [0, 1)")
        if self.weight_decay < 0:
            raise ConfigError(f"optimiser.weight_decay = {self.weight_decay}.", expected="0 or more")


@dataclass(frozen=True)
class FeedbackTraining:
    """How feedback iterations are taught; see ``ILRMConfig.feedback``.

    Attributes:
        iterations: (fewest, most), drawn for each step: more than were trained must not hurt.
        base_rate: learning rate of the rest of the network, as a share of the schedule's; 0 leaves it as it is.
    """

    iterations: Range = (1, 4)
    base_rate: float = 0.0

    def __post_init__(self) -> None:
        check_range(self, 1, _MOST_ITERATIONS, "iterations")
        check_range(self, 0, 1, "base_rate")
        if self.iterations[0] > self.iterations[1]:
            raise ConfigError(f"feedback.iterations = {self.iterations}.", expected="the fewest, then the most")


@dataclass(frozen=True)
class TrainConfig:
    """A whole training run.

    Attributes:
        name: the preset it came from.
        steps: optimiser steps of the whole run; schedules end there.
        compute: mini-batch cross-attention and recomputed layers.
        accumulate: parts that a rank's share of a batch is split into.
        precision: "bf16" trains in bf16 autocast with fp32 parameters.
        compile: run the network through torch.compile.
        workers: processes that prepare batches (0: a thread of the training process).
        initial_weights: name or path of weights to start from. Either network may lack feedback.
        feedback: how the network's feedback is taught; needed where it has any.
        save_every, keep_every: steps between writes of OUT/last, and between checkpoints that are kept (0: none).
        validate_every: steps between validations on ``validation_scenes`` fixed samples.
        broken_share: more broken items than this share of all seen stop the run.
        non_finite: so many non-finite steps in a row stop the run.
        patience: so many validations in a row without a better PSNR stop the run; 0 for never.
        term_norms: steps between measurements of the gradient norm of each loss term; 0 for none. A measured step
            takes one more backward pass for each term.
        read_every: steps between readings of losses and counters from the device; None is 1 on the CPU, 20 on a GPU.
            Above 1, the CPU takes the GPU's way too, with an optimiser that rounds differently.
    """

    name: str
    model: ILRMConfig
    stages: tuple[Stage, ...]
    steps: int
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    validation: Stage | None = None
    seed: int = 0
    accumulate: int = 1
    precision: Literal["fp32", "bf16"] = "bf16"
    compile: bool = False
    workers: int = 0
    initial_weights: str | None = None
    feedback: FeedbackTraining | None = None
    save_every: int = 500
    keep_every: int = 0
    validate_every: int = 1000
    validation_scenes: int = 4
    broken_share: float = 0.02
    non_finite: int = 5
    patience: int = 0
    term_norms: int = 0
    read_every: int | None = None

    def __post_init__(self) -> None:
        starts = [stage.start for stage in self.stages]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise ConfigError(f"Stages start at steps {starts}.", expected="0 and then ever later ones")
        check_range(self, 1, _MOST_STEPS, "steps")
        check_range(self, 0, _MOST_STEPS, "save_every", "keep_every", "validate_every", "accumulate", "non_finite")
        check_range(self, 0, _MOST_STEPS, "patience", "term_norms")
        if self.read_every is not None:
            check_range(self, 1, _MOST_STEPS, "read_every")
        check_range(self, 0, _LARGEST_SEED, "seed")
        check_range(self, 0, _MOST_VIEWS, "workers", "validation_scenes")
        check_range(self, 0, 1, "broken_share")
        if self.accumulate < 1 or self.validation_scenes < 1:
            raise ConfigError(
                f"accumulate = {self.accumulate}, validation_scenes = {self.validation_scenes}.",
                expected="both at least 1",
            )
        if self.patience and (self.validation is None or self.validate_every == 0):
            raise ConfigError(
                f"patience = {self.patience} counts validations, and this run has none.",
                fix="set patience to 0, or give it a validation stage and validate_every",
            )
        if self.loss.matching > 0 and not (self.model.matching and self.model.matching.channels):
            raise ConfigError(
                f"loss.matching = {self.loss.matching} teaches learned matching, which this network has not.",
                fix="set loss.matching to 0, or model.matching.channels above 0",
            )
        if (self.feedback is None) != (self.model.feedback is None):
            raise ConfigError(
                f"feedback = {self.feedback} with model.feedback = {self.model.feedback}.", fix="set both, or neither"
            )
        multiple = self.model.size_multiple
        for stage in (*self.stages, *([self.validation] if self.validation else [])):
            for height, width in (stage.size, *stage.shapes):
                if height % multiple or width % multiple:
                    raise ConfigError(
                        f"Images of {height}x{width} do not divide into this network's patches.",
                        expected=f"multiples of {multiple}",
                    )

    @property
    def base_rate(self) -> float:
        """Learning rate of what is no feedback, as a share of the schedule's."""
        return 1.0 if self.feedback is None else self.feedback.base_rate

    def stage_at(self, step: int) -> Stage:
        """The stage that optimiser step ``step`` (from 0) belongs to, in the size that the step has."""
        stage = [stage for stage in self.stages if stage.start <= step][-1]
        if not stage.shapes:
            return stage
        sizes = (stage.size, *stage.shapes)
        chosen = np.random.default_rng([self.seed, _SHAPE, step]).integers(len(sizes))
        return replace(stage, size=sizes[int(chosen)], shapes=())
