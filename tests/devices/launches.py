"""What a GPU would have to launch and to wait for, found out on any machine."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Launches(TorchDispatchMode):
    """Operations that compute something while inside; views of tensors cost nothing and do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returns = func._schema.returns
        is_view = bool(returns) and returns[0].alias_info is not None and not returns[0].alias_info.is_write
        self.count += not is_view
        return func(*args, **(kwargs or {}))


class NothingFromTheHost(TorchDispatchMode):
    """Fails where a tensor is made on another device, where values of the host become one, and where the host asks
    for values: on a GPU each of these waits until all that was asked of it before is done."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        places = ((torch, "tensor"), (torch, "as_tensor"), (Tensor, "new_tensor"))
        self._patches = [patch.object(place, name, self._copied) for place, name in places]

    @staticmethod
    def _copied(*args: Any, **options: Any) -> Tensor:
        raise AssertionError("values are copied to the device")

    def __enter__(self) -> NothingFromTheHost:
        for one in self._patches:
            one.start()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for one in self._patches:
            one.stop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # torch.linalg.inv and its like ask the device whether they worked.
        assert not any(name in str(func) for name in ("_local_scalar_dense", "check_errors", "nonzero")), func
        found = func(*args, **(kwargs or {}))
        for x in found if isinstance(found, (tuple, list)) else [found]:
            assert not isinstance(x, Tensor) or x.device == self.device, func
        return found
