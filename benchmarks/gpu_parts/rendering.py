"""The rasteriser, refinement, procedural scenes, and the card's own speed."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from gpu_parts.bench import Bench, cloud, ring
from ilrm.core.scene import Scene
from ilrm.datasets.procedural import ProceduralConfig
from ilrm.datasets.procedural.batch import make_batch
from ilrm.pipeline.refine import RefineConfig, refine
from ilrm.render import render


def matrix_rate(bench: Bench) -> dict[str, Any]:
    """The card's matrix multiplication speed."""
    side = 1024 if bench.small else 8192
    dtype = torch.bfloat16 if bench.precision == "bf16" else torch.float32
    a, b = (torch.rand(side, side, device=bench.device, dtype=dtype) for _ in range(2))
    return {"tflops": 2 * side**3 / bench.seconds(lambda: a @ b) / 1e12, "dtype": str(dtype)}


def rasteriser(bench: Bench) -> dict[str, Any]:
    """Against the reference, and its speed with gradients."""
    gaussians, cameras = cloud(300, bench, 0.05), ring(2, 40, bench)
    fast, slow = render(gaussians, cameras), render(gaussians.to(dtype=torch.float64), cameras, backend="reference")
    apart = {name: (getattr(fast, name) - getattr(slow, name)).abs().max().item() for name in ("rgb", "alpha", "depth")}
    many, views = cloud(2_000 if bench.small else 131_072, bench), ring(2, 64 if bench.small else 256, bench)
    leaf = many.means.clone().requires_grad_()
    moved = replace(many, means=leaf)
    with torch.no_grad():
        forward = bench.seconds(lambda: render(many, views))
    both = bench.seconds(lambda: render(moved, views).rgb.sum().backward())
    return {"largest_difference": apart, "forward_ms": 1e3 * forward, "forward_backward_ms": 1e3 * both}


def refinement(bench: Bench) -> dict[str, Any]:
    """Steps per second of ``refine``."""
    sizes = {
        "12k Gaussians, 3 views of 128 px": (12_000, 3, 128),
        "131k Gaussians, 2 views of 256 px": (131_072, 2, 256),
    }
    if bench.small:
        sizes = {"1k Gaussians, 2 x 32 px": (1000, 2, 32)}
    steps, found = (5 if bench.small else 150), {}
    for name, (count, views, side) in sizes.items():
        truth, cameras = cloud(count, bench), ring(views, side, bench)
        with torch.no_grad():
            photos = Scene(render(truth, cameras).rgb.clamp(0, 1), cameras, tuple(map(str, range(views))))
        start = replace(truth, sh=truth.sh + 0.1)
        config = RefineConfig.long()
        refine(start, photos, 2, config=config)
        bench.wait()
        begun = time.perf_counter()
        refine(start, photos, steps, config=config)
        bench.wait()
        found[name] = {"steps_per_s": steps / (time.perf_counter() - begun)}
        found[name] |= bench.profile(partial(refine, start, photos, 3, config=config))
    return found


def procedural(bench: Bench) -> dict[str, Any]:
    """Scenes per second, including making the worlds, and the device's images compared with the CPU's."""
    config = ProceduralConfig(views=4, width=48, height=48)
    here, there = make_batch([0, 1], config), make_batch([0, 1], config, bench.device)
    count = 2 if bench.small else 24
    large = replace(config, views=4, width=48, height=48) if bench.small else ProceduralConfig(views=12)
    seconds = bench.seconds(lambda: make_batch(range(count), large, bench.device), repeats=2, warm=1)
    return {
        "mean_difference": (there.images.cpu() - here.images).abs().mean().item(),
        "scenes_per_s": count / seconds,
        "views": large.views,
        "side": large.width,
    }
