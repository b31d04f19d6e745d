"""AdamW with the paper's parameter groups, its learning rates in closed form, and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ilrm.core.errors import WeightsError
from ilrm.train.config import OptimiserConfig

# What parameters of the feedback are called, beginning.
FEEDBACK = "feedback."
# The released one-cycle: start = peak / 25, end = start / 1e4, 1 % of (steps + 10) to the peak.
_START_DIVISOR, _END_DIVISOR, _RISE, _EXTRA_STEPS = 25.0, 1e4, 0.01, 10


def parameter_groups(model: nn.Module, weight_decay: float, base_rate: float = 1.0) -> list[dict[str, Any]]:
    """Two groups for AdamW: decay on everything of two and more dimensions, none on 1-D tensors (norm gains).

    With another ``base_rate`` than 1 there are two more for what is no feedback, with that share of the rate.
    """
    learned = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    base = {name for name in learned if base_rate != 1 and not name.startswith(FEEDBACK)}
    groups = _by_decay([p for name, p in learned.items() if name not in base], weight_decay)
    if base:
        slower = _by_decay([p for name, p in learned.items() if name in base], weight_decay)
        groups += [{**group, "share": base_rate} for group in slower]
    return groups


def _by_decay(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def freeze_base(model: nn.Module, base_rate: float) -> None:
    """Nothing but feedback has a gradient where the rest is taught at no rate."""
    if base_rate == 0:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(FEEDBACK))


def make_optimiser(
    model: nn.Module, config: OptimiserConfig, base_rate: float = 1.0, *, fused: bool = False
) -> torch.optim.AdamW:
    """AdamW on all groups. Its learning rate is set before each step by ``set_learning_rate``.

    Args:
        fused: one kernel for all tensors, which can leave a step out without the host (``step_unless``). Always so on
            CUDA; on the CPU it rounds differently from torch's default.
    """
    groups = parameter_groups(model, config.weight_decay, base_rate)
    on_gpu = all(parameter.device.type == "cuda" for group in groups for parameter in group["params"])
    return torch.optim.AdamW(groups, lr=config.peak, betas=config.betas, eps=config.eps, fused=fused or on_gpu or None)


def is_fused(optimiser: torch.optim.Optimizer) -> bool:
    """Whether ``step_unless`` can be used."""
    return all(group.get("fused") for group in optimiser.param_groups)


def step_unless(skip: Tensor, optimiser: torch.optim.Optimizer) -> None:
    """Move the weights, or leave weights, moments and step counts alone, without asking the device which.

    torch's fused kernels return at once where ``found_inf`` is 1, and the step counts are put back by it. It is made
    for gradient scaling, but nothing else is done with it.

    Args:
        skip: () float32 on the parameters' device, 1 to leave the step out, else 0.
    """
    optimiser.found_inf = skip  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    optimiser.step()


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """The rate, or each group's share of it."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get("share", 1.0)


def learning_rate(step: int, total_steps: int, config: OptimiserConfig) -> float:
    """Rate of optimiser step ``step`` (from 0) in a run of ``total_steps``; resuming needs no state."""
    if config.schedule == "one_cycle":
        return _one_cycle(step, total_steps + _EXTRA_STEPS, config.peak)
    rate = config.peak * _warm_up(step, config.warm_up)
    if config.schedule == "cosine" and step > config.warm_up:
        progress = (step - config.warm_up) / max(1, total_steps - config.warm_up)
        rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return rate


def _warm_up(step: int, steps: int) -> float:
    """Linear from 1 / steps at step 0 to 1 at step ``steps``, then 1."""
    return 1.0 if step >= steps else 1 / steps + (1 - 1 / steps) * step / steps


def _one_cycle(step: int, total: int, peak: float) -> float:
    start = peak / _START_DIVISOR
    rise_end, end = _RISE * total - 1, total - 1
    if rise_end > 0 and step <= rise_end:  # a run of under 90 steps starts at the peak
        return _cosine_between(start, peak, step / rise_end)
    return _cosine_between(peak, start / _END_DIVISOR, min(1.0, (step - rise_end) / (end - rise_end)))


def _cosine_between(first: float, last: float, share: float) -> float:
    return last + (first - last) / 2 * (1 + math.cos(math.pi * share))


class Average:
    """Exponential moving average of a network's weights, warm from the first update.

    After n updates the average keeps min(decay, (1 + n) / (10 + n)) of itself, so that it forgets the random start.

    Args:
        model: its weights are the first value. Not a wrapper: names must stay the same over a run.
        decay: share that is kept in the long run, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._updates: int | Tensor = 0
        self.weights = {name: x.detach().clone() for name, x in model.state_dict().items()}

    @property
    def updates(self) -> int:
        """How often the average has moved; waits for the device after ``update_unless``."""
        return int(self._updates)

    @updates.setter
    def updates(self, updates: int) -> None:
        self._updates = updates

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the network as it is now."""
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        ours, theirs = self._moving(model)
        torch._foreach_lerp_(ours, theirs, 1 - keep)  # pyright: ignore[reportPrivateImportUsage]
        self._updates += 1

    @torch.no_grad()
    def update_unless(self, skip: Tensor, model: nn.Module) -> None:
        """``update``, or nothing where ``skip`` () float32 is 1, without asking the device which.

        Rounds differently from ``update``: the weight of the move is a tensor.
        """
        before = self._updates
        if not isinstance(before, Tensor):
            before = torch.full((), float(before), dtype=torch.float64, device=skip.device)
        keep = ((1 + before) / (10 + before)).clamp(max=self.decay)
        ours, theirs = self._moving(model)
        moves = torch._foreach_sub(theirs, ours)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_mul_(moves, ((1 - keep) * (1 - skip)).float())  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_add_(ours, moves)  # pyright: ignore[reportPrivateImportUsage]
        self._updates = before + (1 - skip)

    def _moving(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """The averages and the network's values of all floating-point weights; the others are copied."""
        now = model.state_dict()
        moving = [name for name, x in now.items() if x.is_floating_point()]
        for name in now.keys() - {*moving}:
            self.weights[name].copy_(now[name])
        return [self.weights[name] for name in moving], [now[name] for name in moving]

    @contextmanager
    @torch.no_grad()
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside, the network has the averaged weights; afterwards its own again."""
        own = {name: x.detach().clone() for name, x in model.state_dict().items()}
        model.load_state_dict(self.weights)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        """{"updates": n, "weights": {name: tensor}}; the tensors are the average's own, not copies."""
        return {"updates": self.updates, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state_dict`` gave.

        Raises:
            WeightsError: other names or shapes than this network's.
        """
        theirs: Mapping[str, Tensor] = state["weights"]
        ours = {name: tuple(x.shape) for name, x in self.weights.items()}
        if {name: tuple(x.shape) for name, x in theirs.items()} != ours:
            differing = sorted(set(theirs) ^ set(ours)) or [n for n in ours if tuple(theirs[n].shape) != ours[n]]
            raise WeightsError(
                f"The averaged weights are those of another network: {', '.join(differing[:4])} differ.",
                expected="the average that this run has written",
                fix="resume with the config that the run was started with",
            )
        self.updates = int(state["updates"])
        with torch.no_grad():
            for name, x in self.weights.items():
                x.copy_(theirs[name])
