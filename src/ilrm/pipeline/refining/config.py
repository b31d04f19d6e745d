"""How Gaussians are refined: step sizes, loss, pruning, and when to stop."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ilrm.core.errors import ConfigError

# Of more views than the first, a step renders as many as the second: it would take minutes with hundreds.
_ALL_AT_ONCE, _VIEWS_A_STEP = 32, 16
# From 2 photos held-out views were best after 30 passes, from 4 after 50; from 10 and more most still got better.
_PASSES = 40.0


@dataclass(frozen=True)
class LearningRates:
    """Adam's step sizes, one a parameter.

    Attributes:
        means: in units of the normalised frame, or of the distance to the nearest camera (``by_distance``).
        sh, log_scales, quats, opacity_logits: of the free parameters as they are.
        turns, shifts: of camera steps, in radians and in units of the normalised frame.
        final: all of them fall exponentially to this share of their start.
        by_distance: far Gaussians move in larger steps: what a pixel sees of a step is then the same everywhere.
        error: all rates hold for photos that are missed by this much (root of the mean squared error), and are smaller
            or larger in proportion to the error at the start. The first steps of Adam are as large as the rates say,
            whatever the gradients: a good start would be lost. None leaves the rates as they are.
    """

    means: float = 6e-4
    sh: float = 1e-3
    log_scales: float = 1e-3
    quats: float = 1e-3
    opacity_logits: float = 1e-3
    turns: float = 3e-4
    shifts: float = 3e-4
    final: float = 1.0
    by_distance: bool = False
    error: float | None = None


@dataclass(frozen=True)
class RefineConfig:
    """How Gaussians are refined.

    Attributes:
        rates: step sizes.
        views_per_step: input views that a step renders, drawn in seeded shuffled rounds; None is all of them.
        l1: share of the absolute error in the photometric loss; the rest is squared error.
        ssim: weight of 1 - SSIM beside it.
        betas: decay of Adam's first and second moments.
        passes: where time alone decides, a run ends when every photo has been fitted so often. With few of them, more
            fits what only they show, and views between them get worse. None sets no end.
        warm_start: second moments start from this share of the first squared gradients, averaged over all Gaussians, so
            that those with hardly any gradient do not move as far as all others in the first steps. None starts them
            as Adam does, from 0 and corrected for it.
        prune_every: steps between prunings; None never prunes.
        prune_opacity: Gaussians below this opacity go.
        prune_scale: Gaussians larger than this share of their distance to the nearest camera go.
        check_every: steps between measurements of the watched views.
        poses: cameras of the photos move, too, each by a small rotation and shift.
        patience: checks without improvement after which the optimisation stops.
        seed: of the view order.
    """

    rates: LearningRates = field(default_factory=LearningRates)
    views_per_step: int | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    passes: float | None = None
    warm_start: float | None = None
    l1: float = 0.0
    ssim: float = 0.0
    prune_every: int | None = None
    prune_opacity: float = 0.005
    prune_scale: float = 1.0
    check_every: int = 25
    poses: bool = False
    patience: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("views_per_step", "prune_every", "check_every", "patience"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"RefineConfig was given {name} = {value}.", expected="at least 1")
        if not 0 <= self.l1 <= 1:
            raise ConfigError(f"RefineConfig was given l1 = {self.l1}.", expected="a share from 0 to 1")

    @staticmethod
    def paper() -> RefineConfig:
        """Ten to fifty steps on all views with squared error alone, as published."""
        return RefineConfig()

    @staticmethod
    def long(seed: int = 0) -> RefineConfig:
        """Ten to hundreds of steps: mini-batches, pruning, and rates tuned for the views that are not fitted."""
        rates = LearningRates(
            means=3e-3,
            sh=1.5e-2,
            log_scales=5e-2,
            quats=5e-3,
            opacity_logits=8e-2,
            final=0.1,
            by_distance=True,
            error=0.08,
        )
        return RefineConfig(
            rates,
            views_per_step=2,
            betas=(0.9, 0.99),
            passes=_PASSES,
            warm_start=0.1,
            l1=0.8,
            ssim=0.2,
            prune_every=100,
            seed=seed,
        )

    def most_steps(self, photos: int) -> int | None:
        """How many steps ``passes`` are."""
        together = photos if self.views_per_step is None else min(self.views_per_step, photos)
        return None if self.passes is None else max(round(self.passes * photos / together), 1)

    @staticmethod
    def for_steps(steps: int | None, seed: int = 0) -> RefineConfig:
        """The preset for so many steps: ``paper`` up to 50, ``long`` above, and where time decides (None)."""
        return RefineConfig.paper() if steps is not None and steps <= 50 else RefineConfig.long(seed)

    def for_views(self, views: int, seed: int) -> RefineConfig:
        """The same for so many input views: of more than 32, a step renders no more than 16."""
        if self.views_per_step is not None or views <= _ALL_AT_ONCE:
            return self
        return replace(self, views_per_step=_VIEWS_A_STEP, seed=seed)
