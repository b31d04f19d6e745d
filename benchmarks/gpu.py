"""Every figure of the GPU path in one run of at most four minutes, as JSON with card, versions and commit.

    python benchmarks/gpu.py -o gpu.json            # on a GPU
    python benchmarks/gpu.py -o cpu.json --small    # the same script in small form, on any machine

Times are medians after a warm-up, with the device waited for. Weights are random: time does not depend on their values.
If a part fails, the report has its error, and the other parts go on. "busy" is the share of the wall time in which
kernels run, from torch's profiler.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import nn

from ilrm.core.cameras import Cameras
from ilrm.core.gaussians import Gaussians
from ilrm.core.precision import autocast, has_bf16
from ilrm.core.scene import Scene
from ilrm.datasets.procedural import ProceduralConfig
from ilrm.datasets.procedural.batch import make_batch
from ilrm.model import ILRM, ILRMConfig
from ilrm.model.compute.attention import known_kernels
from ilrm.pipeline.refine import RefineConfig, refine
from ilrm.render import render
from ilrm.render.comparison import compare
from ilrm.train.config import FeedbackTraining, OptimiserConfig, Procedural, Spread, Stage, TrainConfig
from ilrm.train.data.batch import Batch
from ilrm.train.distributed import launch
from ilrm.train.log import StepRecord
from ilrm.train.losses import losses
from ilrm.train.optim import freeze_base, make_optimiser
from ilrm.train.presets import preset
from ilrm.train.run import Run


@dataclass(frozen=True)
class Arguments:
    """Measure everything that runs on a GPU."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """JSON file to write; it is written again after every part."""
    small: bool = False
    """Small sizes, on the CPU too: the script's own check."""
    parts: tuple[str, ...] = ()
    """Some of the parts by name; all by default."""
    minutes: float = 4.0
    """No part begins after this."""
    commit: str | None = None
    """Of the code, where it is no repository."""


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
        for _ in range(2 if self.small else repeats):
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


def views_of(count: int, height: int, width: int, bench: Bench) -> tuple[torch.Tensor, ...]:
    c2w = torch.eye(4, device=bench.device).repeat(1, count, 1, 1)
    c2w[0, :, 0, 3] = torch.linspace(-1, 1, count, device=bench.device)
    K = torch.tensor([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]], device=bench.device)
    images = torch.rand(1, count, height, width, 3, device=bench.device)
    return images, c2w, K.expand(1, count, 3, 3)


def inference_network(config: ILRMConfig, bench: Bench) -> ILRM:
    model = random_network(config, bench)
    return model.cast_weights() if bench.precision == "bf16" else model


def released(bench: Bench) -> tuple[ILRMConfig, ILRMConfig]:
    """The two released layouts; the small form has two of their layers."""
    both = ILRMConfig.released_two_view(), ILRMConfig.released_wide()
    return tuple(replace(config, layers=2) for config in both) if bench.small else both  # type: ignore[return-value]


def encode(bench: Bench) -> dict[str, Any]:
    """The paper's settings: (views, resolution of viewpoints, of images)."""
    main, wide = released(bench)
    settings = {
        "(2,F,F) 256": (main, 2, 256, 256),
        "(4,H,F) 256": (wide, 4, 256, 256),
        "(8,H,F) 256": (wide, 8, 256, 256),
        "(16,H,F) 544x960": (wide, 16, 544, 960),
        "(32,H,F) 544x960": (wide, 32, 544, 960),
        "(64,H,F) 544x960": (wide, 64, 544, 960),
    }
    if bench.small:
        settings = {"(2,F,F) 64": (main, 2, 64, 64), "(4,H,F) 64": (wide, 4, 64, 64)}
    found: dict[str, Any] = {}
    models: dict[int, ILRM] = {}
    for name, (config, views, height, width) in settings.items():
        if id(config) not in models:
            models[id(config)] = inference_network(config, bench)
        model = models[id(config)]
        inputs = views_of(views, height, width, bench)
        bench.forget_peak()

        def work(model: ILRM = model, inputs: tuple[torch.Tensor, ...] = inputs) -> object:
            with torch.inference_mode(), autocast(bench.precision, bench.device):
                return model(*inputs)

        large = height > 300
        seconds = bench.seconds(work, repeats=3 if large else 10, warm=1 if large else 3)
        found[name] = {"ms": 1e3 * seconds, "peak_gib": bench.peak_gib()}
        if not large or views == 32:
            found[name] |= bench.profile(work)
    found["attention"] = {
        f"{shape.sequences} x {shape.queries} x {shape.keys}": kernel for shape, kernel in known_kernels().items()
    }
    return found


def compiled(bench: Bench) -> dict[str, Any]:
    """The settings that launching dominates and a large one, compiled; the small form only traces."""
    (main, wide), found = released(bench), {}
    settings = {
        "(2,F,F) 256": (main, 2, 256, 256),
        "(4,H,F) 256": (wide, 4, 256, 256),
        "(8,H,F) 256": (wide, 8, 256, 256),
        "(32,H,F) 544x960": (wide, 32, 544, 960),
    }
    if bench.small:
        settings = {"(2,F,F) 64": (main, 2, 64, 64)}
    for name, (config, views, height, width) in settings.items():
        model = inference_network(config, bench)
        inputs = views_of(views, height, width, bench)

        def work(model: ILRM = model, inputs: tuple[torch.Tensor, ...] = inputs) -> Gaussians:
            with torch.no_grad(), autocast(bench.precision, bench.device):
                return model(*inputs)

        plain = work().means
        model.compile(backend="eager" if bench.small else "inductor")
        begun = time.perf_counter()
        apart = (work().means - plain).norm(dim=-1) / plain.norm(dim=-1)
        bench.wait()
        found[name] = {"first_s": time.perf_counter() - begun, "median_difference": apart.median().item()}
        bench.forget_peak()
        repeats, warm = (20, 5) if height < 300 else (3, 1)
        found[name] |= {"ms": 1e3 * bench.seconds(work, repeats, warm), "peak_gib": bench.peak_gib()}
        found[name] |= bench.profile(work)
    return found


def matrix_rate(bench: Bench) -> dict[str, Any]:
    """The card's matrix multiplication speed."""
    side = 1024 if bench.small else 8192
    dtype = torch.bfloat16 if bench.precision == "bf16" else torch.float32
    a, b = (torch.rand(side, side, device=bench.device, dtype=dtype) for _ in range(2))
    return {"tflops": 2 * side**3 / bench.seconds(lambda: a @ b) / 1e12, "dtype": str(dtype)}


def matching(bench: Bench) -> dict[str, Any]:
    """Plane sweep and cross-checks of the shipped network's kind."""
    config = preset("synthetic-small").model
    assert config.matching is not None
    batch, views, side = (1, 3, 64) if bench.small else (4, 8, 128)
    images, c2w, K = views_of(views, side, side, bench)
    images, c2w, K = (x.expand(batch, *x.shape[1:]).contiguous() for x in (images, c2w, K))
    network = random_network(config, bench)

    def work() -> object:
        with torch.inference_mode():
            return network.decoder_inputs(images, c2w, K, None)

    return {"ms": 1e3 * bench.seconds(work), **bench.profile(work)}


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


def batch_of(scenes: int, inputs: int, targets: int, side: int, bench: Bench) -> Batch:
    config = ProceduralConfig(views=inputs + targets, width=side, height=side)
    made = [make_batch([seed], config, bench.device) for seed in range(min(scenes, 4))]
    every = [made[i % len(made)] for i in range(scenes)]
    tensors = (torch.cat([getattr(one, name) for one in every]) for name in ("images", "c2w", "K", "depth"))
    images, c2w, K, depth = tensors
    return Batch(images, c2w, K, inputs=inputs, names=("",) * scenes, depth=depth)


def feedback(bench: Bench) -> dict[str, Any]:
    """Reconstructing with feedback iterations, all kept in this measurement, and one comparison alone."""
    config = preset("synthetic-feedback").model
    model = inference_network(config, bench).train()
    found: dict[str, Any] = {}
    for views, side in ((2, 64),) if bench.small else ((8, 256), (12, 256)):
        inputs = views_of(views, side, side, bench)

        def work(iterations: int, inputs: tuple[torch.Tensor, ...] = inputs) -> Gaussians:
            with torch.no_grad(), autocast(bench.precision, bench.device):
                return model(*inputs, feedback=iterations)

        made, cameras = work(0), Cameras(inputs[1], inputs[2], side, side)
        bench.forget_peak()
        found[f"{views} x {side}"] = {
            "compare_ms": 1e3 * bench.seconds(lambda made=made, c=cameras, x=inputs[0]: compare(made, c, x)),
            **{f"{count} iterations_ms": 1e3 * bench.seconds(partial(work, count)) for count in (0, 1, 3)},
            "peak_gib": bench.peak_gib(),
            **bench.profile(partial(work, 3)),
        }
    return found


def training_step(bench: Bench) -> dict[str, Any]:
    """Forward, losses, backward and optimiser of ``synthetic-small``, with the data in memory."""
    return _steps_in_memory(preset("synthetic-small"), (6, 24, 48), bench)


def feedback_step(bench: Bench) -> dict[str, Any]:
    """The same of ``synthetic-feedback``, three iterations."""
    config = preset("synthetic-feedback")
    return _steps_in_memory(replace(config, feedback=FeedbackTraining(iterations=(3, 3))), (8, 24), bench)


def _steps_in_memory(config: TrainConfig, sizes: tuple[int, ...], bench: Bench) -> dict[str, Any]:
    sizes = (1,) if bench.small else sizes
    inputs, targets, side = (2, 1, 64) if bench.small else (8, 4, 128)
    torch.manual_seed(0)
    model = ILRM(config.model).to(bench.device)
    freeze_base(model, config.base_rate)
    optimiser = make_optimiser(model, OptimiserConfig(), config.base_rate, fused=bench.device.type == "cuda")
    found = {}
    for size in sizes:
        batch = batch_of(size, inputs, targets, side, bench)
        bench.forget_peak()

        def work(batch: Batch = batch) -> None:
            options = {"model_config": config.model, "precision": bench.precision, "feedback": config.feedback}
            losses(model, batch, config.loss, 0, **options).total.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

        seconds = bench.seconds(work, repeats=3)
        found[f"batch {size}"] = {
            "ms": 1e3 * seconds,
            "scenes_per_s": size / seconds,
            "peak_gib": bench.peak_gib(),
            **bench.profile(work),
        }
    return found


def training_run(bench: Bench) -> dict[str, Any]:
    """Training as ``ilrm train`` does it, procedural worlds made on the way; without validation and saving."""
    workers, batch, steps = (1, 1, 2) if bench.small else (max(2, (os.cpu_count() or 2) - 2), 24, 40)
    inputs, targets, side = (2, 1, 64) if bench.small else (8, 4, 128)
    source = Procedural(ProceduralConfig(baseline=(0.1, 1.5)))
    stage = Stage((side, side), batch, Spread(inputs=(inputs,), targets=targets), (source,), flip=False)
    config = preset("synthetic-small")
    config = replace(config, stages=(stage,), validation=None, precision=bench.precision, steps=10**6)
    found: dict[str, Any] = {"batch": batch, "side": side, "views": inputs + targets}
    for count in (workers,) if bench.small else (workers, 0):
        with launch(1, 1, "auto") as fabric, tempfile.TemporaryDirectory() as folder:
            run = Run(fabric, replace(config, workers=count), Path(folder), None)
            with closing(run):
                found[f"{count} workers"] = _steps_of(run, 1 if bench.small else 10, steps, bench)
    return found


def _steps_of(run: Run, warm: int, steps: int, bench: Bench) -> dict[str, Any]:
    def take(count: int) -> list[StepRecord]:
        for _ in range(count):
            run.step()
        return run.read()

    run.open()
    take(warm)
    bench.forget_peak()
    begun = time.perf_counter()
    records = take(steps)
    seconds = time.perf_counter() - begun
    return {
        "scenes_per_s": steps * run.config.stages[0].batch / seconds,
        "data_wait": statistics.mean(record.data_wait for record in records),
        "peak_gib": bench.peak_gib(),
        **bench.profile(partial(take, 3)),
    }


def transfer(bench: Bench) -> dict[str, Any]:
    """The shipped network, CPU against device."""
    from ilrm.model.reconstruct import reconstruct

    model = ILRM.from_pretrained("ilrm-small")
    made = make_batch([5], ProceduralConfig(views=3, width=64, height=64))
    cameras = Cameras(made.c2w[0], made.K[0], 64, 64)
    scene = Scene(made.images[0], cameras, ("a", "b", "c"))
    expected, found = reconstruct(scene, model, precision="fp32"), {}
    model = model.to(bench.device)
    for precision in ("fp32", "bf16") if bench.precision == "bf16" else ("fp32",):
        ours = reconstruct(scene, model, precision=precision)  # type: ignore[arg-type]
        apart = (ours.means.cpu() - expected.means).norm(dim=-1) / expected.means.norm(dim=-1).mean()
        found[precision] = {"median_of_centres": apart.median().item()}
    return found


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "matrix_rate": matrix_rate,
    "transfer": transfer,
    "rasteriser": rasteriser,
    "encode": encode,
    "matching": matching,
    "procedural": procedural,
    "training_step": training_step,
    "training_run": training_run,
    "feedback": feedback,
    "feedback_step": feedback_step,
    "refinement": refinement,
    "compiled": compiled,
}


def about(bench: Bench, given: str | None) -> dict[str, Any]:
    """Card, versions and commit."""
    folder = Path(__file__).resolve().parent
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    cuda = bench.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "gsplat": _version("gsplat"),
        "python": platform.python_version(),
        "commit": given or commit.stdout.strip() or None,
        "precision": bench.precision,
        "small": bench.small,
    }


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _chosen(parts: tuple[str, ...]) -> Iterator[tuple[str, Callable[[Bench], dict[str, Any]]]]:
    if unknown := sorted(set(parts) - set(PARTS)):
        sys.exit(f"There are no parts {', '.join(unknown)}. There are: {', '.join(PARTS)}")
    return ((name, part) for name, part in PARTS.items() if not parts or name in parts)


def main(arguments: Arguments) -> int:
    bench = Bench(arguments.small)
    report: dict[str, Any] = {"about": about(bench, arguments.commit), "seconds": {}, "parts": {}}
    started, failed = time.monotonic(), 0
    for name, part in _chosen(arguments.parts):
        if time.monotonic() - started > 60 * arguments.minutes:
            report["parts"][name] = {"left_out": "no time was left"}
            continue
        begun = time.monotonic()
        try:
            report["parts"][name] = part(bench)
        except Exception as error:
            failed += 1
            report["parts"][name] = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        report["seconds"][name] = round(time.monotonic() - begun, 2)
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
        print(name, report["seconds"][name], "s", json.dumps(report["parts"][name])[:200], flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, config=(tyro.conf.FlagCreatePairsOff,))))
