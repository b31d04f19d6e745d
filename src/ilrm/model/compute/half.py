"""Weights in bf16 once, and not at every call.

Autocast turns the weights of matrix products and convolutions into bf16 wherever they are used. Done before, the
results are the same to the last bit, and a forward pass launches and reads less.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

M = TypeVar("M", bound=nn.Module)

# What autocast computes in bf16 as a whole. Other modules may name theirs in an attribute ``autocast_weights``.
_CAST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def cast_weights(module: M) -> M:
    """Turn the weights that autocast would cast into bf16, in place; returns the module.

    The module is one for inference from then on, and must be called in bf16 autocast: what training adds to a weight
    would be lost in its 8 bits, so no parameter asks for a gradient any more.
    """
    for owner, name, weight in _weights(module):
        setattr(owner, name, nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=False))
    return module.requires_grad_(False)


def is_cast(module: nn.Module) -> bool:
    """Whether ``cast_weights`` has been here."""
    return any(weight.dtype == torch.bfloat16 for _, _, weight in _weights(module))


def with_cast_weights(module: M) -> M:
    """A module that computes the same in bf16 autocast, for inference: its weights are cast, the rest is shared.

    It is made when it is first asked for, and anew when a parameter has changed since: replaced, written to, or by an
    optimiser. A change that torch does not count (of ``parameter.data``) is not noticed. A module whose weights are
    bf16 already is returned as it is.
    """
    tensors = [*module.parameters(), *module.buffers()]
    if is_cast(module) or any(x.is_inference() for x in tensors):
        return module
    state = [_State(x) for x in tensors]
    known = _known.get(module)
    if known is not None and known[0] == state:
        made = known[1]
    else:
        _watch_optimisers()
        made = cast_weights(copy.deepcopy(module, {id(x): _shared(x) for x in tensors}))
        _known[module] = (state, made)
    assert isinstance(made, type(module))
    return made.train(module.training)


class _State:
    """A tensor and how often it was changed."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version, self.place = tensor, tensor._version, tensor.data_ptr()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _State) or self.tensor is not other.tensor:
            return False
        return (self.version, self.place) == (other.version, other.place)

    __hash__ = None  # type: ignore[assignment]


_known: WeakKeyDictionary[nn.Module, tuple[list[_State], nn.Module]] = WeakKeyDictionary()


@cache
def _watch_optimisers() -> None:
    """Fused optimisers change parameters without counting it."""

    def forget(optimiser: torch.optim.Optimizer, *_: Any) -> None:
        changed = {id(x) for group in optimiser.param_groups for x in group["params"]}
        for module, known in list(_known.items()):
            if any(id(x.tensor) in changed for x in known[0]):
                del _known[module]

    register_optimizer_step_post_hook(forget)


def _shared(tensor: Tensor) -> Tensor:
    """The same memory in a tensor of its own, which may lose its wish for a gradient."""
    alias = tensor.detach()
    return nn.Parameter(alias, requires_grad=False) if isinstance(tensor, nn.Parameter) else alias


def _weights(module: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    """Weights that autocast casts: whose they are, their names there, and they themselves."""
    found = []
    for owner in module.modules():
        names = ("weight", "bias") if isinstance(owner, _CAST) else getattr(owner, "autocast_weights", ())
        found += [(owner, name, weight) for name in names if (weight := getattr(owner, name)) is not None]
    return found
