"""How the network is computed changes nothing of what it says: parts, kernels, fused norms."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from ilrm.core.errors import ConfigError
from ilrm.model import ComputeConfig, ILRMConfig
from ilrm.model.blocks import HeadNorm
from ilrm.model.compute import attention
from ilrm.model.compute.attention import AttentionShape, attend, attend_by_products, choose, kernel_for
from ilrm.model.compute.plain import head_norm, plainly
from ilrm.model.compute.plan import Plan, Sizes, bytes_per_row, bytes_per_view, parts, plan, shapes
from ilrm.model.config import MiniBatch
from tests.model.test_ilrm import FOOTPRINT, TINY, inputs, make

PROPE = replace(FOOTPRINT, camera_encoding="prope")

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_norm_equals_the_plain_one(dtype: torch.dtype, autocast: bool) -> None:
    """Values and gradients; in bf16 to one rounding, which the plain one has twice."""
    torch.manual_seed(0)
    norm = HeadNorm(16)
    torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
    data, seed = (3 * torch.randn(2, 5, 3, 16)).to(dtype), torch.randn(2, 5, 3, 16).to(dtype)
    found = []
    for function in (norm, partial(head_norm, norm)):
        x = data.clone().requires_grad_()
        norm.weight.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = function(x)
        assert y.dtype == dtype
        y.backward(seed)
        found.append([z.detach().float() for z in (y, x.grad, norm.weight.grad) if z is not None])
    close = {"atol": 1e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.02, "rtol": 0.016}
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, **close)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("config", [TINY, PROPE], ids=["released", "prope"])
@pytest.mark.parametrize("share", ["none", "half"])
def test_layers_equal_the_plain_ones(config: ILRMConfig, share: MiniBatch, gradient: bool) -> None:
    model, given = make(config), inputs(3, batch=2)
    model.compute = ComputeConfig(mini_batch=share)
    found = []
    for context in (nullcontext(), plainly(model)):
        model.zero_grad(set_to_none=True)
        with context, torch.set_grad_enabled(gradient):
            logits = model.logits(*given)[-1]
        values = [logits.log_scales, logits.opacity_logits, logits.sh]
        if gradient:
            logits.sh.square().mean().backward()
            values += [p.grad for p in model.parameters() if p.grad is not None]
        found.append([x.detach() for x in values])
    assert len(found[0]) == len(found[1])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_norm_without_gradients_equals_the_plain_one(dtype: torch.dtype) -> None:
    norm, x = HeadNorm(16), (3 * torch.randn(2, 5, 3, 3, 16)).to(dtype)[:, :, 1]  # as a part of queries, keys, values
    torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
    before = x.clone()
    close = {"atol": 1e-6, "rtol": 1e-6} if dtype == torch.float32 else {"atol": 0.02, "rtol": 0.016}
    torch.testing.assert_close(norm(x), head_norm(norm, x), **close)
    assert torch.equal(x, before)


@torch.no_grad()
def test_products_are_for_cpus_that_multiply_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    ways: list[str] = []
    for name in ("attend_by_products", "_attend_by_torch"):
        monkeypatch.setattr(attention, name, lambda *_, name=name: ways.append(name))
    x = torch.zeros(1, 2, 1, 8, dtype=torch.bfloat16)
    for able in (True, False):
        monkeypatch.setattr(attention, "_CPU_MULTIPLIES_BF16", able)
        attend(x, x, x)
    assert ways == ["attend_by_products", "_attend_by_torch"]


@torch.no_grad()
def test_channels_of_a_head_lie_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's kernels ask for it. Queries that are lifted from one token each are a view with another stride."""
    fused, strides = torch.nn.functional.scaled_dot_product_attention, []

    def recorded(*given: torch.Tensor) -> torch.Tensor:
        strides.extend(x.stride(-1) for x in given)
        return fused(*given)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recorded)
    q = torch.randn(3, 1, 64).unflatten(-1, (2, 16, 2)).permute(0, 1, 4, 2, 3).flatten(1, 2)
    assert q.shape == (3, 2, 2, 16)
    assert q.stride(-1) == 2
    k, v = torch.randn(2, 3, 4, 2, 16)
    found = attention.attend(q, k, v)
    expected = attention.attend_by_products(q.contiguous(), k, v)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert strides == [1, 1, 1]


def test_attention_by_products_equals_the_fused_one() -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 3, 16, generator=g) for n in (300, 70, 70))
    exact = attend(q, k, v)
    assert (attend_by_products(q, k, v) - exact).abs().max() < 1e-5
    half = attend_by_products(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).abs().max() < 0.03


class TestParts:
    SIZES = Sizes(samples=1, views=32, viewpoint=2040, image=8160)

    def test_of_a_budget(self) -> None:
        assert parts(10, 100, 1000) is None
        assert parts(10, 100, 999) == 8
        assert parts(1000, 100, 1000) == 8
        assert parts(3, 100, 50) == 1  # one is the least

    @torch.no_grad()
    def test_follow_free_memory_on_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        config, free = ILRMConfig.released_wide(), [80 << 30, 4 << 30, 1 << 30, 1 << 20]
        views, rows = bytes_per_view(config, self.SIZES), bytes_per_row(config)
        assert (2 << 30) // views == 17
        assert (1 << 29) // rows == 15887
        monkeypatch.setattr("ilrm.model.compute.plan.free_memory", lambda device: free.pop(0))
        monkeypatch.setattr("ilrm.model.compute.plan.kernel_for", lambda shape: "flash")
        found = [plan(config, self.SIZES, CUDA, torch.bfloat16) for _ in range(4)]
        assert {(one.read, one.exchange) for one in found} == {("flash", "flash")}
        assert [one.views for one in found] == [None, 16, 4, 1]
        assert [one.rows for one in found] == [None, 32768, 8192, 8]

    def test_are_constant_on_the_cpu_and_whole_with_gradients(self) -> None:
        config = ILRMConfig.released_wide()
        with torch.no_grad():
            assert plan(config, Sizes(1, 4, 256, 1024), CPU, torch.float32) == Plan(5, 8192)
        assert plan(config, Sizes(1, 4, 256, 1024), CPU, torch.float32) == Plan()

    def test_equal_the_whole(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, given = make(TINY), inputs(4)
        whole = model(*given).means.detach()
        monkeypatch.setattr("ilrm.model.compute.plan.ROWS_ON_CPU", 40)
        with torch.no_grad():
            chunked = model(*given).means
        torch.testing.assert_close(chunked, whole, atol=1e-3, rtol=0)


class TestKernels:
    def shape(self, queries: int, keys: int, **changes: object) -> AttentionShape:
        given = {"sequences": 3, "heads": 2, "head_width": 16, "dtype": torch.float32, "device": CPU}
        return AttentionShape(queries=queries, keys=keys, gradient=False, **(given | changes))  # type: ignore[arg-type]

    def test_the_fastest_that_runs_is_chosen(self) -> None:
        def impossible() -> None:
            raise RuntimeError("no available kernel")

        seconds = {"flash": 3.0, "efficient": 1.0, "math": 2.0}
        works = {name: (lambda name=name: name) for name in seconds} | {"cudnn": impossible}
        assert choose(works, lambda work: seconds[str(work())]) == "efficient"  # type: ignore[arg-type]
        assert choose({"cudnn": impossible}, lambda work: [1.0, work()][0]) == "auto"  # type: ignore[list-item]

    def test_each_shape_is_timed_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(attention, "_fastest", {})
        works: list[Callable[[], object]] = []

        def seconds(work: Callable[[], object]) -> float:
            works.append(work)
            work()  # on the CPU torch has the plain kernel and its flash attention, and no other
            return float(len(works))

        first = kernel_for(self.shape(100, 60), seconds)
        assert first != "auto"
        count = len(works)
        assert count >= 1
        assert kernel_for(self.shape(128, 33), seconds) == first  # the same powers of two
        assert len(works) == count
        kernel_for(self.shape(129, 33), seconds)
        assert len(works) > count

    def test_nothing_is_timed_where_it_may_not_be(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def seconds(work: Callable[[], object]) -> float:
            raise AssertionError

        monkeypatch.setattr(attention, "_fastest", {})
        assert kernel_for(self.shape(8, 8)) == "auto"  # a CPU
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert kernel_for(self.shape(8, 8), seconds) == "auto"
        monkeypatch.undo()
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert kernel_for(self.shape(8, 8, device=CUDA), seconds) == "auto"
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
        assert kernel_for(self.shape(8, 8), seconds) == "auto"

    def test_gradients_are_timed_with_the_values(self, monkeypatch: pytest.MonkeyPatch) -> None:
        differentiate, calls = torch.autograd.grad, []

        def counted(*given: Any) -> Any:
            found = differentiate(*given)
            calls.append([x.shape for x in found])
            return found

        monkeypatch.setattr(torch.autograd, "grad", counted)
        for gradient in (False, True):
            shape = AttentionShape(1, 5, 4, 2, 16, torch.float32, CPU, gradient)
            attention.candidates(shape)["math"]()
        assert calls == [[(1, 5, 2, 16), (1, 4, 2, 16), (1, 4, 2, 16)]]

    def test_shapes_are_those_that_the_layers_attend_with(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[tuple[torch.Size, ...]] = []
        original = attention.attend

        def spy(q: Tensor, k: Tensor, v: Tensor, kernel: str) -> Tensor:
            seen.append((q.shape, k.shape, v.shape))
            return original(q, k, v)

        monkeypatch.setattr("ilrm.model.blocks.attend", spy)
        model = make(TINY)
        model(*inputs(3, 32, 24, batch=2))
        patches = 24 * 32 // TINY.size_multiple**2
        sizes = Sizes(2, 3, patches, patches * TINY.image_tokens_per_viewpoint_token)
        for shape, (q, k, v) in zip(shapes(TINY, sizes, CPU, torch.float32, True), seen[:2], strict=True):
            assert (shape.sequences, shape.queries, shape.heads, shape.head_width) == tuple(q)
            assert (shape.sequences, shape.keys, shape.heads, shape.head_width) == tuple(k) == tuple(v)

    def test_a_kernel_that_is_not_there_is_told(self) -> None:
        model = make(TINY)
        model.compute = ComputeConfig(attention="flash")
        with pytest.raises(ConfigError, match="no attention kernel 'flash' for a CPU"):
            model(*inputs())
        with pytest.raises(ConfigError, match="flash_attn_interface is not installed"):
            attention.check_kernel("fa3", CUDA)
