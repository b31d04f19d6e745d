"""CUDA graphs of a whole forward pass: a GPU runs its kernels one after the other without hearing from Python.

torch.compile can record graphs of its own, but of each compiled part alone, and parts that follow each other then
overwrite what the others still need (pytorch issue 152887). A forward pass asks the host for nothing
(``tests/test_devices.py``), so that it can be recorded as one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ilrm.core.errors import warn

R = TypeVar("R")

# Sizes that are kept: a graph keeps the memory of all its intermediate results.
_MOST_GRAPHS = 4
# Calls before recording: they compile, load and time kernels.
_WARM_UP = 3


class Recorded(Generic[R]):
    """A function of tensors, recorded with these inputs' sizes. Its result is overwritten by the next call."""

    def __init__(self, function: Callable[..., R], inputs: Sequence[Tensor]) -> None:
        self._inputs = [x.clone() for x in inputs]
        before, self._graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
        beside = torch.cuda.Stream()
        beside.wait_stream(before)
        try:
            with torch.cuda.stream(beside):
                for _ in range(_WARM_UP):
                    function(*self._inputs)
            before.wait_stream(beside)
            with torch.cuda.graph(self._graph):
                self._result = function(*self._inputs)
        finally:
            torch.cuda.set_stream(before)  # a recording that fails leaves its own

    def __call__(self, inputs: Sequence[Tensor]) -> R:
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._result


class Graphs(Generic[R]):
    """Graphs of one function, by what they were recorded for.

    Args:
        keep: makes a result one's own; the next call overwrites it.
        record: makes a graph; on a GPU ``Recorded``.
    """

    def __init__(
        self,
        keep: Callable[[R], R],
        record: Callable[[Callable[..., R], Sequence[Tensor]], Callable[[Sequence[Tensor]], R]] = Recorded,
    ) -> None:
        self._keep, self._record = keep, record
        self._known: OrderedDict[Hashable, Callable[[Sequence[Tensor]], R]] = OrderedDict()
        self._failed = False

    def __call__(self, function: Callable[..., R], inputs: Sequence[Tensor], key: Hashable) -> R:
        """``function(*inputs)``, from a graph that was recorded for the inputs' sizes.

        Args:
            key: what else the function depends on, the places of the tensors that it reads among it.
        """
        if self._failed:
            return function(*inputs)
        full_key = (key, *((x.shape, x.dtype, x.device) for x in inputs))
        # Tensors of inference could not be written to by calls outside of it.
        with torch.inference_mode(mode=False), torch.no_grad():
            if full_key not in self._known:
                try:
                    self._known[full_key] = self._record(function, inputs)
                except RuntimeError as error:
                    self._known.clear()
                    self._failed = True
                    warn(f"No CUDA graph of the network can be recorded, it runs without: {_first_line(error)}")
                    return function(*inputs)
                while len(self._known) > _MOST_GRAPHS:
                    self._known.popitem(last=False)
            self._known.move_to_end(full_key)
            return self._keep(self._known[full_key](inputs))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
