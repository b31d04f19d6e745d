"""Which number format the network computes in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16"]

# Below this many parameters a network is fast enough on a CPU in fp32, whose result is easier to reproduce.
_LARGE = 50_000_000


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices in hardware (emulation would be slower than fp32)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def resolve(precision: Precision, device: torch.device, parameters: int) -> Literal["fp32", "bf16"]:
    """What "auto" means here: bf16 on a GPU that has it, and on a CPU that has it if the network is large."""
    if precision != "auto":
        return precision
    worth_it = device.type == "cuda" or parameters >= _LARGE
    return "bf16" if worth_it and has_bf16(device) else "fp32"


def autocast(precision: Literal["fp32", "bf16"], device: torch.device) -> AbstractContextManager[object]:
    """Run matrix products and attention in that format.

    Without gradients a weight is used once, so its bf16 copy is not kept: it would cost half the weights in memory.
    """
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=torch.is_grad_enabled())
