"""Compiled, the network is one graph a part, and says the same."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch

from ilrm.core.errors import IlrmWarning
from ilrm.core.gaussians import PER_GAUSSIAN
from ilrm.core.precision import autocast
from ilrm.model import ILRM, ComputeConfig, ILRMConfig
from ilrm.model.compute.compiling import CompileOptions, why_not
from ilrm.model.compute.graphs import Graphs
from ilrm.model.ilrm import _clone
from tests.model.test_half import EVERYTHING
from tests.model.test_ilrm import FOOTPRINT, TINY, inputs, make

VARIANTS: dict[str, tuple[ILRMConfig, ComputeConfig]] = {
    "released": (TINY, ComputeConfig()),
    "all options": (EVERYTHING, ComputeConfig()),
    "mini-batch": (replace(FOOTPRINT, camera_encoding="prope"), ComputeConfig(mini_batch="quarter")),
    "recomputed": (FOOTPRINT, ComputeConfig(checkpoint=True)),
}


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_parts_are_whole_graphs(name: str) -> None:
    """With ``fullgraph`` torch refuses what it would have to leave for the interpreter."""
    config, compute = VARIANTS[name]
    given, model = inputs(2, 32, 16), make(replace(config, layers=2))
    model.compute = compute
    expected = model(*given)
    model.compile(backend="eager", fullgraph=True)
    found = model(*given)
    torch.testing.assert_close(found.means, expected.means)
    torch.testing.assert_close(found.opacities, expected.opacities)


@pytest.mark.parametrize("name", ["released", "recomputed"])
def test_so_they_are_with_gradients(name: str) -> None:
    config, compute = VARIANTS[name]
    given, gradients = inputs(2, 32, 16), []
    for compiled in (False, True):
        model = make(replace(config, layers=2))
        model.compute = compute
        if compiled:
            model.compile(backend="aot_eager", fullgraph=True)
        with autocast("bf16", torch.device("cpu")):
            model(*given).means.square().mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for n, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][n], gradient, atol=1e-2 * gradient.abs().max().item(), rtol=0.02)


@torch.no_grad()
def test_layers_share_what_is_compiled_and_copies_are_not() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    model, given = make(replace(TINY, layers=4)), inputs(2, 32, 16)
    model.compile(backend=backend, fullgraph=True)
    model(*given)
    assert len(graphs) == 2  # a layer and the decoder
    copy.deepcopy(model)(*given)
    assert len(graphs) == 2
    with autocast("bf16", torch.device("cpu")):
        model.for_bf16()(*given)  # in another format
    assert len(graphs) == 4


@torch.no_grad()
def test_without_a_compiler_it_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    model, given = make(TINY), inputs(2)
    expected = model(*given)
    with pytest.warns(IlrmWarning, match=r"not compiled, it runs as it is: there is no C\+\+ compiler") as told:
        model.compile()
    assert len(told) == 1
    assert torch.equal(model(*given).means, expected.means)
    monkeypatch.setattr("ilrm.model.compute.compiling.find_spec", lambda name: None)
    assert why_not(torch.device("cuda"), "inductor") == "the package triton is not installed"
    assert why_not(torch.device("cuda"), "eager") is None


def test_graphs_are_recorded_in_inference_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ilrm.model.ilrm.why_not", lambda device, backend: None)
    modes = []
    monkeypatch.setattr(CompileOptions, "modules", lambda self, parts: modes.append((self.mode, self.graphs)))
    for training, device in ((False, "cuda"), (True, "cuda"), (False, "cpu")):
        make(TINY).train(training).compile(device=torch.device(device))
    assert modes == [("reduce-overhead", True), (None, False), (None, False)]


class Replayed:
    """A recorded graph, imitated on a CPU: it reads its own inputs and weights, and has one place for its result."""

    made: ClassVar[list[Replayed]] = []

    def __init__(self, function: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> None:
        self.function, self.inputs = function, [x.clone() for x in inputs]
        self.result = function(*self.inputs)
        self.made.append(self)

    def __call__(self, inputs: Sequence[torch.Tensor]) -> Any:
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        found = self.function(*self.inputs)
        for name in PER_GAUSSIAN:
            getattr(self.result[0][-1], name).copy_(getattr(found[0][-1], name))
        return self.result


@pytest.fixture
def graphed(monkeypatch: pytest.MonkeyPatch) -> ILRM:
    """A network that records graphs, on a CPU."""
    monkeypatch.setattr(Replayed, "made", [])
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(CompileOptions, "modules", lambda self, parts: None)
    monkeypatch.setattr(CompileOptions, "function", lambda self, function: function)
    model = make(TINY)
    model.compile(mode="reduce-overhead")
    model._graphs = Graphs(_clone, Replayed)
    return model


class TestGraphs:
    def test_results_outlive_the_next_call(self, graphed: ILRM) -> None:
        plain, given = make(TINY), inputs(2)
        other = (given[0].flip(1), *given[1:])
        with torch.no_grad():
            found, expected = [graphed(*x) for x in (given, other)], [plain(*x) for x in (given, other)]
        assert len(Replayed.made) == 1
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours.means, theirs.means)
        assert not torch.equal(found[0].sh, found[1].sh)

    def test_results_of_inference_mode_and_without_go_together(self, graphed: ILRM) -> None:
        given = inputs(2)
        with torch.inference_mode():
            graphed(*given)
        with torch.no_grad():
            found = graphed(*given)
        assert not found.means.is_inference()
        found.means.requires_grad_().square().sum().backward()

    @torch.no_grad()
    def test_what_they_depend_on_makes_new_ones(self, graphed: ILRM) -> None:
        given = inputs(2, 32, 16)
        graphed(*given)
        graphed(*given, with_match=True)
        assert len(Replayed.made) == 1
        graphed(*given, iterations=True)
        graphed(*given, mask=torch.ones(1, 2, 16, 32) > 0)
        graphed(*inputs(3, 32, 16))
        with autocast("bf16", torch.device("cpu")):
            graphed(*given)
        assert len(Replayed.made) == 5
        graphed.compute = ComputeConfig(mini_batch="half")
        graphed(*given)
        assert len(Replayed.made) == 6
        graphed.decoder.weight.mul_(2)  # in place: a graph reads what is there
        graphed(*given)
        assert len(Replayed.made) == 6
        graphed.decoder.weight = torch.nn.Parameter(graphed.decoder.weight.clone())
        graphed(*given)
        assert len(Replayed.made) == 7

    def test_gradients_go_without(self, graphed: ILRM) -> None:
        graphed(*inputs(2)).means.sum().backward()
        assert not Replayed.made

    @torch.no_grad()
    def test_only_some_are_kept(self, graphed: ILRM) -> None:
        for views in (1, 2, 3, 4, 5, 5, 4, 1):
            graphed(*inputs(views, 16, 16))
        assert len(Replayed.made) == 6

    @torch.no_grad()
    def test_where_none_can_be_recorded_the_network_runs_without(self, graphed: ILRM) -> None:
        def fails(*_: object) -> Any:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")

        given = inputs(2)
        graphed._graphs = Graphs(_clone, fails)
        with pytest.warns(IlrmWarning, match="can be recorded, it runs without: operation not permitted"):
            found = graphed(*given)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it is told once
            graphed(*given)
        assert torch.equal(found.means, make(TINY)(*given).means)
