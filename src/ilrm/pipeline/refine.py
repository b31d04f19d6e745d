"""Post-prediction optimisation: Gaussians are fitted further to the photos they came from.

Works in the unit frame of the input cameras, so that nothing depends on the scale of the world. Only so many views are
rendered at once, and their gradients summed: memory does not grow with the number of views.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ilrm.core.cameras import Cameras, normalise
from ilrm.core.errors import ConfigError, GaussiansError, SceneError
from ilrm.core.gaussians import Gaussians
from ilrm.core.scene import Scene
from ilrm.evaluate.agreement import warn_if_apart
from ilrm.evaluate.metrics import SSIM_WINDOW, mean_of_known, psnr, ssim_map, whole_windows
from ilrm.render import render
from ilrm.scenes.views import evenly_spaced

# From widenings of 1 to 2.2 times, compared on the five captures of docs/benchmarks and the bundled one.
_FOOTPRINT, _MOST_WIDENING = 1.5, 1.75
_LEAST_SCALE = torch.finfo(torch.float32).tiny
_OPACITY_RANGE = (1e-6, 1 - 1e-6)
# Photos in memory, if they take no more than this.
_MOST_BYTES = 4 << 30
# Of the photos that a step renders at once, about: what renderings and gradients need of memory follows.
_MOST_PIXELS = 1 << 21
# Photos that are measured before the first step and after the last.
_MOST_PROBES = 16


@dataclass(frozen=True)
class LearningRates:
    """Adam's step sizes, one a parameter.

    Attributes:
        means: in units of the normalised frame, or of the distance to the nearest camera (``by_distance``).
        sh, log_scales, quats, opacity_logits: of the free parameters as they are.
        final: all of them fall exponentially to this share of their start.
        by_distance: far Gaussians move in larger steps: what a pixel sees of a step is then the same everywhere.
    """

    means: float = 6e-4
    sh: float = 1e-3
    log_scales: float = 1e-3
    quats: float = 1e-3
    opacity_logits: float = 1e-3
    final: float = 1.0
    by_distance: bool = False


@dataclass(frozen=True)
class RefineConfig:
    """How Gaussians are refined.

    Attributes:
        rates: step sizes.
        views_per_step: input views that a step renders, drawn in seeded shuffled rounds; None is all of them.
        l1: share of the absolute error in the photometric loss; the rest is squared error.
        ssim: weight of 1 - SSIM beside it.
        footprint: pixels. Gaussians whose median standard deviation, as the nearest camera sees it, is smaller start
            larger by one factor, at most ``_MOST_WIDENING``, so that it is this. A Gaussian of less than a pixel has a
            gradient from that pixel alone; predicted ones, of which many are seen at once, find their places better
            from a larger size. None leaves them as they are.
        prune_every: steps between prunings; None never prunes.
        prune_opacity: Gaussians below this opacity go.
        prune_scale: Gaussians larger than this share of their distance to the nearest camera go.
        check_every: steps between measurements of the watched views.
        patience: checks without improvement after which the optimisation stops.
        seed: of the view order.
    """

    rates: LearningRates = field(default_factory=LearningRates)
    views_per_step: int | None = None
    l1: float = 0.0
    ssim: float = 0.0
    footprint: float | None = None
    prune_every: int | None = None
    prune_opacity: float = 0.005
    prune_scale: float = 1.0
    check_every: int = 25
    patience: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("views_per_step", "prune_every", "check_every", "patience"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"RefineConfig was given {name} = {value}.", expected="at least 1")
        if self.footprint is not None and not 0 < self.footprint < math.inf:
            raise ConfigError(f"RefineConfig was given footprint = {self.footprint}.", expected="pixels above 0")
        if not 0 <= self.l1 <= 1:
            raise ConfigError(f"RefineConfig was given l1 = {self.l1}.", expected="a share from 0 to 1")

    @staticmethod
    def paper() -> RefineConfig:
        """Ten to fifty steps on all views with squared error alone, as published."""
        return RefineConfig()

    @staticmethod
    def long(seed: int = 0) -> RefineConfig:
        """Hundreds of steps: mini-batches, pruning, and rates tuned for the views that are not fitted."""
        rates = LearningRates(
            means=1e-2, sh=1.5e-2, log_scales=5e-2, quats=5e-3, opacity_logits=3e-2, final=0.1, by_distance=True
        )
        return RefineConfig(rates, views_per_step=2, ssim=0.005, footprint=_FOOTPRINT, prune_every=100, seed=seed)

    @staticmethod
    def for_steps(steps: int, seed: int = 0) -> RefineConfig:
        """The preset for so many steps: ``paper`` up to 50, ``long`` above."""
        return RefineConfig.paper() if steps <= 50 else RefineConfig.long(seed)


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
        psnr_inputs_before, psnr_inputs: mean over the photos to fit (at most 16, evenly chosen) in dB, of the Gaussians
            that were given and of those that are returned.
    """

    gaussians: Gaussians
    history: tuple[RefineStep, ...]
    best_step: int
    stopped_early: bool
    skipped_steps: int
    psnr_inputs_before: float
    psnr_inputs: float


Progress = Callable[[RefineStep], None]


def refine(
    gaussians: Gaussians,
    scene: Scene,
    steps: int = 10,
    *,
    config: RefineConfig | None = None,
    watch: Scene | None = None,
    progress: Progress | None = None,
) -> RefineResult:
    """Fit Gaussians to photos.

    Args:
        gaussians: N Gaussians in the scene's world frame. Their device is computed on. Those counted from the world's
            own origin are counted from ``scene.cameras.local_origin()`` afterwards, which differs only far from it.
        scene: the photos to fit; pixels outside their mask pull at nothing.
        steps: how many steps of Adam.
        config: ``RefineConfig.for_steps(steps)`` by default.
        watch: other photos. They are only measured: when they get worse for ``patience`` checks the optimisation
            stops, and the best state is returned.
        progress: called after every step.

    Raises:
        GaussiansError: no Gaussians, batched ones, or values that are not finite.
        SceneError: no views.
        ConfigError: a negative number of steps.
    """
    config = config or RefineConfig.for_steps(steps)
    _check(gaussians, scene, steps)
    _, to_world = normalise(scene.cameras)
    to_unit = to_world.inverse()
    photos = scene.loaded(_MOST_BYTES).transform(to_unit)  # a JPEG is not read again in every step
    watched = watch.loaded(_MOST_BYTES).transform(to_unit) if watch is not None and len(watch) > 0 else None
    generator = torch.Generator().manual_seed(config.seed)
    start = gaussians.detach().to(dtype=torch.float32).transform(to_unit, origin=torch.zeros(3))
    origin = gaussians.origin if gaussians.origin.any() else scene.cameras.local_origin()
    state = _State(start, photos.cameras, config)
    best = _Best(start, config.patience)
    probes = photos.select(evenly_spaced(len(photos), _MOST_PROBES))
    before = mean_psnr(start, probes)
    warn_if_apart(start, probes, before)
    if watched is not None:
        best.measured(0, mean_psnr(best.gaussians, watched), best.gaussians)
    history: list[RefineStep] = []
    views = _view_rounds(len(photos), config.views_per_step, generator)
    for step in range(1, steps + 1):
        loss, train_psnr = state.step(photos, next(views), progress=(step - 1) / max(steps - 1, 1))
        if config.prune_every and step % config.prune_every == 0:
            state.prune()
        watch_psnr = None
        if watched is not None and (step % config.check_every == 0 or step == steps):
            watch_psnr = mean_psnr(state.gaussians(), watched)
            best.measured(step, watch_psnr, state.gaussians())
        history.append(RefineStep(step, loss, train_psnr, watch_psnr, len(state)))
        if progress is not None:
            progress(history[-1])
        if best.exhausted:
            break
    if watched is None and history:
        best.measured(len(history), math.inf, state.gaussians())
    return RefineResult(
        best.gaussians.transform(to_world, origin=origin),
        tuple(history),
        best.step,
        best.exhausted,
        state.skipped_steps,
        psnr_inputs_before=before,
        psnr_inputs=mean_psnr(best.gaussians, probes),
    )


@torch.no_grad()
def mean_psnr(gaussians: Gaussians, scene: Scene, *, near: float = 0.01) -> float:
    """Mean over the views of the PSNR of their renderings, in dB (NaN if no pixel counts); one view at a time."""
    values = []
    for view in range(len(scene)):
        rgb = render(gaussians, scene.cameras[view], near=near).rgb
        mask = scene.mask_of([view])
        values.append(psnr(rgb.cpu(), scene.images[[view]].cpu(), None if mask is None else mask.cpu()).item())
    mean = mean_of_known(values)
    return math.nan if mean is None else mean


def _check(gaussians: Gaussians, scene: Scene, steps: int) -> None:
    if steps < 0:
        raise ConfigError(f"{steps} refinement steps were asked for.", expected="0 or more")
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

    def measured(self, step: int, value: float, gaussians: Gaussians) -> None:
        if value > self.value:
            self.gaussians, self.step, self.value, self.failures = gaussians, step, value, 0
        else:
            self.failures += 1

    @property
    def exhausted(self) -> bool:
        return self.failures >= self.patience


class _State:
    """Free parameters, their optimiser and what they started from, in the unit frame."""

    def __init__(self, gaussians: Gaussians, cameras: Cameras, config: RefineConfig) -> None:
        self.config = config
        self.centers = cameras.centers.to(gaussians.means)
        self.start, self.antialiased = gaussians.means, gaussians.antialiased
        self.distance = torch.cdist(self.start, self.centers).amin(1, keepdim=True).clamp_min(1e-6)  # (N, 1)
        self.parameters: dict[str, Tensor] = {
            "means": torch.zeros_like(self.start),  # the way from the start, in units of self._unit()
            "sh": gaussians.sh.clone(),
            "log_scales": (gaussians.scales * self._widening(gaussians, cameras))
            .clamp_min(torch.finfo(torch.float32).tiny)
            .log(),
            "quats": gaussians.quats.clone(),
            "opacity_logits": torch.logit(gaussians.opacities.double().clamp(*_OPACITY_RANGE)).float(),
        }
        for value in self.parameters.values():
            value.requires_grad_()
        groups = [{"params": [value], "name": name} for name, value in self.parameters.items()]
        self.optimiser = torch.optim.Adam(groups, lr=0.0, eps=1e-15)
        self.skipped_steps = 0

    def _widening(self, gaussians: Gaussians, cameras: Cameras) -> float:
        """The factor that ``RefineConfig.footprint`` asks for."""
        if self.config.footprint is None:
            return 1.0
        focal = cameras.K[:, 0, 0].mean().item()
        across = gaussians.scales.sort(dim=-1).values[:, 1:].prod(-1).sqrt()  # without the thinnest axis
        median = (across / self.distance[:, 0]).median().item() * focal
        return min(max(self.config.footprint / max(median, 1e-12), 1.0), _MOST_WIDENING)

    def __len__(self) -> int:
        return self.start.shape[0]

    def gaussians(self) -> Gaussians:
        """A copy of the present state, without gradients: the optimiser changes its parameters in place."""
        with torch.no_grad():
            now = self._gaussians()
            return replace(now, sh=now.sh.clone())

    def _gaussians(self) -> Gaussians:
        free = self.parameters
        return Gaussians(
            antialiased=self.antialiased,
            means=self.start + free["means"] * self._unit(),
            scales=free["log_scales"].exp(),
            quats=torch.nn.functional.normalize(free["quats"], dim=-1),
            opacities=free["opacity_logits"].sigmoid(),
            sh=free["sh"],
        )

    def _unit(self) -> Tensor | float:
        return self.distance if self.config.rates.by_distance else 1.0

    def step(self, photos: Scene, views: list[int], progress: float) -> tuple[float, float]:
        """One step of Adam on the views; the loss and the PSNR it was taken at. ``progress`` runs from 0 to 1."""
        decay = self.config.rates.final**progress
        for group in self.optimiser.param_groups:
            group["lr"] = getattr(self.config.rates, group["name"]) * decay
        self.optimiser.zero_grad(set_to_none=True)
        loss, decibels = 0.0, []
        together = max(1, _MOST_PIXELS // (photos.cameras.width * photos.cameras.height))
        for group in (views[i : i + together] for i in range(0, len(views), together)):
            rgb = render(self._gaussians(), photos.cameras[group]).rgb
            truth, mask = photos.images[group].to(rgb), photos.mask_of(group)
            mask = None if mask is None else mask.to(rgb.device)
            group_loss = _photometric(rgb, truth, mask, self.config) * (len(group) / len(views))
            group_loss.backward()
            loss += group_loss.item()
            decibels += psnr(rgb.detach(), truth, mask).tolist()
        gradients = [value.grad for value in self.parameters.values() if value.grad is not None]
        if all(torch.isfinite(gradient).all() for gradient in gradients):
            self.optimiser.step()
        else:
            self.skipped_steps += 1
        mean = mean_of_known(decibels)
        return loss, math.nan if mean is None else mean

    @torch.no_grad()
    def prune(self) -> None:
        """Remove transparent and oversized Gaussians, along with what the optimiser knows of them."""
        gaussians = self.gaussians()
        distance = torch.cdist(gaussians.means, self.centers).amin(1)
        keep = gaussians.opacities >= self.config.prune_opacity
        keep &= gaussians.scales.amax(1) <= self.config.prune_scale * distance
        if keep.all() or not keep.any():
            return
        self.start, self.distance = self.start[keep], self.distance[keep]
        for group in self.optimiser.param_groups:
            (old,) = group["params"]
            kept = old[keep].requires_grad_()
            moments = self.optimiser.state.pop(old, {})
            group["params"] = [kept]
            self.optimiser.state[kept] = {k: v[keep] if v.ndim else v for k, v in moments.items()}
            self.parameters[group["name"]] = kept


def _photometric(rgb: Tensor, truth: Tensor, mask: Tensor | None, config: RefineConfig) -> Tensor:
    """Mean over views (V, H, W, 3); pixels outside the mask (V, H, W) count in none of the terms."""
    difference = rgb - truth
    loss = (1 - config.l1) * _mean(difference.square(), mask)
    if config.l1:
        loss = loss + config.l1 * _mean(difference.abs(), mask)
    if config.ssim and min(truth.shape[1:3]) >= SSIM_WINDOW:
        dissimilarity = 1 - ssim_map(rgb, truth).permute(0, 2, 3, 1)
        loss = loss + config.ssim * _mean(dissimilarity, None if mask is None else whole_windows(mask))
    return loss


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the views of each one's mean over the pixels that count; 0 for a view in which none does."""
    if mask is None:
        return values.mean()
    counted = torch.where(mask[..., None], values, 0.0).sum((1, 2, 3))
    return (counted / (values.shape[-1] * mask.sum((1, 2))).clamp_min(1)).mean()
