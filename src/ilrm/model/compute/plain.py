"""Update layers as torch's plain operations, all at once: what every faster way is compared with.

Shape suffixes: see ``ilrm.model.blocks``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ilrm.model.blocks import MLP, CrossAttention, HeadNorm, SelfAttention, UpdateLayer
from ilrm.model.camera_encoding import CameraEncoding
from ilrm.model.tokens import LAYER_NORM_EPS


def head_norm(norm: HeadNorm, x_NLHD: Tensor) -> Tensor:
    """RMSNorm over the channels of a head, in fp32."""
    x = x_NLHD.float()
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + LAYER_NORM_EPS)
    return x.to(x_NLHD.dtype) * norm.weight.to(x_NLHD.dtype)


def attend(q_NQHD: Tensor, k_NMHD: Tensor, v_NMHD: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v."""
    q, k, v = (x.transpose(1, 2) for x in (q_NQHD, k_NMHD, v_NMHD))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def cross_attention(block: CrossAttention, viewpoint_NLd: Tensor, image_NMd: Tensor) -> Tensor:
    """The update (N, L, d)."""
    q = head_norm(block.q_norm, block.lift(block.q(block.norm(viewpoint_NLd))))
    k = head_norm(block.k_norm, block.k(image_NMd).unflatten(-1, (block.heads, -1)))
    v = block.v(image_NMd).unflatten(-1, (block.heads, -1))
    return block.proj(block.lower(attend(q, k, v)))


def self_attention(block: SelfAttention, x_BTd: Tensor, cameras: CameraEncoding | None = None) -> Tensor:
    """The update (B, T, d)."""
    q, k, v = block.qkv(block.norm(x_BTd)).unflatten(-1, (3, block.heads, -1)).unbind(2)
    q, k = head_norm(block.q_norm, q), head_norm(block.k_norm, k)
    if cameras is None:
        return block.proj(attend(q, k, v).flatten(2))
    read = attend(cameras.queries(q), cameras.keys(k), cameras.keys(v))
    return block.proj(cameras.outputs(read).flatten(2))


def mlp(block: MLP, x_BTd: Tensor) -> Tensor:
    """The update (B, T, d)."""
    return block.fc2(F.gelu(block.fc1(block.norm(x_BTd))))


def update_layer(
    layer: UpdateLayer,
    viewpoint_BTd: Tensor,
    image_NMd: Tensor,
    subset: tuple[Tensor, Tensor] | None = None,
    cameras: CameraEncoding | None = None,
    *_: object,
) -> Tensor:
    """As ``UpdateLayer.forward``."""
    z = viewpoint_BTd
    if layer.reads:
        z_NLd = z.reshape(image_NMd.shape[0], -1, z.shape[-1])
        read = z_NLd if subset is None else z_NLd[:, subset[0]]
        read = read + cross_attention(layer.cross, read, image_NMd if subset is None else image_NMd[:, subset[1]])
        read = read + mlp(layer.cross_mlp, read)
        z = (read if subset is None else z_NLd.index_copy(1, subset[0], read.to(z_NLd.dtype))).reshape(z.shape)
    if layer.exchanges:
        z = z + self_attention(layer.self_attention, z, cameras)
        z = z + mlp(layer.self_mlp, z)
    return z


@contextmanager
def plainly(network: nn.Module) -> Iterator[None]:
    """The network's update layers are computed plainly while inside."""
    layers = [module for module in network.modules() if isinstance(module, UpdateLayer)]
    for layer in layers:
        layer.forward = partial(update_layer, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
