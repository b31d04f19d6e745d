"""Weights in bf16 once: the same to the last bit as autocast's at every call, and never out of date."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from ilrm.core.errors import ConfigError
from ilrm.core.gaussians import PER_GAUSSIAN, Gaussians
from ilrm.core.precision import autocast
from ilrm.core.scene import Scene
from ilrm.model import ILRM, ComputeConfig, ILRMConfig
from ilrm.model.compute.half import is_cast
from ilrm.model.reconstruct import reconstruct
from tests.conftest import make_cameras
from tests.model.test_ilrm import FOOTPRINT, MATCHED, TINY, inputs, make
from tests.model.test_options import LEARNED

EVERYTHING = replace(
    LEARNED, image_channels=(*LEARNED.image_channels, "consistency"), pixel_head=4, camera_encoding="prope"
)
CPU = torch.device("cpu")


@torch.no_grad()
def in_bf16(model: ILRM, seed: int = 0) -> Gaussians:
    with autocast("bf16", CPU):
        return model(*inputs(3))


def same(a: Gaussians, b: Gaussians) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in PER_GAUSSIAN)


def noisy(config: ILRMConfig) -> ILRM:
    """A network in which no weight is zero."""
    model = make(config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator)
    return model


@pytest.mark.parametrize("config", [TINY, FOOTPRINT, MATCHED, EVERYTHING], ids=["tiny", "footprint", "match", "all"])
def test_results_are_those_of_autocast(config: ILRMConfig) -> None:
    model = noisy(config)
    expected = in_bf16(model)
    assert same(in_bf16(model.for_bf16()), expected)
    assert same(in_bf16(model), expected)  # it is as it was
    assert same(in_bf16(model.cast_weights()), expected)
    products = [m for m in model.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv3d))]
    assert products
    assert all(m.weight.dtype == torch.bfloat16 for m in products)


CHANGES: dict[str, Callable[[ILRM], object]] = {
    "in place": lambda m: m.layers[0].self_mlp.fc1.weight.detach().mul_(1.5),
    "loaded": lambda m: m.load_state_dict(noisy(TINY).state_dict()),
    "replaced": lambda m: setattr(m.decoder, "weight", torch.nn.Parameter(2 * m.decoder.weight.detach())),
    "assigned": lambda m: m.load_state_dict(noisy(TINY).state_dict(), assign=True),
    "adam": lambda m: step(m, torch.optim.AdamW(m.parameters())),
    "fused adam": lambda m: step(m, torch.optim.AdamW(m.parameters(), fused=True)),
    "foreach adam": lambda m: step(m, torch.optim.AdamW(m.parameters(), foreach=True)),
    "format": lambda m: m.double().float().layers[0].self_mlp.fc1.weight.detach().mul_(1.5),
}


def step(model: ILRM, optimiser: torch.optim.Optimizer) -> None:
    model.train()
    with autocast("bf16", CPU):
        model(*inputs(3)).means.square().mean().backward()
    optimiser.step()
    model.eval()


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_the_weights_are_noticed(change: str) -> None:
    model = make(TINY)
    before = in_bf16(model.for_bf16())
    assert model.for_bf16() is model.for_bf16()
    CHANGES[change](model)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())
    assert same(in_bf16(model.for_bf16()), in_bf16(model))
    assert not same(in_bf16(model.for_bf16()), before)


def test_what_is_not_cast_is_shared() -> None:
    model = make(EVERYTHING)
    half = model.for_bf16()
    shared = [p.data_ptr() for p in half.parameters() if p.dtype == torch.float32]
    assert shared
    assert set(shared) <= {p.data_ptr() for p in model.parameters()}
    assert not any(p.requires_grad for p in half.parameters())
    assert half.state_dict().keys() == model.state_dict().keys()
    assert {k for k, v in half.state_dict().items() if v.dtype == torch.bfloat16} >= {"decoder.weight"}


def test_options_follow_the_network() -> None:
    model = make(TINY)
    assert model.for_bf16().compute == ComputeConfig()
    model.compute = ComputeConfig(mini_batch="half")
    assert model.for_bf16().compute.mini_batch == "half"
    assert not model.for_bf16().training
    assert model.train().for_bf16().training


def test_reconstruction_uses_them() -> None:
    cameras = make_cameras(3, 32, 24)
    scene = Scene(inputs(3)[0][0], cameras, ("a", "b", "c"))
    model = make(TINY)
    expected = reconstruct(scene, model, precision="bf16")
    assert not is_cast(model)
    full = reconstruct(scene, model, precision="fp32")
    assert not same(full, expected)
    model.cast_weights()
    assert is_cast(model)
    assert same(reconstruct(scene, model, precision="bf16"), expected)
    assert same(reconstruct(scene, model), expected)  # auto, which is fp32 for a small network otherwise
    with pytest.raises(ConfigError, match="cast to bf16 was asked to compute in fp32"):
        reconstruct(scene, model, precision="fp32")
    with pytest.raises(RuntimeError, match="grad"), autocast("bf16", CPU):
        model(*inputs(3)).means.sum().backward()
