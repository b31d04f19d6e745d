"""The free parameters of a refinement, and a step of it. Nothing in a step waits for the device."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ilrm.core.cameras import Cameras
from ilrm.core.gaussians import Gaussians
from ilrm.core.scene import LazyImages, LazyMasks, Scene
from ilrm.evaluate.metrics import psnr
from ilrm.pipeline.refining.config import RefineConfig
from ilrm.pipeline.refining.losses import photometric
from ilrm.pipeline.refining.poses import PoseSteps
from ilrm.render import render

_OPACITY_RANGE = (1e-6, 1 - 1e-6)
# Of the photos that a step renders at once, about: what renderings and gradients need of memory follows.
_MOST_PIXELS = 1 << 21
_MOST_DISTANCES = 1 << 25
# Rates are at most so many times as large, however bad the start is.
_MOST_SCALE = 3.0
_UNCORRECTED = 1e5


class RefineState:
    """Free parameters, their optimiser and what they started from, in the unit frame.

    Args:
        cameras: of the photos.
        error: root of the mean squared error of the photos at the start, see ``LearningRates.error``.
    """

    def __init__(self, gaussians: Gaussians, cameras: Cameras, config: RefineConfig, error: float = math.nan) -> None:
        self.config = config
        self.centers = cameras.centers.to(gaussians.means)
        self.start, self.antialiased = gaussians.means, gaussians.antialiased
        self.background = gaussians.background
        self.distance = _nearest(self.start, self.centers)[:, None].clamp_min(1e-6)  # (N, 1)
        self.parameters: dict[str, Tensor] = {
            "means": torch.zeros_like(self.start),  # the way from the start, in units of self._unit()
            "sh": gaussians.sh.clone(),
            "log_scales": gaussians.scales.clamp_min(torch.finfo(torch.float32).tiny).log(),
            "quats": gaussians.quats.clone(),
            "opacity_logits": torch.logit(gaussians.opacities.double().clamp(*_OPACITY_RANGE)).float(),
        }
        for value in self.parameters.values():
            value.requires_grad_()
        groups = [{"params": [value], "name": name} for name, value in self.parameters.items()]
        # The fused kernels leave a step out by themselves where ``found_inf`` says so, without asking the host.
        self.optimiser = torch.optim.Adam(groups, lr=0.0, eps=1e-15, betas=config.betas, fused=True)
        self._scale = _rate_scale(error, config.rates.error)
        self._skipped = torch.zeros((), device=gaussians.device)
        still = cameras.to(gaussians.device, torch.float32)
        self.poses = PoseSteps(still, config.rates.turns, config.rates.shifts) if config.poses else None

    @property
    def skipped_steps(self) -> int:
        """Steps without effect, because a gradient was not finite."""
        return int(self._skipped.item())

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
            background=self.background,
            means=self.start + free["means"] * self._unit(),
            scales=free["log_scales"].exp(),
            quats=torch.nn.functional.normalize(free["quats"], dim=-1),
            opacities=free["opacity_logits"].sigmoid(),
            sh=free["sh"],
        )

    def _unit(self) -> Tensor | float:
        return self.distance if self.config.rates.by_distance else 1.0

    def step(self, photos: Scene, views: list[int], progress: float) -> Tensor:
        """One step of Adam on the views; loss and PSNR (2,) that it was taken at. ``progress`` runs from 0 to 1."""
        decay = self._scale * self.config.rates.final**progress
        for group in self.optimiser.param_groups:
            group["lr"] = getattr(self.config.rates, group["name"]) * decay
        self.optimiser.zero_grad(set_to_none=True)
        losses, decibels = [], []
        together = max(1, _MOST_PIXELS // (photos.cameras.width * photos.cameras.height))
        for group in (views[i : i + together] for i in range(0, len(views), together)):
            rgb = self._render(photos.cameras, group)
            truth, mask = _of(photos.images, group).to(rgb), None
            if photos.mask is not None:
                mask = _of(photos.mask, group).to(rgb.device)
            loss = photometric(rgb, truth, mask, self.config.l1, self.config.ssim) * (len(group) / len(views))
            loss.backward()
            losses.append(loss.detach())
            decibels.append(psnr(rgb.detach(), truth, mask))
        self._adam()
        if self.poses is not None:
            self.poses.step(views, decay)
        return torch.stack([torch.stack(losses).sum().double(), torch.cat(decibels).nanmean()])

    def _render(self, cameras: Cameras, views: list[int]) -> Tensor:
        if self.poses is not None:
            return self.poses.render(self._gaussians(), views)
        return render(self._gaussians(), _cameras_of(cameras, views)).rgb

    def _adam(self) -> None:
        """Adam's step, if all gradients are finite. Sums of them tell: they are infinite or NaN where an element is."""
        gradients = [value.grad for value in self.parameters.values() if value.grad is not None]
        if self.config.warm_start is not None and not self.optimiser.state:
            self._warm_start(self.config.warm_start)
        found_inf = 1 - torch.isfinite(torch.stack([x.sum() for x in gradients])).all().float()
        self._skipped += found_inf
        self.optimiser.found_inf = found_inf  # type: ignore[attr-defined]  # as torch.amp.GradScaler does
        self.optimiser.step()

    @torch.no_grad()
    def _warm_start(self, share: float) -> None:
        for value in self.parameters.values():
            assert value.grad is not None
            typical = share * torch.nan_to_num(value.grad.square(), 0.0, 0.0, 0.0).mean()
            self.optimiser.state[value] = {
                # So many that Adam no longer corrects its moments for their start from 0.
                "step": torch.full((), _UNCORRECTED, device=value.device),
                "exp_avg": torch.zeros_like(value),
                "exp_avg_sq": typical.expand_as(value).clone(),
            }

    @torch.no_grad()
    def prune(self) -> None:
        """Remove transparent and oversized Gaussians, along with what the optimiser knows of them."""
        gaussians = self.gaussians()
        distance = _nearest(gaussians.means, self.centers)
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


def _rate_scale(error: float, usual: float | None) -> float:
    """By how much rates differ from those for the usual error; 1 where either is unknown."""
    return 1.0 if usual is None or math.isnan(error) else min(error / usual, _MOST_SCALE)


def _nearest(means: Tensor, centers: Tensor) -> Tensor:
    """(N,) distance of each mean (N, 3) from the nearest of the centres (V, 3). Memory does not grow with N times V."""
    together = max(1, _MOST_DISTANCES // max(1, len(centers)))
    return torch.cat([torch.cdist(some, centers).amin(1) for some in means.split(together)])


def _of(values: Tensor | LazyImages | LazyMasks, views: list[int]) -> Tensor:
    """``values[views]``. Numbers are taken one by one: a list of them would have to be copied to the device."""
    return torch.stack([values[view] for view in views]) if isinstance(values, Tensor) else values[views]


def _cameras_of(cameras: Cameras, views: list[int]) -> Cameras:
    return replace(cameras, c2w=_of(cameras.c2w, views), K=_of(cameras.K, views))
