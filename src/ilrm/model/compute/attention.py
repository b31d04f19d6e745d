"""Attention without a mask, by the kernel that is fastest for the shape on this GPU.

Which of torch's kernels (cuDNN, flash, memory-efficient, plain products) or FlashAttention-3 wins depends on the card,
the release and the lengths, so each shape is timed once in a process. Never inside a compiled function or a CUDA graph:
``ILRM`` asks before it calls its layers.

Shape suffixes: N sequences, Q queries and M keys of each, H heads, D channels of a head.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ilrm.core.errors import ConfigError
from ilrm.core.precision import has_bf16
from ilrm.model.config import AttentionName

# Without instructions for it, products in bf16 take three times as long as torch's kernel, which computes in fp32.
_CPU_MULTIPLIES_BF16 = has_bf16(torch.device("cpu"))
# Queries whose scores against all keys are held at once on the CPU in bf16.
_QUERIES_AT_A_TIME = 256
# Plain products hold all scores; they are tried where these take no more bytes than this.
_MOST_SCORES = 1 << 30
# Scores that a timing computes at most: enough to keep a GPU busy, few enough for some milliseconds.
_SCORES_TO_TIME = 1 << 33
_WARM, _TIMED = 2, 5

_KERNELS = {
    "cudnn": getattr(SDPBackend, "CUDNN_ATTENTION", None),
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


@dataclass(frozen=True)
class AttentionShape:
    """What a kernel's speed depends on.

    Attributes:
        sequences, queries, keys, heads, head_width: N, Q, M, H, D.
        dtype, device: of the tensors.
        gradient: whether a backward pass follows.
    """

    sequences: int
    queries: int
    keys: int
    heads: int
    head_width: int
    dtype: torch.dtype
    device: torch.device
    gradient: bool

    def rounded(self) -> AttentionShape:
        """With all lengths rounded up to powers of two: shapes that are timed together."""
        lengths = (self.sequences, self.queries, self.keys)
        sequences, queries, keys = (1 << (max(x, 1) - 1).bit_length() for x in lengths)
        others = (self.heads, self.head_width, self.dtype, self.device, self.gradient)
        return AttentionShape(sequences, queries, keys, *others)


_fastest: dict[AttentionShape, AttentionName] = {}


def attend(q_NQHD: Tensor, k_NMHD: Tensor, v_NMHD: Tensor, kernel: AttentionName = "auto") -> Tensor:
    """softmax(q k^T / sqrt(D)) v, (N, Q, H, D).

    Args:
        kernel: which computes it on a GPU; "auto" is torch's choice. On a CPU there is no choice.

    Raises:
        ConfigError: the kernel is not installed, or cannot compute this shape in this format.
    """
    on_cpu = q_NQHD.device.type == "cpu"
    if on_cpu and q_NQHD.dtype == torch.bfloat16 and not torch.is_grad_enabled() and _CPU_MULTIPLIES_BF16:
        return attend_by_products(q_NQHD, k_NMHD, v_NMHD)
    if kernel == "auto" or on_cpu:
        return _attend_by_torch(q_NQHD, k_NMHD, v_NMHD)
    if kernel == "fa3":
        return _attend_by_fa3(q_NQHD, k_NMHD, v_NMHD)
    with sdpa_kernel(_KERNELS[kernel]):
        return _attend_by_torch(q_NQHD, k_NMHD, v_NMHD)


def _attend_by_torch(q_NQHD: Tensor, k_NMHD: Tensor, v_NMHD: Tensor) -> Tensor:
    # A GPU's kernels read a head's channels side by side, and refuse queries that are lifted from one token each.
    q, k, v = ((x if x.stride(-1) == 1 else x.contiguous()).transpose(1, 2) for x in (q_NQHD, k_NMHD, v_NMHD))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _attend_by_fa3(q_NQHD: Tensor, k_NMHD: Tensor, v_NMHD: Tensor) -> Tensor:
    from flash_attn_interface import flash_attn_func  # type: ignore[import-not-found]

    found: Any = flash_attn_func(q_NQHD, k_NMHD, v_NMHD)
    return found[0] if isinstance(found, tuple) else found  # some releases return the scores' sums, too


def attend_by_products(q_NQHD: Tensor, k_NMHD: Tensor, v_NMHD: Tensor) -> Tensor:
    """The same by plain matrix products, some queries at a time.

    CPUs with bf16 matrix units run these about twice as fast as torch's fused kernel, which computes in fp32 inside;
    with queries and keys normalised per head the scores are small enough for bf16.
    """
    N, Q, H, D = q_NQHD.shape
    q, k, v = (x.transpose(1, 2).reshape(N * H, -1, D) for x in (q_NQHD * D**-0.5, k_NMHD, v_NMHD))
    keys = k.transpose(1, 2)
    parts = []
    for rows in q.split(_QUERIES_AT_A_TIME, dim=1):
        scores = torch.bmm(rows, keys)
        # In place: fresh memory costs more than the exponentials. Each row is read before it is written.
        parts.append(torch.bmm(torch.softmax(scores, -1, out=scores), v))
    return torch.cat(parts, dim=1).reshape(N, H, Q, D).transpose(1, 2)


def check_kernel(kernel: AttentionName, device: torch.device) -> None:
    """Raises ConfigError if this device may not have the kernel."""
    if kernel == "auto":
        return
    if device.type == "cpu" or (kernel in _KERNELS and _KERNELS[kernel] is None):
        where = "a CPU" if device.type == "cpu" else f"torch {torch.__version__}"
        raise ConfigError(f"There is no attention kernel {kernel!r} for {where}.", expected="auto")
    if kernel == "fa3" and find_spec("flash_attn_interface") is None:
        raise ConfigError(
            "The attention kernel 'fa3' was asked for, and the package flash_attn_interface is not installed.",
            expected=" or ".join(name for name in get_args(AttentionName) if name != "fa3"),
            fix="build FlashAttention-3 for this GPU, or use auto",
        )


def kernel_for(shape: AttentionShape, seconds: Callable[[Callable[[], object]], float] | None = None) -> AttentionName:
    """The fastest kernel for a shape; it is timed when a shape of the same rounded lengths comes for the first time.

    "auto", torch's own choice, on the CPU, where results must be deterministic, and where nothing may be timed.

    Args:
        seconds: how long work takes on the device; events of the GPU by default.
    """
    if seconds is None and shape.device.type != "cuda":
        return "auto"
    if torch.compiler.is_compiling() or torch.are_deterministic_algorithms_enabled():
        return "auto"
    key = shape.rounded()
    if key not in _fastest:
        if shape.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return "auto"
        _fastest[key] = choose(candidates(key), seconds or partial(_device_seconds, shape.device))
    return _fastest[key]


def known_kernels() -> dict[AttentionShape, AttentionName]:
    """What was timed so far, by rounded shapes."""
    return dict(_fastest)


def choose(
    works: Mapping[AttentionName, Callable[[], object]], seconds: Callable[[Callable[[], object]], float]
) -> AttentionName:
    """The name of the work that takes the fewest seconds, without those that cannot be done; "auto" if none can."""
    taken: dict[AttentionName, float] = {}
    for name, work in works.items():
        try:
            taken[name] = seconds(work)
        except (RuntimeError, ImportError, TypeError):  # no such kernel here, or not for this shape
            continue
    fastest: AttentionName = "auto"
    for name in taken:
        if fastest == "auto" or taken[name] < taken[fastest]:
            fastest = name
    return fastest


def candidates(shape: AttentionShape) -> dict[AttentionName, Callable[[], object]]:
    """The attention of random tensors of a shape, by each kernel that may be worth it."""
    N, Q, M, H, D = shape.sequences, shape.queries, shape.keys, shape.heads, shape.head_width
    # Work grows with sequences and queries alone; fewer of them tell the same.
    N = max(1, min(N, _SCORES_TO_TIME // (Q * M * H)))
    Q = max(1, min(Q, _SCORES_TO_TIME // (N * M * H)))
    generator = torch.Generator(shape.device).manual_seed(0)  # not the global one: it would change what is drawn next
    given = {"generator": generator, "device": shape.device, "requires_grad": shape.gradient}
    q, k, v = (torch.randn(N, length, H, D, **given).to(shape.dtype) for length in (Q, M, M))

    def work(kernel: AttentionName) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch tells why a kernel is not there
            found = attend(q, k, v, kernel)
            if shape.gradient:
                torch.autograd.grad(found, (q, k, v), torch.ones_like(found))

    names: list[AttentionName] = [name for name in get_args(AttentionName) if name != "auto"]
    if N * H * Q * M * q.element_size() > _MOST_SCORES:
        names.remove("math")
    if find_spec("flash_attn_interface") is None:
        names.remove("fa3")
    return {name: partial(work, name) for name in names if name == "fa3" or _KERNELS[name] is not None}


def _device_seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Of one call, once the kernels are loaded."""
    with torch.cuda.device(device):
        for _ in range(_WARM):
            work()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(_TIMED):
            work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / _TIMED
