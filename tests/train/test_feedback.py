"""Training of feedback: what learns, at which rate, from which renderings; and that it resumes to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ilrm.core.errors import ConfigError
from ilrm.model import ILRM, FeedbackConfig, FootprintDecoder
from ilrm.model.weights import from_pretrained, save_weights
from ilrm.train.config import FeedbackTraining, LossConfig, OptimiserConfig, TrainConfig
from ilrm.train.data.loader import BatchMaker
from ilrm.train.engine import train
from ilrm.train.losses import closer_term, losses, render_targets, squared_error
from ilrm.train.optim import make_optimiser, set_learning_rate
from ilrm.train.serialise import from_dict, to_dict
from tests.train.data.sets import MODEL, config, stage

PLAIN = replace(MODEL, decoder=FootprintDecoder())
FED = replace(PLAIN, feedback=FeedbackConfig(channels=4, iterations=2))


def taught(output: Path | None = None, **changes: object) -> TrainConfig:
    values: dict[str, object] = {
        "feedback": FeedbackTraining(iterations=(1, 3)),
        "loss": LossConfig(iterations=1.0, closer=0.2),
        "optimiser": OptimiserConfig(peak=1e-2, warm_up=0, schedule="constant"),
        "precision": "fp32",
        "validate_every": 0,
    }
    if output is not None:
        torch.manual_seed(5)
        save_weights(ILRM(PLAIN), output / "plain.safetensors")
        values["initial_weights"] = str(output / "plain.safetensors")
    return replace(config(stage(batch=2)), **{"model": FED, **values, **changes})  # type: ignore[arg-type]


def test_only_feedback_learns_at_first_and_it_starts_from_plain_weights(tmp_path: Path) -> None:
    run = taught(tmp_path, steps=3)
    train(run, tmp_path / "out")
    made, plain = from_pretrained(tmp_path / "out" / "weights"), from_pretrained(run.initial_weights or "")
    after, before = made.state_dict(), plain.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert made.feedback is not None
    assert made.feedback.write.weight.abs().max() > 0
    assert made.feedback.step is not None
    assert made.feedback.step.abs().max() > 0


def test_weights_with_feedback_start_networks_with_and_without_it(tmp_path: Path) -> None:
    torch.manual_seed(5)
    given = ILRM(FED)
    save_weights(given, tmp_path / "fed.safetensors")
    still = OptimiserConfig(peak=1e-12, warm_up=0, schedule="constant", weight_decay=0.0)
    other_default = replace(PLAIN, feedback=FeedbackConfig(channels=4, iterations=1))
    for name, model in (("with", other_default), ("without", PLAIN)):
        fed = None if model.feedback is None else FeedbackTraining()
        start = {"initial_weights": str(tmp_path / "fed.safetensors"), "optimiser": still, "loss": LossConfig()}
        train(taught(model=model, feedback=fed, steps=1, **start), tmp_path / name)
        made = from_pretrained(tmp_path / name / "weights")
        assert (made.feedback is None) == (model.feedback is None)
        for key, value in made.state_dict().items():
            torch.testing.assert_close(value, given.state_dict()[key], atol=1e-9, rtol=0)
    wider = replace(PLAIN, feedback=FeedbackConfig(channels=8))
    with pytest.raises(ConfigError, match="feedback"):
        train(taught(initial_weights=str(tmp_path / "fed.safetensors"), model=wider), tmp_path / "no")


def test_the_rest_learns_at_its_share_of_the_rate(tmp_path: Path) -> None:
    torch.manual_seed(0)
    optimiser = make_optimiser(ILRM(FED), OptimiserConfig(), base_rate=0.1)
    set_learning_rate(optimiser, 1e-3)
    assert sorted({group["lr"] for group in optimiser.param_groups}) == pytest.approx([1e-4, 1e-3])
    counts = [sum(p.numel() for p in group["params"]) for group in optimiser.param_groups]
    model = ILRM(FED)
    assert model.feedback is not None
    assert sum(counts[:2]) == sum(p.numel() for p in model.feedback.parameters())
    assert sum(counts) == model.parameter_count()
    run = taught(tmp_path, steps=2, feedback=FeedbackTraining(base_rate=0.1))
    train(run, tmp_path / "out")
    after, before = from_pretrained(tmp_path / "out" / "weights"), from_pretrained(run.initial_weights or "")
    assert not torch.equal(after.decoder.weight, before.decoder.weight)


def test_a_continued_run_is_the_same_as_one_that_was_never_stopped(tmp_path: Path) -> None:
    train(taught(tmp_path, steps=4), tmp_path / "whole")
    train(taught(tmp_path, steps=2), tmp_path / "parts")
    train(taught(tmp_path, steps=4), tmp_path / "parts")
    whole, parts = (from_pretrained(tmp_path / name / "weights").state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(parts[name], value) for name, value in whole.items())


def test_every_iteration_is_compared_with_the_targets() -> None:
    run = taught()
    torch.manual_seed(0)
    model = ILRM(FED)
    assert model.feedback is not None
    torch.nn.init.normal_(model.feedback.write.weight, std=0.3)
    batch = BatchMaker(run)[0]
    torch.manual_seed(3)
    drawn = int(torch.randint(1, 4, ()))
    torch.manual_seed(3)
    found = losses(
        model, batch, replace(run.loss, closer=0.0), 0, model_config=FED, precision="fp32", feedback=run.feedback
    )
    inputs = (batch.images[:, : batch.inputs], batch.c2w[:, : batch.inputs], batch.K[:, : batch.inputs])
    with torch.no_grad():
        states = model(*inputs, feedback=drawn, iterations="feedback")
    errors = [(render_targets(state, batch) - batch.target_images).square().mean() for state in states][1:]
    expected = sum(0.9 ** (drawn - 1 - t) * error for t, error in enumerate(errors[:-1]))
    torch.testing.assert_close(found.terms["mse"], errors[-1])
    torch.testing.assert_close(found.terms["iterations"], torch.as_tensor(expected), atol=1e-6, rtol=1e-4)


def test_how_many_iterations_changes_from_step_to_step() -> None:
    run = taught(steps=20)
    torch.manual_seed(0)
    model, batch, seen = ILRM(FED), BatchMaker(run)[0], set()

    def counted(*inputs: torch.Tensor, feedback: int, **options: object) -> object:
        seen.add(feedback)
        return model(*inputs, feedback=0)

    for step in range(20):
        torch.manual_seed(step)
        loss = LossConfig()
        losses(counted, batch, loss, step, model_config=FED, precision="fp32", feedback=run.feedback)
    assert seen == {1, 2, 3}


def test_a_closer_look_finds_holes() -> None:
    """Small Gaussians that a renderer widens to its pixels look the same at the photos' size, not from nearby."""
    run = taught()
    torch.manual_seed(0)
    model, batch = ILRM(PLAIN), BatchMaker(run)[0]
    inputs = (batch.images[:, : batch.inputs], batch.c2w[:, : batch.inputs], batch.K[:, : batch.inputs])
    with torch.no_grad():
        whole = model(*inputs)
        thin = replace(whole, scales=whole.scales * 0.2)
        apart = []
        for gaussians in (whole, thin):
            torch.manual_seed(1)
            near = closer_term(gaussians, batch, LossConfig(closer_factors=(4,)))
            apart.append((near - (render_targets(gaussians, batch) - batch.target_images).square().mean()).item())
    assert apart[1] > apart[0] + 0.005


def test_feedback_and_its_training_go_together() -> None:
    with pytest.raises(ConfigError, match="set both, or neither"):
        taught(feedback=None)
    with pytest.raises(ConfigError, match="fewest"):
        FeedbackTraining(iterations=(3, 1))
    run = taught()
    assert from_dict(to_dict(run)) == run


def test_by_logarithm_every_sample_counts_alike() -> None:
    truth = torch.rand(2, 1, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    rendered = truth.clone()
    rendered[0] += 0.5
    rendered[1] += 0.05
    rendered.requires_grad_()
    squared_error(rendered, truth, LossConfig(logarithmic=True)).backward()
    assert rendered.grad is not None
    # d log(e^2) / de = 2 / e for each: the gradient times the error is the same.
    products = (rendered.grad * (rendered - truth)).detach().flatten(1).sum(1)
    torch.testing.assert_close(products[0], products[1], rtol=0.05, atol=0)
    plain = squared_error(rendered, truth, LossConfig())
    torch.testing.assert_close(plain, (rendered - truth).square().mean())
