"""Functions that torch.compile makes fast on GPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

from ilrm.core.errors import warn

P = ParamSpec("P")
T = TypeVar("T")
Varying = Iterator[tuple[Tensor, tuple[int, ...]]]


class CompiledOnGPU(Generic[P, T]):
    """A function as it is, or on CUDA compiled as one graph.

    Args:
        varying: yields tensors among the arguments, each with the dimensions that have any size. Without it the
            function is compiled again where a size changes.

    Attributes:
        works: False once it could not be compiled.

    Where nothing can be compiled (no Triton, no C compiler) it runs as it is, and one warning says so.
    """

    def __init__(self, function: Callable[P, T], varying: Callable[P, Varying] | None = None) -> None:
        self._plain = function
        self._varying = varying
        self._compiled: Callable[P, T] | None = None
        self.works = True

    def __call__(self, device: torch.device, *arguments: P.args, **options: P.kwargs) -> T:
        """``function(*arguments, **options)`` with tensors of that device."""
        if device.type != "cuda" or not self.works:
            return self._plain(*arguments, **options)
        try:
            return self.compiled("inductor", *arguments, **options)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            found = self._plain(*arguments, **options)  # a mistake of the function's own is raised here
            self.works = False
            reason = (str(error) or type(error).__name__).splitlines()[0]
            warn(f"{getattr(self._plain, '__name__', 'a function')} runs without torch.compile: {reason}")
            return found

    def compiled(self, backend: str, *arguments: P.args, **options: P.kwargs) -> T:
        """The function's result through that back end of torch.compile."""
        if self._compiled is None:
            self._compiled = torch.compile(self._plain, fullgraph=True, backend=backend)
        from torch._dynamo import maybe_mark_dynamic  # takes seconds to import

        for tensor, dimensions in self._varying(*arguments, **options) if self._varying else ():
            for dimension in dimensions:
                maybe_mark_dynamic(tensor, dimension)
        return self._compiled(*arguments, **options)
