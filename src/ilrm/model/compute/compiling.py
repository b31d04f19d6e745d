"""torch.compile for the parts of a network, where there is a compiler."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from torch import nn

F = TypeVar("F", bound=Callable[..., Any])

# Modes of torch.compile that record CUDA graphs, and what they are without; see ``graphs``.
_WITHOUT_GRAPHS = {"reduce-overhead": None, "max-autotune": "max-autotune-no-cudagraphs"}


@dataclass(frozen=True)
class CompileOptions:
    """What torch.compile is told; see there.

    Attributes:
        backend, mode, fullgraph, dynamic: its arguments of these names.
    """

    backend: str | Callable[..., Any] = "inductor"
    mode: str | None = None
    fullgraph: bool = False
    dynamic: bool | None = None

    @property
    def graphs(self) -> bool:
        """Whether CUDA graphs are recorded: of the whole network, not of each compiled part."""
        return self.mode in _WITHOUT_GRAPHS

    def _arguments(self) -> dict[str, Any]:
        return {**asdict(self), "mode": _WITHOUT_GRAPHS.get(self.mode, self.mode) if self.mode else None}

    def modules(self, parts: Sequence[nn.Module]) -> None:
        """Compile these modules' calls, in place. Equal modules share what is compiled."""
        for part in parts:
            part.compile(**self._arguments())

    def function(self, function: F) -> F:
        """The function, compiled when it is first called."""
        compiled: Any = torch.compile(function, **self._arguments())
        return compiled


def why_not(device: torch.device, backend: str | Callable[..., Any]) -> str | None:
    """What torch.compile lacks here, in words; None if nothing. Only the backend "inductor" needs a compiler."""
    if backend != "inductor":
        return None
    if device.type == "cuda" and find_spec("triton") is None:
        return "the package triton is not installed"
    # Inductor writes C++ for a CPU, and triton a launcher in C for a GPU.
    names, variable = (("gcc", "clang", "cc"), "CC") if device.type == "cuda" else (("g++", "clang++", "c++"), "CXX")
    if os.name == "nt":
        names = ("cl",)
    if not any(map(shutil.which, [os.environ.get(variable, ""), *names])):
        return f"there is no {'C' if variable == 'CC' else 'C++'} compiler ({' or '.join(names)})"
    return None
