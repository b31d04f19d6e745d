"""The device, how time is taken, and what several parts measure with: networks, photos, Gaussians and cameras."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ilrm.core.cameras import Cameras
from ilrm.core.gaussians import Gaussians
from ilrm.core.precision import has_bf16
from ilrm.model import ILRM, ILRMConfig


class Bench:
    """The device, the sizes, and how time is taken."""

    def __init__(self, small: bool) -> None:
        self.small = small
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.precision = "bf16" if has_bf16(self.device) and not small else "fp32"

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], repeats: int = 5, warm: int = 2) -> float:
        for _ in range(1 if self.small else warm):
            work()
        taken = []
        for _ in range(1 if self.small else repeats):
            self.wait()
            begun = time.perf_counter()
            work()
            self.wait()
            taken.append(time.perf_counter() - begun)
        return statistics.median(taken)

    def peak_gib(self) -> float | None:
        return torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else None

    def forget_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def profile(self, work: Callable[[], object]) -> dict[str, Any]:
        """Kernel milliseconds by name, the ten longest, and the share of the time in which any runs."""
        if self.device.type != "cuda":
            return {}
        work()
        self.wait()
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as record:
            begun = time.perf_counter()
            work()
            self.wait()
            wall = time.perf_counter() - begun
        kernels = [(e.key, e.self_device_time_total / 1e3, e.count) for e in record.key_averages()]
        kernels.sort(key=lambda kernel: -kernel[1])
        return {
            "busy": sum(k[1] for k in kernels) / 1e3 / wall,
            "launches": sum(k[2] for k in kernels),
            "kernels_ms": {name[:80]: round(ms, 3) for name, ms, _ in kernels[:10]},
        }


def random_network(config: ILRMConfig, bench: Bench) -> ILRM:
    with torch.device("meta"):
        model = ILRM(config)
    model = model.to_empty(device=bench.device).eval()
    generator = torch.Generator(device=bench.device).manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02, generator=generator)
    return model


def inference_network(config: ILRMConfig, bench: Bench) -> ILRM:
    model = random_network(config, bench)
    return model.cast_weights() if bench.precision == "bf16" else model


def views_of(count: int, height: int, width: int, bench: Bench) -> tuple[torch.Tensor, ...]:
    c2w = torch.eye(4, device=bench.device).repeat(1, count, 1, 1)
    c2w[0, :, 0, 3] = torch.linspace(-1, 1, count, device=bench.device)
    K = torch.tensor([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]], device=bench.device)
    images = torch.rand(1, count, height, width, 3, device=bench.device)
    return images, c2w, K.expand(1, count, 3, 3)


def cloud(count: int, bench: Bench, scale: float = 0.02) -> Gaussians:
    generator = torch.Generator().manual_seed(0)
    return Gaussians(
        means=torch.randn(count, 3, generator=generator),
        scales=scale * torch.exp(0.3 * torch.randn(count, 3, generator=generator)),
        quats=torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=-1),
        opacities=0.8 * torch.rand(count, generator=generator),
        sh=0.3 * torch.randn(count, 1, 3, generator=generator),
    ).to(bench.device)


def ring(views: int, side: int, bench: Bench) -> Cameras:
    """Cameras on an arc that look at the origin from four units away."""
    angle = torch.linspace(-0.8, 0.8, views)
    c2w = torch.eye(4).repeat(views, 1, 1)
    c2w[:, 0, 0], c2w[:, 0, 2], c2w[:, 2, 0], c2w[:, 2, 2] = angle.cos(), -angle.sin(), angle.sin(), angle.cos()
    c2w[:, :3, 3] = -4 * c2w[:, :3, 2]
    K = torch.tensor([[side, 0, side / 2], [0, side, side / 2], [0, 0, 1.0]]).repeat(views, 1, 1)
    return Cameras(c2w, K, side, side).to(bench.device)
