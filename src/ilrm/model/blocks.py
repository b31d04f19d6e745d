"""Update layers: each view's tokens read their own image, then all tokens talk to each other (paper section 3.2).

Shape suffixes: B batch, V views, N = B * V views in a batch, L viewpoint tokens of a view, M image tokens of a view,
T = V * L tokens of a sample, H heads, D channels of a head, k sub-queries of a token, d token width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ilrm.core.precision import without_autocast
from ilrm.model.camera_encoding import CameraEncoding
from ilrm.model.compute.attention import attend
from ilrm.model.compute.plan import Plan
from ilrm.model.config import AttentionName, ILRMConfig
from ilrm.model.tokens import LAYER_NORM_EPS

WHOLE = Plan()


class HeadNorm(nn.Module):
    """RMSNorm over the channels of a head, computed in fp32; one gain for all heads."""

    autocast_weights = ("weight",)

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(head_width))

    def forward(self, x_NLHD: Tensor) -> Tensor:
        weight = self.weight.to(x_NLHD.dtype)
        # Autocast would make the result fp32.
        with without_autocast(x_NLHD.device):
            if x_NLHD.device.type == "cpu" and x_NLHD.dtype != torch.float64 and not torch.is_grad_enabled():
                return _rms_norm_on_cpu(x_NLHD, weight)
            return F.rms_norm(x_NLHD, self.weight.shape, weight, LAYER_NORM_EPS)  # one kernel on a GPU


def _rms_norm_on_cpu(x: Tensor, weight: Tensor) -> Tensor:
    """``F.rms_norm`` in half of its time: there it is a chain of operations, each with memory of its own."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    scale = norm.square_().div_(x.shape[-1]).add_(LAYER_NORM_EPS).rsqrt_()
    y = x * scale if x.dtype == torch.float32 else x.float().mul_(scale)
    return y.mul_(weight.float()).to(x.dtype)


class CrossAttention(nn.Module):
    """Viewpoint tokens of a view read the image tokens of the same view, with token uplifting."""

    def __init__(self, config: ILRMConfig) -> None:
        super().__init__()
        d, self.uplift = config.width, config.uplift
        self.heads = d // config.head_width
        self.norm = nn.LayerNorm(d, eps=LAYER_NORM_EPS, bias=False)
        self.q = nn.Linear(d, d * self.uplift, bias=False)
        self.k = nn.Linear(d, d, bias=False)
        self.v = nn.Linear(d, d, bias=False)
        self.q_norm = HeadNorm(config.head_width)
        self.k_norm = HeadNorm(config.head_width)
        self.proj = nn.Linear(d * self.uplift, d, bias=False)

    def lift(self, q_NLc: Tensor) -> Tensor:
        """Split each token's query into k interleaved sub-queries: (N, L, k * d) -> (N, L * k, H, D).

        Within the block of k * D channels of a head, channel u * k + sub belongs to channel u of sub-query ``sub``.
        """
        q_NLHDk = q_NLc.unflatten(-1, (self.heads, -1, self.uplift))
        return q_NLHDk.permute(0, 1, 4, 2, 3).flatten(1, 2)

    def lower(self, x_NQHD: Tensor) -> Tensor:
        """The inverse of ``lift``: (N, L * k, H, D) -> (N, L, k * d)."""
        return x_NQHD.unflatten(1, (-1, self.uplift)).permute(0, 1, 3, 4, 2).flatten(2)

    def forward(self, viewpoint_NLd: Tensor, image_NMd: Tensor, kernel: AttentionName = "auto") -> Tensor:
        """The update (N, L, d); the image tokens are read as they are, without another norm."""
        q_NQHD = self.q_norm(self.lift(self.q(self.norm(viewpoint_NLd))))
        k_NMHD = self.k_norm(self.k(image_NMd).unflatten(-1, (self.heads, -1)))
        v_NMHD = self.v(image_NMd).unflatten(-1, (self.heads, -1))
        return self.proj(self.lower(attend(q_NQHD, k_NMHD, v_NMHD, kernel)))


class SelfAttention(nn.Module):
    """All viewpoint tokens of a sample, over all views, attend to each other."""

    def __init__(self, config: ILRMConfig) -> None:
        super().__init__()
        d = config.width
        self.heads = d // config.head_width
        self.norm = nn.LayerNorm(d, eps=LAYER_NORM_EPS, bias=False)
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.q_norm = HeadNorm(config.head_width)
        self.k_norm = HeadNorm(config.head_width)
        self.proj = nn.Linear(d, d, bias=False)

    def forward(self, x_BTd: Tensor, cameras: CameraEncoding | None = None, kernel: AttentionName = "auto") -> Tensor:
        q, k, v = self.qkv(self.norm(x_BTd)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k = self.q_norm(q), self.k_norm(k)
        if cameras is None:
            return self.proj(attend(q, k, v, kernel).flatten(2))
        read = attend(cameras.queries(q), cameras.keys(k), cameras.keys(v), kernel)
        return self.proj(cameras.outputs(read).flatten(2))


class MLP(nn.Module):
    """LayerNorm, Linear, exact GELU, Linear."""

    def __init__(self, config: ILRMConfig) -> None:
        super().__init__()
        d = config.width
        self.norm = nn.LayerNorm(d, eps=LAYER_NORM_EPS, bias=False)
        self.fc1 = nn.Linear(d, d * config.mlp_ratio, bias=False)
        self.fc2 = nn.Linear(d * config.mlp_ratio, d, bias=False)

    def forward(self, x_BTd: Tensor, rows: int | None = None) -> Tensor:
        """The update (B, T, d), some rows at a time; None is all at once."""

        def update(x_Rd: Tensor) -> Tensor:
            return self.fc2(F.gelu(self.fc1(self.norm(x_Rd))))

        return _in_parts(update, rows, x_BTd.flatten(0, 1)).unflatten(0, x_BTd.shape[:2])


class UpdateLayer(nn.Module):
    """One refinement step: read the image (per view), then exchange across views.

    Args:
        index: of the layer; the config may leave a block out of some layers (the paper's ablations).
    """

    def __init__(self, config: ILRMConfig, index: int) -> None:
        super().__init__()
        self.reads = config.cross_attention == "every" or index == 0
        self.exchanges = config.self_attention
        if self.reads:
            self.cross = CrossAttention(config)
            self.cross_mlp = MLP(config)
        if self.exchanges:
            self.self_attention = SelfAttention(config)
            self.self_mlp = MLP(config)

    def read(self, viewpoint_NLd: Tensor, image_NMd: Tensor, plan: Plan = WHOLE) -> Tensor:
        """Cross-attention block on the tokens of N views, each with its own image."""

        def update(z: Tensor, s: Tensor) -> Tensor:
            z = z + self.cross(z, s, plan.read)
            return z + self.cross_mlp(z, plan.rows)

        return _in_parts(update, plan.views, viewpoint_NLd, image_NMd)

    def exchange(self, viewpoint_BTd: Tensor, cameras: CameraEncoding | None = None, plan: Plan = WHOLE) -> Tensor:
        """Self-attention block over all views."""
        z = viewpoint_BTd + self.self_attention(viewpoint_BTd, cameras, plan.exchange)
        return z + self.self_mlp(z, plan.rows)

    def forward(
        self,
        viewpoint_BTd: Tensor,
        image_NMd: Tensor,
        subset: tuple[Tensor, Tensor] | None = None,
        cameras: CameraEncoding | None = None,
        plan: Plan = WHOLE,
    ) -> Tensor:
        """Refined tokens (B, T, d).

        Args:
            subset: for mini-batch cross-attention, which viewpoint tokens (of L) and which image tokens (of M) this
                layer works on; only those viewpoint tokens are updated by its cross-attention block.
            cameras: for relative camera encoding in self-attention.
            plan: in what parts and by which kernels.
        """
        if self.reads:
            viewpoint_BTd = self.read_subset(viewpoint_BTd, image_NMd, subset, plan)
        return self.exchange(viewpoint_BTd, cameras, plan) if self.exchanges else viewpoint_BTd

    def read_subset(
        self, viewpoint_BTd: Tensor, image_NMd: Tensor, subset: tuple[Tensor, Tensor] | None, plan: Plan = WHOLE
    ) -> Tensor:
        """Cross-attention block of all tokens, or of those in the layer's mini-batch."""
        N = image_NMd.shape[0]
        z_NLd = viewpoint_BTd.reshape(N, -1, viewpoint_BTd.shape[-1])
        if subset is None:
            z_NLd = self.read(z_NLd, image_NMd, plan)
        else:
            chosen_l, chosen_m = subset
            updated = self.read(z_NLd[:, chosen_l], image_NMd[:, chosen_m], plan)
            z_NLd = z_NLd.index_copy(1, chosen_l, updated.to(z_NLd.dtype))
        return z_NLd.reshape(viewpoint_BTd.shape)


def _in_parts(function: Callable[..., Tensor], size: int | None, *inputs: Tensor) -> Tensor:
    """``function`` on slices of the first dimension; None is all at once."""
    if size is None or inputs[0].shape[0] <= size:
        return function(*inputs)
    return torch.cat([function(*parts) for parts in zip(*(x.split(size) for x in inputs), strict=True)])
