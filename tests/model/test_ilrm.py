"""Properties of the network beyond the released configurations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ilrm.core.cameras import normalise
from ilrm.core.errors import ConfigError
from ilrm.core.precision import autocast
from ilrm.model import ILRM, ComputeConfig, FootprintDecoder, ILRMConfig, MatchingConfig, ReleasedDecoder
from ilrm.model.compute.mini_batch import subset
from ilrm.model.config import MiniBatch
from ilrm.model.tokens import fit_size
from tests.conftest import make_cameras

TINY = ILRMConfig(width=32, head_width=16, layers=2, patch_size=4)
FOOTPRINT = replace(TINY, decoder=FootprintDecoder())
MATCHED = replace(
    FOOTPRINT,
    matching=MatchingConfig(planes=8, sources=2, window=3),
    image_channels=("rgb", "moment", "direction", "match"),
)


def inputs(views: int = 3, width: int = 32, height: int = 24, batch: int = 1) -> tuple[torch.Tensor, ...]:
    cameras = [normalise(make_cameras(views, width, height, seed=b))[0] for b in range(batch)]
    images = torch.rand(batch, views, height, width, 3, generator=torch.Generator().manual_seed(1))
    return images, torch.stack([c.c2w for c in cameras]), torch.stack([c.K for c in cameras])


def make(config: ILRMConfig, seed: int = 0) -> ILRM:
    """A random network; the footprint decoder, which would start at zero, is drawn too."""
    torch.manual_seed(seed)
    model = ILRM(config).eval()
    torch.nn.init.normal_(model.decoder.weight, std=0.02)
    return model


def test_full_size_parameter_counts() -> None:
    with torch.device("meta"):
        assert ILRM(ILRMConfig.released_two_view()).parameter_count() == 171_336_960
        assert ILRM(ILRMConfig.released_wide()).parameter_count() == 185_885_952


@pytest.mark.parametrize("decoder", [ReleasedDecoder(), FootprintDecoder()], ids=["released", "footprint"])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_shapes(decoder: ReleasedDecoder | FootprintDecoder, degree: int, factor: int) -> None:
    """(V, F, F), (V, H, F) and (V, Q, F) give V * H * W / r^2 Gaussians of any SH degree."""
    uplift = {1: 1, 2: 2, 4: 4}[factor]
    config = replace(TINY, decoder=decoder, sh_degree=degree, viewpoint_factor=factor, uplift=uplift)
    gaussians = make(config)(*inputs(2, 32, 16, batch=2))
    count = 2 * (32 // factor) * (16 // factor)
    assert gaussians.means.shape == (2, count, 3)
    assert gaussians.sh.shape == (2, count, (degree + 1) ** 2, 3)
    assert gaussians.finite().all()
    assert (gaussians.scales > 0).all()
    torch.testing.assert_close(gaussians.quats.norm(dim=-1), torch.ones(2, count))


@torch.no_grad()
@pytest.mark.parametrize("size", [(17, 33), (8, 8), (5, 3), (40, 23)])
def test_any_size_is_rounded_not_refused(size: tuple[int, int]) -> None:
    width, height = size
    gaussians = make(FOOTPRINT)(*inputs(2, width, height))
    rounded = [max(8, int(side / 8 + 0.5) * 8) for side in size]
    assert gaussians.count == 2 * rounded[0] * rounded[1] // 4
    assert gaussians.finite().all()


@torch.no_grad()
def test_rounded_sizes_see_the_same_world() -> None:
    """Stretching image and intrinsics together leaves every ray where it was."""
    images, _, K = inputs(1, 36, 28)  # stretched to 40 x 32
    stretched, K_stretched = fit_size(images, K, 8)
    assert stretched.shape[2:4] == (32, 40)
    x = torch.tensor([0.0, 0.0, 1.0])
    torch.testing.assert_close(
        K_stretched[0, 0] @ x / torch.tensor([40, 32, 1]), K[0, 0] @ x / torch.tensor([36, 28, 1])
    )


@torch.no_grad()
@pytest.mark.parametrize("views", [1, 2, 5])
def test_any_view_count(views: int) -> None:
    for config in (TINY, MATCHED):
        assert make(config)(*inputs(views)).finite().all()


@torch.no_grad()
@pytest.mark.parametrize("config", [TINY, MATCHED], ids=["plain", "matched"])
def test_order_of_views_only_permutes_the_gaussians(config: ILRMConfig) -> None:
    images, c2w, K = inputs(3)
    model, order = make(config), [2, 0, 1]
    a = model(images, c2w, K).means.unflatten(1, (3, -1))
    b = model(images[:, order], c2w[:, order], K[:, order]).means.unflatten(1, (3, -1))
    torch.testing.assert_close(a[:, order], b, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_batch_elements_do_not_mix() -> None:
    images, c2w, K = inputs(2, batch=2)
    model = make(MATCHED)
    both, alone = model(images, c2w, K), model(images[1:], c2w[1:], K[1:])
    torch.testing.assert_close(both[1].means, alone[0].means, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_cross_attention_stays_inside_a_view() -> None:
    """After one layer's reading, changing the image of view 1 changes the tokens of view 1 alone."""
    images, c2w, K = inputs(3)
    changed = images.clone()
    changed[:, 1] = 1 - changed[:, 1]
    model = make(TINY)
    tokens = []
    for image in (images, changed):
        given = model.decoder_inputs(image, c2w, K)
        s = model.make_image_tokens(image, c2w, K, given)
        z = model.make_viewpoint_tokens(given)
        tokens.append(model.layers[0].read(z.unflatten(1, (3, -1))[0], s))
    moved = (tokens[0] - tokens[1]).abs().amax((1, 2))
    assert moved[1] > 1e-4
    assert moved[0] == moved[2] == 0


@torch.no_grad()
def test_iterations_decode_every_layer_and_end_with_the_result() -> None:
    model = make(FOOTPRINT)
    every = model(*inputs(), iterations=True)
    last = model(*inputs())
    assert every.means.shape == (2, *last.means.shape)
    torch.testing.assert_close(every.means[-1], last.means, atol=0, rtol=0)
    assert not torch.equal(every.means[0], every.means[1])


def test_checkpointing_changes_no_gradient() -> None:
    given = inputs()
    gradients = []
    for checkpointed in (False, True):
        model = make(FOOTPRINT)
        model.compute = ComputeConfig(checkpoint=checkpointed)
        model(*given).means.sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@torch.no_grad()
@pytest.mark.parametrize("config", [TINY, FOOTPRINT], ids=["released", "footprint"])
def test_bf16_stays_close_to_fp32(config: ILRMConfig) -> None:
    model, given = make(config), inputs(4)
    exact = model.logits(*given)[-1]
    with autocast("bf16", torch.device("cpu")):
        half = model.logits(*given)[-1]
    assert half.means.dtype == torch.float32
    for name in ("sh", "log_scales", "opacity_logits"):
        error = (getattr(half, name) - getattr(exact, name)).square().mean().sqrt()
        assert 0 < error < 0.02 * max(1.0, float(getattr(exact, name).std()))


class TestMiniBatch:
    def test_consecutive_layers_cover_every_token_once(self) -> None:
        for kind, period in (("half", 2), ("quarter", 4)):
            seen = torch.zeros(6 * 4)
            images = torch.zeros(12 * 8)
            for layer in range(period):
                chosen = subset(kind, layer, 6, 4, 2, training=False, device=torch.device("cpu"))
                assert chosen is not None
                assert len(chosen[0]) == 24 // period
                assert len(chosen[1]) == 96 // period
                seen[chosen[0]] += 1
                images[chosen[1]] += 1
            assert (seen == 1).all()
            assert (images == 1).all()

    def test_image_tokens_lie_under_their_viewpoint_tokens(self) -> None:
        chosen = subset("quarter", 1, 4, 4, 2, training=False, device=torch.device("cpu"))
        assert chosen is not None
        below = {(int(m) // 8 // 2) * 4 + (int(m) % 8) // 2 for m in chosen[1]}
        assert below == set(chosen[0].tolist())

    def test_random_is_fixed_in_evaluation_and_drawn_in_training(self) -> None:
        def draw(training: bool) -> list[int]:
            chosen = subset("random", 0, 8, 8, 1, training=training, device=torch.device("cpu"))
            assert chosen is not None
            return chosen[0].tolist()

        assert draw(False) == draw(False)
        assert len(draw(True)) == 16
        torch.manual_seed(3)
        first = draw(True)
        assert first != draw(True)
        torch.manual_seed(3)
        assert first == draw(True)

    @torch.no_grad()
    @pytest.mark.parametrize("kind", ["half", "quarter", "random"])
    def test_only_the_subset_is_read_and_updated(self, kind: MiniBatch) -> None:
        model, given = make(TINY), inputs(2)
        prepared = model.decoder_inputs(*given)
        z = model.make_viewpoint_tokens(prepared)
        s = model.make_image_tokens(*given, prepared)
        chosen = subset(kind, 0, 3, 4, 2, training=False, device=z.device)
        assert chosen is not None
        layer = model.layers[0]
        layer.exchange = lambda x, cameras, plan: x  # type: ignore[method-assign]
        after = layer(z, s, chosen).reshape(2, 12, -1)
        moved = (after - z.reshape(2, 12, -1)).abs().amax((0, 2)) > 0
        assert moved.nonzero()[:, 0].tolist() == chosen[0].tolist()
        other = s.clone()
        untouched = [m for m in range(s.shape[1]) if m not in set(chosen[1].tolist())]
        other[:, untouched] += 1
        torch.testing.assert_close(layer(z, other, chosen).reshape(2, 12, -1), after, atol=0, rtol=0)

    @torch.no_grad()
    def test_a_grid_too_small_for_the_lattice_falls_back_to_all(self) -> None:
        model = make(TINY)
        model.compute = ComputeConfig(mini_batch="quarter")
        assert model(*inputs(2, 8, 8)).finite().all()


@torch.no_grad()
def test_untrained_footprint_decoder_shows_the_photos() -> None:
    """Colour of the own pixel, distance in the middle of the log range."""
    model = ILRM(FOOTPRINT).eval()
    images, c2w, K = inputs(2)
    gaussians = model(images, c2w, K)
    pixels = images.unflatten(2, (12, 2)).unflatten(4, (16, 2)).mean((3, 5)).reshape(1, -1, 3)
    torch.testing.assert_close(gaussians.sh[..., 0, :] * 0.28209479177387814 + 0.5, pixels)
    decoder = FootprintDecoder()
    distance = (gaussians.means.unflatten(1, (2, -1)) - c2w[:, :, None, :3, 3]).norm(dim=-1)
    torch.testing.assert_close(distance, torch.full_like(distance, (decoder.near * decoder.far) ** 0.5))


@torch.no_grad()
@pytest.mark.parametrize("factor", [1, 2])
def test_smoothing_is_in_pixels_of_the_own_image(factor: int) -> None:
    config = replace(FOOTPRINT, viewpoint_factor=factor, uplift=factor)
    smooth = replace(config, decoder=FootprintDecoder(smoothing=0.2))
    images, c2w, K = inputs(2, 32, 24)
    sharp, wide = (make(c)(images, c2w, K) for c in (config, smooth))
    distance = (sharp.means.unflatten(1, (2, -1)) - c2w[:, :, None, :3, 3]).norm(dim=-1)
    pixel = (0.5 * (1 / K[..., 0, 0] + 1 / K[..., 1, 1]))[..., None] * distance
    torch.testing.assert_close(
        wide.scales.square(), sharp.scales.square() + 0.2 * pixel.flatten(1)[..., None].square(), check_dtype=False
    )
    torch.testing.assert_close(wide.means, sharp.means)
    for wrong in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="smoothing"):
            FootprintDecoder(smoothing=wrong)


def test_contradictory_configs_fail_when_built() -> None:
    for wrong in (
        {"width": 30},
        {"layers": 0},
        {"sh_degree": 4},
        {"uplift": 5},
        {"matching": MatchingConfig()},
        {"image_channels": ("rgb", "match")},
    ):
        with pytest.raises(ConfigError):
            replace(TINY, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        FootprintDecoder(near=2.0, far=1.0)
    with pytest.raises(ConfigError):
        MatchingConfig(window=4)


def test_config_survives_json() -> None:
    for config in (ILRMConfig.released_two_view(), ILRMConfig.released_wide(), MATCHED):
        assert ILRMConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match="no network config"):
        ILRMConfig.from_dict({"width": 3})
