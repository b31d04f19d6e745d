"""In what parts an update layer is computed, and by which attention kernels: decided once a forward pass.

Without gradients each view's cross-attention and each token's MLP can be computed alone, which bounds memory without
changing the result. On a CPU small parts also stay in its cache; on a GPU they are as large as memory allows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ilrm.core.checks import free_memory
from ilrm.model.compute.attention import AttentionShape, check_kernel, kernel_for
from ilrm.model.config import AttentionName, ILRMConfig

# Rows of tokens at a time on the CPU.
ROWS_ON_CPU = 8192
# Of a GPU's free memory, what one layer's intermediate results may take.
_SHARE_OF_FREE = 0.5
_FP32_BYTES = 4


class Plan(NamedTuple):
    """How a layer is computed.

    Attributes:
        views: whose cross-attention block is computed at a time; None is all of them.
        rows: tokens whose MLP is computed at a time; None is all of them.
        read, exchange: attention kernels of the cross- and the self-attention.
    """

    views: int | None = None
    rows: int | None = None
    read: AttentionName = "auto"
    exchange: AttentionName = "auto"


@dataclass(frozen=True)
class Sizes:
    """Lengths of a forward pass.

    Attributes:
        samples, views: B, V.
        viewpoint, image: tokens of a view that a layer works on.
    """

    samples: int
    views: int
    viewpoint: int
    image: int


def plan(
    config: ILRMConfig,
    sizes: Sizes,
    device: torch.device,
    dtype: torch.dtype,
    attention: AttentionName = "auto",
    *,
    timed: bool = True,
) -> Plan:
    """How layers of a network are computed on a device.

    Args:
        dtype: that attention computes in.
        attention: the kernel to use; "auto" takes the fastest for each shape, if ``timed``, else torch's choice.

    Raises:
        ConfigError: an attention kernel that this device does not have.
    """
    check_kernel(attention, device)
    read: AttentionName = attention
    exchange: AttentionName = attention
    gradient = torch.is_grad_enabled()
    if attention == "auto" and timed:
        of_cross, of_self = shapes(config, sizes, device, dtype, gradient)
        read, exchange = kernel_for(of_cross), kernel_for(of_self)
    if gradient or torch.compiler.is_compiling():
        return Plan(None, None, read, exchange)  # autograd keeps everything anyway
    if device.type == "cpu":
        per_view = sizes.viewpoint * config.uplift + sizes.image
        return Plan(max(1, ROWS_ON_CPU // per_view), ROWS_ON_CPU, read, exchange)
    free = free_memory(device)
    if free is None:
        return Plan(None, None, read, exchange)
    budget = int(_SHARE_OF_FREE * free)
    every = sizes.samples * sizes.views
    return Plan(
        parts(every, bytes_per_view(config, sizes), budget),
        parts(every * sizes.viewpoint, bytes_per_row(config), budget),
        read,
        exchange,
    )


def shapes(
    config: ILRMConfig, sizes: Sizes, device: torch.device, dtype: torch.dtype, gradient: bool
) -> tuple[AttentionShape, AttentionShape]:
    """Of the cross-attention (each view alone) and the self-attention (all views of a sample)."""
    others = (config.width // config.head_width, config.head_width, dtype, device, gradient)
    tokens = sizes.views * sizes.viewpoint
    return (
        AttentionShape(sizes.samples * sizes.views, sizes.viewpoint * config.uplift, sizes.image, *others),
        AttentionShape(sizes.samples, tokens, tokens, *others),
    )


def bytes_per_view(config: ILRMConfig, sizes: Sizes) -> int:
    """What a view's cross-attention block holds at its largest, at most: queries (raw, normalised, as read), keys and
    values, or the hidden rows of its MLP; in fp32, to be on the safe side."""
    attention = config.width * (4 * config.uplift * sizes.viewpoint + 3 * sizes.image)
    return max(_FP32_BYTES * attention, sizes.viewpoint * bytes_per_row(config))


def bytes_per_row(config: ILRMConfig) -> int:
    """What a token's MLP holds at its largest, at most: its row before and after, and twice the hidden one; in fp32."""
    return _FP32_BYTES * config.width * (2 * config.mlp_ratio + 3)


def parts(count: int, bytes_each: int, budget: int) -> int | None:
    """How many of ``count`` equal parts fit a budget of bytes at a time; None if all do.

    A power of two, so that little differences in free memory do not give sizes that kernels were not compiled for.
    """
    if count * bytes_each <= budget:
        return None
    return 1 << (max(1, budget // bytes_each).bit_length() - 1)
