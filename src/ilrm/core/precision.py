"""The number format of the network's arithmetic: fp32 or bf16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch

Precision = Literal["auto", "fp32", "bf16"]

# Asked once: torch.compile does not see through the question.
_AUTOCAST = {name: torch.amp.is_autocast_available(name) for name in ("cpu", "cuda", "mps", "xpu", "meta")}
# Below this many parameters a network is fast enough on a CPU in fp32, whose result is easier to reproduce.
_LARGE = 50_000_000


def _has_autocast(device: torch.device) -> bool:
    known = _AUTOCAST.get(device.type)
    return torch.amp.is_autocast_available(device.type) if known is None else known


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices in hardware (emulation would be slower than fp32)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def resolve(precision: Precision, device: torch.device, parameters: int) -> Literal["fp32", "bf16"]:
    """Replace "auto": bf16 on a GPU that supports it, and on a CPU that supports it if the network is large."""
    if precision != "auto":
        return precision
    worth_it = device.type == "cuda" or parameters >= _LARGE
    return "bf16" if worth_it and has_bf16(device) else "fp32"


@contextmanager
def exact_fp32() -> Iterator[None]:
    """Compute convolutions of fp32 tensors on CUDA in fp32; torch's default, TF32, has 10 mantissa bits instead of 23.

    Matrix products are already fp32 unless the caller has changed ``torch.set_float32_matmul_precision``.
    """
    cudnn: Any = torch.backends.cudnn
    if hasattr(cudnn, "conv"):  # torch 2.9 and later raise if the old setting is mixed with these
        switches = [(cudnn.conv, "fp32_precision", "ieee"), (cudnn.rnn, "fp32_precision", "ieee")]
    else:
        switches = [(cudnn, "allow_tf32", False)]
    before = [getattr(place, name) for place, name, _ in switches]
    for place, name, value in switches:
        setattr(place, name, value)
    try:
        yield
    finally:
        for (place, name, _), value in zip(switches, before, strict=True):
            setattr(place, name, value)


def autocast(precision: Literal["fp32", "bf16"], device: torch.device) -> AbstractContextManager[object]:
    """Run matrix products, convolutions and attention in that format.

    Without gradients each weight is used once. Its bf16 copy is then not cached: the cache would take half the memory
    of the weights.
    """
    if precision == "fp32" or not _has_autocast(device):
        return exact_fp32()
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=torch.is_grad_enabled())


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The format that an autocast around computes in on this device; None outside of any."""
    if not _has_autocast(device) or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Turn off any surrounding autocast, because geometry needs the full precision of its tensors."""
    if not _has_autocast(device):
        return nullcontext()  # "meta"
    return torch.autocast(device.type, enabled=False)
