"""The estimate beside a real pass: same operations, same kept bytes; time as a lower bound."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ilrm.core.precision import autocast
from ilrm.model import ILRM, FootprintDecoder, ILRMConfig, MatchingConfig
from ilrm.train.config import LossConfig
from ilrm.train.estimate import ATTENTION_FLOPS, Count, Estimate, count_network, estimate, matmul_flops, render_seconds
from ilrm.train.presets import preset

SMALL = ILRMConfig(width=32, head_width=16, layers=5, patch_size=4)
MATCHED = replace(
    SMALL,
    decoder=FootprintDecoder(),
    matching=MatchingConfig(planes=4, sources=2, window=3),
    image_channels=("rgb", "moment", "direction", "match"),
)
LARGER = ILRMConfig(width=512, layers=2)
SAMPLES, VIEWS, SIZE = 2, 3, (32, 48)


def real_pass(config: ILRMConfig, precision: Literal["fp32", "bf16"]) -> Count:
    """Operations of a real forward and backward pass, and bytes of the tensors that autograd kept meanwhile."""
    torch.manual_seed(0)
    model = ILRM(config).train()
    own = {x.untyped_storage().data_ptr() for x in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    with (
        FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS) as counter,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
    ):
        with autocast(precision, torch.device("cpu")):
            c2w, K = torch.eye(4).repeat(SAMPLES, VIEWS, 1, 1), torch.eye(3).repeat(SAMPLES, VIEWS, 1, 1)
            made = model(torch.rand(SAMPLES, VIEWS, *SIZE, 3), c2w, K)
        forward = counter.get_total_flops()
        parts = (made.means, made.scales, made.quats, made.opacities, made.sh)
        torch.stack([x.sum() for x in parts]).sum().backward()
        both = counter.get_total_flops()
    return Count(forward, both, sum(x.nbytes() for pointer, x in kept.items() if pointer not in own))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "config",
    [SMALL, MATCHED, replace(SMALL, mini_batch="half"), replace(SMALL, cross_attention="first")],
    ids=["plain", "matched", "mini-batch", "one cross-attention"],
)
def test_counts_are_those_of_a_real_pass(config: ILRMConfig, precision: Literal["fp32", "bf16"]) -> None:
    counted, real = count_network(config, SAMPLES, VIEWS, SIZE, precision), real_pass(config, precision)
    assert counted.forward == pytest.approx(real.forward, rel=1e-6)
    assert counted.both == pytest.approx(real.both, rel=1e-6)
    assert counted.kept == pytest.approx(real.kept, rel=0.02)


def test_recomputing_trades_operations_for_memory() -> None:
    config = replace(SMALL, checkpoint=True)
    counted, real = count_network(config, SAMPLES, VIEWS, SIZE, "fp32"), real_pass(config, "fp32")
    assert real.both < counted.both < 1.05 * real.both
    plain = count_network(SMALL, SAMPLES, VIEWS, SIZE, "fp32")
    assert counted.both > 1.2 * plain.both
    assert counted.kept < 0.5 * plain.kept


def test_cross_attention_alone_costs_what_the_paper_says() -> None:
    """4 d^2 (Lv + Li) + 4 Lv Li d for a view and layer, no uplifting: 3.825 G at d = 768, Lv = 256, Li = 1024."""
    config = ILRMConfig(viewpoint_factor=2, uplift=1, layers=2, mlp_ratio=1)
    full, less = (
        count_network(replace(config, cross_attention=kind), 1, 1, (256, 256), "fp32") for kind in ("every", "first")
    )
    mlp = 2 * 2 * 256 * 768 * 768
    assert full.forward - less.forward - mlp == pytest.approx(3.825e9, rel=1e-3)


@pytest.fixture(scope="module")
def smoke() -> Estimate:
    return estimate(preset("smoke"))


def test_a_preset_is_described(smoke: Estimate) -> None:
    (stage,) = smoke.stages
    with torch.device("meta"):
        assert smoke.parameters == ILRM(preset("smoke").model).parameter_count()
    assert smoke.state_bytes == 4 * 5 * smoke.parameters  # with averaged weights
    assert (stage.inputs, stage.targets, stage.samples) == (3, 2, 4)
    assert stage.steps == preset("smoke").steps
    assert (stage.viewpoint_tokens, stage.image_tokens, stage.gaussians) == (3 * 64, 3 * 256, 3 * 32 * 32)
    assert smoke.memory_bytes == smoke.state_bytes + stage.activation_bytes
    assert stage.seconds == pytest.approx(stage.flops / smoke.flops_per_second + stage.render_seconds)
    assert smoke.seconds == pytest.approx(stage.steps * stage.seconds)


def test_ranks_and_parts_share_the_samples(smoke: Estimate) -> None:
    shared = estimate(replace(preset("smoke"), accumulate=2), world_size=2).stages[0]
    assert shared.samples == 1
    assert 2 * shared.flops == pytest.approx(smoke.stages[0].flops)


def test_perceptual_loss_is_counted(smoke: Estimate) -> None:
    """VGG-16 up to relu5_3 at 64x64, 1.253 G multiply-adds: of renderings and photos, and back to the renderings."""
    images = 4 * 2
    with_it = estimate(replace(preset("smoke"), loss=LossConfig(perceptual="lpips"))).stages[0]
    assert with_it.flops - smoke.stages[0].flops == pytest.approx(3 * images * 2 * 1.2529e9, rel=0.02)
    assert with_it.activation_bytes > smoke.stages[0].activation_bytes


def test_time_is_a_bound_of_the_right_order() -> None:
    """For a network large enough that products count. The range is wide because tests share their machine."""
    counted = count_network(LARGER, 1, 3, (64, 64), "fp32")
    speed = matmul_flops("fp32", torch.device("cpu"))
    model, times = ILRM(LARGER), []
    for _ in range(3):
        start = time.perf_counter()
        views = (torch.rand(1, 3, 64, 64, 3), torch.eye(4).repeat(1, 3, 1, 1), torch.eye(3).repeat(1, 3, 1, 1))
        model(*views).means.sum().backward()
        times.append(time.perf_counter() - start)
    assert 0.3 < min(times) / (counted.both / speed) < 30


def test_rendering_time_grows_with_the_gaussians() -> None:
    few, many = (render_seconds(count, (64, 64), torch.device("cpu")) for count in (1 << 10, 1 << 19))
    assert 0 < few < many
