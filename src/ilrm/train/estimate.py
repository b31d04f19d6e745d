"""What a run will need, before it starts: parameters, tokens, memory, and a lower bound of its time.

Matrix products, convolutions and attention are counted, and the tensors that autograd keeps are added up, by running
the network on tensors without storage, so that no formula has to follow the network's options. Time is those
operations at the speed of a plain matrix product measured now, plus renderings measured now. It leaves out norms,
activations, the optimiser, communication and waiting for data. Memory is parameters, gradients, optimiser moments,
averaged weights and what autograd keeps of the networks; it leaves out the renderer's lists, the libraries' own work
space and fragmentation.

How far off: on one core of a busy AMD EPYC, forward and backward passes took 1.5 times the bound for ``smoke``, and for
the first stage of ``synthetic-small`` 1.7 times in fp32 and 3.8 times in bf16, where this CPU multiplies plain matrices
five times as fast but does the rest no faster. Operations and kept bytes were those of the real pass. The memory of a
process and the time on a GPU were not compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from ilrm.core.cameras import Cameras
from ilrm.core.gaussians import Gaussians
from ilrm.core.precision import autocast
from ilrm.model import ILRM, ILRMConfig, mini_batch
from ilrm.render import render
from ilrm.train.config import Bounded, BoundedV2, Stage, TrainConfig
from ilrm.train.perceptual import LPIPS, VGGDistance

Precision = Literal["fp32", "bf16"]

# The update layers are alike from the second on: what more of them cost is extrapolated from these counts.
_FEW_LAYERS = (2, 3)
_MATMUL_SIDE = 1024
_MEASURED_GAUSSIANS = 1 << 15


def _attention(q: Sequence[int], k: Sequence[int], *_: Any, **__: Any) -> int:
    """Of queries (N, H, Q, D) and keys (N, H, K, D): two products."""
    return 4 * prod(q) * k[-2]


def _attention_backward(_: Sequence[int], q: Sequence[int], k: Sequence[int], *__: Any, **___: Any) -> int:
    """Five products, one of them again the scores."""
    return 10 * prod(q) * k[-2]


# torch's counter knows fused attention on CUDA only.
ATTENTION_FLOPS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


@dataclass(frozen=True)
class Count:
    """Floating-point operations (a multiplication and an addition are two) and bytes that autograd keeps."""

    forward: float
    both: float
    kept: float

    def __add__(self, other: Count) -> Count:
        return Count(self.forward + other.forward, self.both + other.both, self.kept + other.kept)

    def __sub__(self, other: Count) -> Count:
        return self + other.times(-1)

    def times(self, factor: float) -> Count:
        return Count(self.forward * factor, self.both * factor, self.kept * factor)


@dataclass(frozen=True)
class StageEstimate:
    """One stage of a run, with the most input views that its sampler draws.

    Attributes:
        inputs, targets: views of a sample.
        samples: of one part of a step on one rank.
        viewpoint_tokens, image_tokens, gaussians: of a sample.
        flops: of one optimiser step on one rank.
        activation_bytes: kept for the backward pass of one part.
        render_seconds: of one optimiser step on one rank, within ``seconds``.
        seconds: lower bound of one optimiser step.
        steps: optimiser steps of the stage.
    """

    inputs: int
    targets: int
    samples: int
    viewpoint_tokens: int
    image_tokens: int
    gaussians: int
    flops: float
    activation_bytes: float
    render_seconds: float
    seconds: float
    steps: int


@dataclass(frozen=True)
class Estimate:
    """A whole run on one rank.

    Attributes:
        parameters: learned values.
        state_bytes: parameters, gradients, two moments and averaged weights, all fp32 and not sharded.
        flops_per_second: of a matrix product in the run's precision on this device, measured.
        stages: in their order.
    """

    parameters: int
    state_bytes: int
    flops_per_second: float
    stages: tuple[StageEstimate, ...]

    @property
    def memory_bytes(self) -> float:
        """State and the largest stage's activations."""
        return self.state_bytes + max(stage.activation_bytes for stage in self.stages)

    @property
    def seconds(self) -> float:
        """Lower bound of the whole run."""
        return sum(stage.steps * stage.seconds for stage in self.stages)


def estimate(config: TrainConfig, *, device: torch.device | str = "cpu", world_size: int = 1) -> Estimate:
    """What a run of this config needs on ``device``, as one of ``world_size`` ranks. Takes some seconds."""
    device = torch.device(device)
    with torch.device("meta"):
        parameters = ILRM(config.model).parameter_count()
    copies = 4 + (config.optimiser.ema > 0)
    speed = matmul_flops(config.precision, device)
    ends = [*(stage.start for stage in config.stages[1:]), config.steps]
    stages = [
        _stage(config, stage, max(0, min(end, config.steps) - stage.start), device, world_size, speed)
        for stage, end in zip(config.stages, ends, strict=True)
    ]
    return Estimate(parameters, 4 * copies * parameters, speed, tuple(stages))


def _stage(
    config: TrainConfig, stage: Stage, steps: int, device: torch.device, world_size: int, speed: float
) -> StageEstimate:
    inputs, targets = _views(stage)
    samples = -(-stage.batch // (world_size * config.accumulate))
    height, width = stage.size
    part = count_network(config.model, samples, inputs, stage.size, config.precision)
    if config.loss.perceptual is not None and config.loss.perceptual_weight > 0:
        part += _count_perceptual(config, samples * targets, stage.size)
    gaussians = inputs * height * width // config.model.viewpoint_factor**2
    renders = targets * (config.model.layers if config.loss.iterations > 0 else 1)
    rendering = config.accumulate * samples * renders * render_seconds(gaussians, stage.size, device)
    flops = config.accumulate * part.both
    reduced = config.model.patch_size * config.model.image_factor
    return StageEstimate(
        inputs=inputs,
        targets=targets,
        samples=samples,
        viewpoint_tokens=gaussians // config.model.patch_size**2,
        image_tokens=inputs * height * width // reduced**2,
        gaussians=gaussians,
        flops=flops,
        activation_bytes=part.kept,
        render_seconds=rendering,
        seconds=flops / speed + rendering,
        steps=steps,
    )


def _views(stage: Stage) -> tuple[int, int]:
    """The most inputs, and the targets, of a sample."""
    sampler = stage.sampler
    if isinstance(sampler, Bounded):
        return sampler.inputs, sampler.targets
    if isinstance(sampler, BoundedV2):
        return sampler.inputs[1], sampler.targets
    return max(sampler.inputs), sampler.targets


# --- counted --------------------------------------------------------------------------------------------------------


def count_network(config: ILRMConfig, samples: int, views: int, size: tuple[int, int], precision: Precision) -> Count:
    """Operations and kept bytes of one forward and backward pass of the network."""
    fewer, more = (_count_few_layers(config, n, samples, views, size, precision) for n in _FEW_LAYERS)
    layer = more - fewer
    ends = fewer - layer.times(_FEW_LAYERS[0])
    if not config.checkpoint:
        return ends + layer.times(config.layers)
    # Recomputed layers: a third pass (torch skips only its last product), one layer's tensors at a time, and the
    # tokens between all of them.
    tokens = views * (size[0] // config.size_multiple) * (size[1] // config.size_multiple)
    between = 4.0 * samples * tokens * config.width
    recomputed = Count(layer.forward, layer.both + layer.forward, between)
    return ends + recomputed.times(config.layers) + Count(0, 0, layer.kept)


def _count_few_layers(
    config: ILRMConfig, layers: int, samples: int, views: int, size: tuple[int, int], precision: Precision
) -> Count:
    few = replace(config, layers=layers, checkpoint=False, mini_batch="none")
    subsets = _subsets(config, layers, size)
    with FakeTensorMode():
        model = ILRM(few).train()
        for layer, lengths in zip(model.layers, subsets, strict=True):
            if lengths is not None:
                chosen = tuple(torch.zeros(length, dtype=torch.long) for length in lengths)
                layer.register_forward_pre_hook(lambda _, given, chosen=chosen: (*given[:2], chosen, *given[3:]))
        images = torch.zeros(samples, views, *size, 3)
        c2w, K = torch.zeros(samples, views, 4, 4), torch.zeros(samples, views, 3, 3)

        def forward() -> Tensor:
            with autocast(precision, torch.device("cpu")):
                made: Gaussians = model(images, c2w, K)
            return torch.cat(
                [x.flatten() for x in (made.means, made.scales, made.quats, made.opacities, made.sh)]
            ).sum()

        return _count(forward, model)


def _subsets(config: ILRMConfig, layers: int, size: tuple[int, int]) -> list[tuple[int, int] | None]:
    """How many viewpoint and image tokens of a view each layer works on in mini-batch cross-attention; None: all."""
    rows, columns = (side // config.size_multiple for side in size)
    finer = config.viewpoint_factor // config.image_factor
    found = [
        mini_batch.subset(config.mini_batch, i, rows, columns, finer, training=False, device=torch.device("cpu"))
        for i in range(layers)
    ]
    return [None if chosen is None else (len(chosen[0]), len(chosen[1])) for chosen in found]


def _count_perceptual(config: TrainConfig, images: int, size: tuple[int, int]) -> Count:
    with FakeTensorMode():
        distance = LPIPS() if config.loss.perceptual == "lpips" else VGGDistance()
        rendered, truth = torch.zeros(images, *size, 3, requires_grad=True), torch.zeros(images, *size, 3)

        def forward() -> Tensor:
            with autocast(config.precision, torch.device("cpu")):
                return distance(rendered, truth).mean()

        return _count(forward, distance)


def _count(forward: Callable[[], Tensor], model: nn.Module) -> Count:
    """Run ``forward`` and its backward pass on tensors without storage."""
    own = {id(x.untyped_storage()) for x in [*model.parameters(), *model.buffers()]}
    kept: dict[int, Any] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if id(storage) not in own:
            kept[id(storage)] = storage
        return x

    with FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS) as counter:
        with saved_tensors_hooks(keep, lambda x: x):
            loss = forward()
        there = counter.get_total_flops()
        loss.backward()
    return Count(there, counter.get_total_flops(), sum(storage.nbytes() for storage in kept.values()))


# --- measured -------------------------------------------------------------------------------------------------------


def matmul_flops(precision: Precision, device: torch.device) -> float:
    """Operations per second of a plain matrix product."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.ones(_MATMUL_SIDE, _MATMUL_SIDE, dtype=dtype, device=device)
    return 2 * _MATMUL_SIDE**3 / _seconds(lambda: a @ a, device)


def render_seconds(gaussians: int, size: tuple[int, int], device: torch.device) -> float:
    """Seconds of one rendered view with its gradient, of Gaussians that cover it as an untrained network's do."""
    count = min(gaussians, _MEASURED_GAUSSIANS)
    height, width = size
    generator = torch.Generator().manual_seed(0)
    spread = 2 * torch.rand(count, 3, generator=generator) - 1
    means = spread + torch.tensor([0.0, 0.0, 2.5])
    side = (height * width / gaussians) ** 0.5  # pixels apart where all views look at the same surface
    made = Gaussians(
        means=means.to(device).requires_grad_(),
        scales=torch.full((count, 3), 2.5 * side / max(size), device=device),
        quats=torch.tensor([1.0, 0, 0, 0], device=device).expand(count, 4),
        opacities=torch.full((count,), 0.5, device=device),
        sh=torch.zeros(count, 1, 3, device=device),
    )
    K = torch.tensor([[max(size), 0, width / 2], [0, max(size), height / 2], [0, 0, 1.0]], device=device)
    cameras = Cameras(torch.eye(4, device=device)[None], K[None], width, height)

    def once() -> None:
        render(made, cameras).rgb.sum().backward()

    return _seconds(once, device) * gaussians / count


def _seconds(run: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Median time of a call after one to warm up."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else nullcontext
    run()
    times = []
    for _ in range(repeats):
        synchronise()
        start = time.perf_counter()
        run()
        synchronise()
        times.append(time.perf_counter() - start)
    return sorted(times)[repeats // 2]
