"""Feedback: what an iteration sees, what it may change, and that gradients through it are right."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ilrm.core.cameras import Cameras
from ilrm.core.errors import ConfigError
from ilrm.core.gaussians import PER_GAUSSIAN, Gaussians
from ilrm.model import ILRM, FeedbackConfig, FootprintDecoder, ILRMConfig, MatchingConfig
from ilrm.model.feedback import Frame, Seen, apply, descent_direction, gather, other_views
from ilrm.render import render
from ilrm.render.comparison import compare

B, V, SIDE = 2, 3, 32
SMALL = ILRMConfig(width=32, head_width=16, layers=2, patch_size=4, decoder=FootprintDecoder())
MATCHED = replace(
    SMALL,
    image_channels=("rgb", "origin", "direction", "moment", "match", "consistency"),
    matching=MatchingConfig(planes=8, sources=2, window=3),
)
RELEASED = replace(ILRMConfig.released_two_view(), width=32, head_width=16, layers=1, patch_size=4)


def views(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(B, V, SIDE // 4, SIDE // 4, 3, generator=generator)
    images = images.repeat_interleave(4, 2).repeat_interleave(4, 3)
    c2w = torch.eye(4).repeat(B, V, 1, 1)
    c2w[:, :, 0, 3] = torch.linspace(-0.3, 0.3, V)
    K = torch.tensor([[SIDE, 0, SIDE / 2], [0, SIDE, SIDE / 2], [0, 0, 1.0]]).expand(B, V, 3, 3)
    return images, c2w, K


def network(config: ILRMConfig = SMALL, awake: bool = False, **feedback: object) -> ILRM:
    torch.manual_seed(0)
    model = ILRM(replace(config, feedback=FeedbackConfig(channels=8, **feedback)))  # type: ignore[arg-type]
    assert model.feedback is not None
    if awake:  # as after some training: heads and steps are not zero
        for parameter in (model.feedback.write.weight, model.feedback.write.bias, model.feedback.step):
            if parameter is not None:
                torch.nn.init.normal_(parameter, std=0.05)
    return model


def seen_and_made(config: ILRMConfig = SMALL) -> tuple[Gaussians, Seen]:
    images, c2w, K = views()
    model = network(config)
    with torch.no_grad():
        made = model(images, c2w, K, feedback=0)
    grid = (SIDE // config.viewpoint_factor,) * 2
    return made, Seen(images, Cameras(c2w, K, SIDE, SIDE), grid, None)


@pytest.mark.parametrize("config", [SMALL, MATCHED, RELEASED], ids=["plain", "matched", "released"])
def test_without_iterations_it_is_the_plain_network_to_the_bit(config: ILRMConfig) -> None:
    torch.manual_seed(0)
    plain = ILRM(config)
    model = network(config, awake=True)
    model.load_state_dict(plain.state_dict(), strict=False)
    images, c2w, K = views()
    with torch.no_grad():
        expected, found = plain(images, c2w, K), model(images, c2w, K, feedback=0)
    assert all(torch.equal(getattr(found, name), getattr(expected, name)) for name in PER_GAUSSIAN)


@pytest.mark.parametrize("config", [SMALL, MATCHED, RELEASED], ids=["plain", "matched", "released"])
def test_before_training_iterations_change_nothing(config: ILRMConfig) -> None:
    images, c2w, K = views()
    model = network(config)
    with torch.no_grad():
        states = model(images, c2w, K, feedback=2, iterations="feedback")
    assert states.batch_shape == (3, B)
    for name in PER_GAUSSIAN:
        value = getattr(states, name)
        torch.testing.assert_close(value[2], value[0], atol=2e-6, rtol=2e-5)


def test_the_config_says_how_many_and_every_state_is_returned() -> None:
    images, c2w, K = views()
    model = network(awake=True, iterations=2).train()
    with torch.no_grad():
        every = model(images, c2w, K, iterations=True)
        last = model(images, c2w, K)
        one = model(images, c2w, K, feedback=1)
    assert every.batch_shape == (SMALL.layers + 2, B)
    assert torch.equal(every.means[-1], last.means)
    assert torch.equal(every.means[-2], one.means)
    assert not torch.equal(one.means, last.means)


def test_networks_without_it_refuse() -> None:
    images, c2w, K = views()
    with pytest.raises(ConfigError, match="network without feedback"):
        ILRM(SMALL)(images, c2w, K, feedback=1)
    with pytest.raises(ConfigError, match="-1 feedback iterations"):
        network()(images, c2w, K, feedback=-1)


def test_samples_of_a_batch_do_not_mix() -> None:
    images, c2w, K = views()
    model = network(MATCHED, awake=True)
    with torch.no_grad():
        both, second = model(images, c2w, K), model(images[1:], c2w[1:], K[1:])
    for name in PER_GAUSSIAN:
        torch.testing.assert_close(getattr(both, name)[1:], getattr(second, name), atol=1e-4, rtol=1e-3)


def test_updates_are_what_they_say() -> None:
    """Distance, shift and scale, as the own camera measures them."""
    made, seen = seen_and_made()
    updates = torch.zeros(B, made.count, 13)
    updates[..., 0] = 0.1
    farther = apply(made, updates, seen)
    before, after = Frame.of(made.means, seen), Frame.of(farther.means, seen)
    torch.testing.assert_close(after.distance, before.distance * torch.tensor(0.1).exp())
    torch.testing.assert_close(after.forward, before.forward, atol=1e-5, rtol=0)
    torch.testing.assert_close(farther.scales / made.scales, torch.full_like(made.scales, torch.tensor(0.1).exp()))
    updates[:] = 0
    updates[..., 1] = 1.0
    moved = Frame.of(apply(made, updates, seen).means, seen)
    column = {name: project(x.means, seen)[..., 0] for name, x in {"a": made, "b": apply(made, updates, seen)}.items()}
    # A viewpoint pixel is two image pixels here; rays are not all parallel to the axis.
    assert ((column["b"] - column["a"]) / seen.factor - 1).abs().max() < 0.4
    assert (moved.pixel / before.pixel - 1).abs().max() < 0.05


def project(means: torch.Tensor, seen: Seen) -> torch.Tensor:
    """(B, N, 2) pixels of each Gaussian's centre in its own view."""
    c2w = seen.cameras.c2w
    offset = seen.on_grid(means) - c2w[..., None, None, :3, 3]
    x, y, z = torch.einsum("bvhwi,bvij->bvhwj", offset, c2w[..., :3, :3]).unbind(-1)
    K = seen.cameras.K[..., None, None, :, :]
    pixels = torch.stack([K[..., 0, 0] * x / z + K[..., 0, 2], K[..., 1, 1] * y / z + K[..., 1, 2]], -1)
    return pixels.flatten(1, 3)


@pytest.mark.parametrize(("part", "width"), [("distance", 1), ("shift", 2), ("scale", 3), ("turn", 3), ("colour", 3)])
def test_the_descent_direction_is_that_of_the_error(part: str, width: int) -> None:
    """Against a finite difference of the error along the update's own coordinates."""
    first = {"distance": 0, "shift": 1, "scale": 3, "turn": 6, "opacity": 9, "colour": 10}[part]
    made, seen = seen_and_made()
    # Larger and rounder differences than a pixel's: the derivative is then smooth enough for a difference.
    made = replace(made, scales=made.scales * torch.tensor([2.0, 3.0, 1.0]), opacities=made.opacities * 0.4)
    # Nor do any two lie at one depth, where a step would change their order.
    apart = torch.zeros(B, made.count, 13)
    apart[..., 0] = torch.randn(B, made.count, generator=torch.Generator().manual_seed(2))
    made = apply(made, 0.3 * apart, seen)
    frame = Frame.of(made.means, seen)
    compared = compare(made, seen.cameras, seen.photos)
    direction = descent_direction(made, frame, compared)
    gains = {"distance": 6.0, "shift": 20.0, "scale": 60.0, "turn": 500.0, "opacity": 60.0, "colour": 15.0}
    gradient = -direction.sinh() / gains[part] * (compared.weights + 0.5)[..., None]
    chosen = torch.zeros_like(direction)
    along = torch.randn(B, made.count, width, generator=torch.Generator().manual_seed(3))
    chosen[..., first : first + width] = along
    expected = (gradient * chosen).sum().item()

    def error(step: float) -> float:
        moved = apply(made.to(dtype=torch.float64), (step * chosen).double(), seen)
        rgb = render(moved, seen.cameras, backend="reference").rgb
        return 0.5 * (seen.photos - rgb).square().sum().item()

    step = 1e-8  # few pixels cross the threshold below which nothing is drawn
    assert (error(step) - error(-step)) / (2 * step) == pytest.approx(expected, rel=0.02)


def test_other_views_see_a_surface_that_lies_where_all_say() -> None:
    """Gaussians on a fronto-parallel plane of one colour, seen by all views: no residual, everyone counts."""
    images, c2w, K = views()
    images = torch.full_like(images, 0.6)
    seen = Seen(images, Cameras(c2w, K, SIDE, SIDE), (SIDE // 2, SIDE // 2), None)
    grid = torch.stack(torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="xy"), -1)
    flat = torch.cat([grid, torch.full((16, 16, 1), 2.0)], -1).reshape(1, 1, 256, 3).expand(B, V, 256, 3)
    N = V * 256
    plane = Gaussians(
        flat.reshape(B, N, 3),
        torch.full((B, N, 3), 0.08),
        torch.tensor([1.0, 0, 0, 0]).expand(B, N, 4),
        torch.full((B, N), 0.9),
        torch.full((B, N, 1, 3), 0.1 / 0.28209479177387814),
    )
    found = other_views(plane, compare(plane, seen.cameras, seen.photos), seen)
    inner = (flat[0, 0, :, :2].abs() < 0.4).all(-1)
    inner = inner.repeat(V)
    residual, apart, sizes, behind, count = found[:, inner].split([3, 3, 2, 1, 1], dim=-1)
    assert residual.abs().max() < 0.05
    assert apart.abs().max() < 0.05
    assert sizes.abs().max() < 0.05
    assert behind.abs().max() < 0.05
    # Two other views see each of them.
    torch.testing.assert_close(count.expm1(), torch.full_like(count, 2.0), atol=0.1, rtol=0)


def test_gradients_through_the_loop_equal_finite_differences() -> None:
    """Of a loss on the second iteration, with the evidence held: that is what training differentiates."""
    images, c2w, K = views()
    feedback = network(awake=True).feedback
    assert feedback is not None
    made, seen = seen_and_made()
    held = []
    with torch.no_grad():
        for state in (made, feedback(made, seen, 1)[0]):
            found = gather(state, Frame.of(state.means, seen), seen, feedback.config.evidence)
            assert found.descent is not None
            held.append((found.maps.double(), found.descent.double()))
    feedback, made = feedback.double(), made.to(dtype=torch.float64)
    seen = replace(seen, photos=images.double(), cameras=Cameras(c2w.double(), K.double(), SIDE, SIDE))

    def loss() -> torch.Tensor:
        state, memory = made, None
        for evidence, descent in held:
            updates, memory = feedback.updates(evidence, descent, memory)
            state = apply(state, updates.double(), seen)
        return (render(state, seen.cameras, backend="reference").rgb - seen.photos).square().mean()

    names = ("read.weight", "near.0.weight", "write.bias", "step")
    parameters = [feedback.get_parameter(name) for name in names]
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss(), parameters), strict=True):
        index = gradient.abs().argmax()
        with torch.no_grad():
            flat = parameter.view(-1)
            step = 1e-8
            flat[index] += step
            above = loss()
            flat[index] -= 2 * step
            below = loss()
            flat[index] += step
        assert ((above - below) / (2 * step)).item() == pytest.approx(gradient.reshape(-1)[index].item(), rel=0.02)


def test_hidden_pixels_pull_at_nothing() -> None:
    images, c2w, K = views()
    model = network(awake=True, evidence=("pixels", "gradients"))
    mask = torch.ones(B, V, SIDE, SIDE, dtype=torch.bool)
    mask[:, :, :, :8] = False
    spoiled = torch.where(mask[..., None], images, torch.rand(images.shape))
    with torch.no_grad():
        first, second = (model(x, c2w, K, mask=mask) for x in (images, spoiled))
    torch.testing.assert_close(first.means, second.means)


def test_odd_grids_and_one_view() -> None:
    model = network(replace(SMALL, patch_size=3, viewpoint_factor=1, uplift=1), awake=True)
    images = torch.rand(1, 1, 9, 15, 3)
    K = torch.tensor([[12.0, 0, 7.5], [0, 12.0, 4.5], [0, 0, 1]])[None, None]
    with torch.no_grad():
        found = model(images, torch.eye(4)[None, None], K)
    assert found.count == 135
    assert found.finite().all()


def test_impossible_configs_are_refused() -> None:
    with pytest.raises(ConfigError, match="evidence"):
        FeedbackConfig(evidence=())
    with pytest.raises(ConfigError, match="channels"):
        FeedbackConfig(channels=0)
    config = replace(SMALL, feedback=FeedbackConfig(iterations=2))
    assert ILRMConfig.from_dict(config.to_dict()) == config


def test_updates_that_make_it_worse_are_taken_back() -> None:
    """Untrained updates at random: no state renders the inputs worse than the one before, in any sample."""
    images, c2w, K = views()
    model = network(awake=True, iterations=4).eval()
    assert model.feedback is not None
    torch.nn.init.normal_(model.feedback.write.bias, std=0.5)
    cameras = Cameras(c2w, K, SIDE, SIDE)

    def errors() -> torch.Tensor:
        with torch.no_grad():
            states = model(images, c2w, K, iterations="feedback")
        return torch.stack([(render(x, cameras).rgb - images).square().flatten(1).mean(1) for x in states])

    guarded = errors()
    assert (guarded.diff(dim=0) <= 1e-6).all()
    assert (guarded.diff(dim=0) == 0).any()  # something was taken back
    model.train()
    assert (errors().diff(dim=0) > 1e-4).any()  # training sees every update
