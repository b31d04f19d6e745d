"""Optional parts of the network: relative camera encoding, learned matching, the pixel head, the paper's ablations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ilrm.core.cameras import Similarity
from ilrm.core.errors import ConfigError
from ilrm.model import ILRM, FootprintDecoder, ILRMConfig, MatchingConfig
from ilrm.model.blocks import UpdateLayer
from ilrm.model.camera_encoding import CameraEncoding
from ilrm.model.compute.attention import attend
from ilrm.model.matching import Match, match_depth
from ilrm.model.matching.net import MatchingNet
from tests.conftest import make_cameras
from tests.model.test_ilrm import FOOTPRINT, MATCHED, TINY, inputs, make
from tests.model.test_matching import textured_plane

LEARNED = replace(MATCHED, matching=MatchingConfig(planes=8, sources=2, window=3, channels=4))


class TestCameraEncoding:
    HEADS, WIDTH, PATCH = 2, 16, 4

    def encoding(self, c2w: torch.Tensor, K: torch.Tensor) -> CameraEncoding:
        return CameraEncoding.of_views(c2w, K, 8, 12, self.PATCH, self.WIDTH)

    def tokens(self) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        return tuple(torch.randn(1, 2 * 2 * 3, self.HEADS, self.WIDTH, generator=generator) for _ in range(3))

    def attended(self, encoding: CameraEncoding) -> torch.Tensor:
        q, k, v = self.tokens()
        return encoding.outputs(attend(encoding.queries(q), encoding.keys(k), encoding.keys(v)))

    def test_agrees_with_one_pair_of_tokens_at_a_time(self) -> None:
        """score(s, t) = q_s^T D_s D_t^-1 k_t and output_s = sum_t p(s, t) D_s D_t^-1 v_t, with D written out whole."""
        cameras = make_cameras(2, 12, 8)
        c2w, K = cameras.c2w[None].float(), cameras.K[None].float()
        q, k, v = (x[0, :, 0].double() for x in self.tokens())
        D = torch.zeros(12, self.WIDTH, self.WIDTH, dtype=torch.float64)
        for t in range(12):
            view, row, column = t // 6, (t % 6) // 3, t % 3
            lift = torch.eye(4, dtype=torch.float64)
            to_unit = torch.tensor([[2 / 12, 0, -1], [0, 2 / 8, -1], [0, 0, 1]], dtype=torch.float64)
            lift[:3, :3] = to_unit @ K[0, view].double()
            P = lift @ torch.linalg.inv(c2w[0, view].double())
            D[t, :4, :4] = D[t, 4:8, 4:8] = P
            for pair, angle in enumerate([column * 1.0, column * 0.1, row * 1.0, row * 0.1]):
                a = torch.tensor(angle, dtype=torch.float64)
                block = slice(8 + 2 * pair, 10 + 2 * pair)
                D[t, block, block] = torch.stack([torch.stack([a.cos(), -a.sin()]), torch.stack([a.sin(), a.cos()])])
        # The camera half transforms queries by P^T, the patch half by the rotation itself (R^T R' = relative rotation).
        relative = torch.empty(12, 12, self.WIDTH, self.WIDTH, dtype=torch.float64)
        for s in range(12):
            for t in range(12):
                relative[s, t, :8, :8] = D[s, :8, :8] @ torch.linalg.inv(D[t, :8, :8])
                relative[s, t, 8:, 8:] = D[s, 8:, 8:].T @ D[t, 8:, 8:]
                relative[s, t, :8, 8:] = relative[s, t, 8:, :8] = 0
        score = torch.einsum("si,stij,tj->st", q, relative, k) / self.WIDTH**0.5
        expected = torch.einsum("st,stij,tj->si", score.softmax(-1), relative, v)
        torch.testing.assert_close(
            self.attended(self.encoding(c2w, K))[0, :, 0].double(), expected, atol=1e-4, rtol=1e-4
        )

    def test_sees_no_world_frame(self) -> None:
        cameras = make_cameras(2, 12, 8)
        turn = torch.linalg.matrix_exp(torch.tensor([[0.0, -0.4, 0.2], [0.4, 0.0, -0.3], [-0.2, 0.3, 0.0]]))
        moved = cameras.transform(Similarity(1.0, turn, torch.tensor([0.5, -1.0, 0.3])))
        first, second = (self.attended(self.encoding(x.c2w[None].float(), x.K[None].float())) for x in (cameras, moved))
        torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)

    def test_resolution_does_not_matter(self) -> None:
        cameras = make_cameras(2, 12, 8)
        first = self.encoding(cameras.c2w[None], cameras.K[None])
        larger = cameras.resize(24, 16)
        second = CameraEncoding.of_views(larger.c2w[None], larger.K[None], 16, 24, 2 * self.PATCH, self.WIDTH)
        torch.testing.assert_close(first.P, second.P, atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_network_uses_it(self) -> None:
        plain = make(FOOTPRINT)
        encoded = ILRM(replace(FOOTPRINT, camera_encoding="prope")).eval()
        encoded.load_state_dict(plain.state_dict())
        assert encoded.parameter_count() == plain.parameter_count()
        data = inputs()
        assert (encoded(*data).opacities - plain(*data).opacities).abs().max() > 1e-6

    def test_needs_divisible_heads(self) -> None:
        with pytest.raises(ConfigError, match="multiple of 8"):
            replace(TINY, width=12, head_width=12, camera_encoding="prope")


class TestLearnedMatching:
    def test_untrained_it_follows_the_correlation(self) -> None:
        images, cameras = textured_plane(3)
        data = images[None], cameras.c2w[None].float(), cameras.K[None].float()
        plain = match_depth(*data, MATCHED)
        learned = match_depth(*data, LEARNED, MatchingNet(8, 4))
        assert learned.logits is not None
        assert learned.logits.shape == (1, 3, 8, 48, 48)
        # The mean over neighbouring planes moves the place by less than a plane.
        assert (learned.fraction - plain.fraction).abs().median() < 1 / 7

    def test_error_is_the_cross_entropy_with_the_planes_around_the_truth(self) -> None:
        logits = torch.randn(1, 1, 8, 1, 2, generator=torch.Generator().manual_seed(2))
        decoder = FootprintDecoder(near=1.0, far=2.0**7)
        match = Match(*torch.zeros(3, 1, 1, 1, 2), logits)
        log_p = logits.log_softmax(2)[0, 0, :, 0]
        # 2^2.25 lies a quarter of the way from plane 2 to plane 3; the second pixel is unknown.
        expected = -(0.75 * log_p[2, 0] + 0.25 * log_p[3, 0])
        torch.testing.assert_close(match.error(torch.tensor([[[[2**2.25, 0.0]]]]), decoder)[0], expected)
        assert match.error(torch.zeros(1, 1, 1, 2), decoder).item() == 0

    def test_learns_what_correlation_cannot_know(self) -> None:
        """On plain walls only the network can find the depth; a few steps on one scene must be enough."""
        torch.manual_seed(0)
        images, cameras = textured_plane(2, size=16)
        grey = torch.full_like(images, 0.4)
        net, decoder = MatchingNet(8, 4), FootprintDecoder()
        true = torch.full((1, 2, 16, 16), 6.0)
        optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
        errors = []
        for _ in range(30):
            match = match_depth(grey[None], cameras.c2w[None].float(), cameras.K[None].float(), LEARNED, net)
            error = match.error(true, decoder).mean()
            optimiser.zero_grad()
            error.backward()
            optimiser.step()
            errors.append(error.item())
        assert errors[-1] < 0.6 * errors[0]

    @torch.no_grad()
    def test_fine_sweep_is_nearer_to_the_truth(self) -> None:
        images, cameras = textured_plane(3)
        data = images[None], cameras.c2w[None].float(), cameras.K[None].float()
        true = torch.log(6 / cameras.rays()[1][..., 2] / 0.2) / torch.log(torch.tensor(400 / 0.2))
        errors = []
        for fine in (0, 9):
            config = replace(LEARNED, matching=MatchingConfig(planes=24, sources=2, window=5, channels=4, fine=fine))
            match = match_depth(*data, config, MatchingNet(24, 4, fine=fine > 0))
            errors.append((match.fraction[0] - true).abs()[:, 4:-4, 4:-4].mean())
        assert errors[1] < 0.8 * errors[0]

    def test_rendering_can_move_the_depth(self) -> None:
        model = make(LEARNED)
        assert model.matching is not None
        gaussians, match = model(*inputs(), with_match=True)
        assert match is not None
        gaussians.means.square().mean().backward()
        assert model.matching.sharpness.grad is not None
        assert model.matching.sharpness.grad.abs() > 0

    @torch.no_grad()
    def test_samples_do_not_mix(self) -> None:
        model = make(LEARNED)
        data = inputs(batch=2)
        both, alone = model(*data), model(*(x[1:] for x in data))
        torch.testing.assert_close(both[1].means, alone[0].means, atol=1e-4, rtol=1e-4)

    @torch.no_grad()
    def test_one_view_is_enough(self) -> None:
        assert make(LEARNED)(*inputs(1)).finite().all()


class TestPixelHead:
    @torch.no_grad()
    def test_starts_as_nothing(self) -> None:
        plain = make(MATCHED)
        headed = ILRM(replace(MATCHED, pixel_head=8)).eval()
        headed.load_state_dict(plain.state_dict(), strict=False)
        data = inputs()
        torch.testing.assert_close(headed(*data).means, plain(*data).means)

    def test_reads_its_neighbours_match_and_colour(self) -> None:
        model = ILRM(replace(MATCHED, pixel_head=8))
        assert model.pixel_head is not None
        torch.nn.init.normal_(model.pixel_head.write.weight, std=0.1)
        model(*inputs()).opacities.sum().backward()
        grad = model.pixel_head.read.weight.grad
        assert grad is not None
        assert (grad.abs().amax((0, 2, 3))[-6:] > 0).all()


class TestAblations:
    def test_one_cross_attention_only(self) -> None:
        model = make(replace(TINY, layers=3, cross_attention="first"))
        assert [isinstance(layer, UpdateLayer) and layer.reads for layer in model.layers] == [True, False, False]
        assert not any("layers.1.cross" in name for name, _ in model.named_parameters())
        assert model(*inputs()).finite().all()

    @torch.no_grad()
    def test_without_self_attention_views_stay_alone(self) -> None:
        model = make(replace(TINY, self_attention=False))
        images, c2w, K = inputs(3, 32, 16)
        changed = images.clone()
        changed[:, 2] = 1 - changed[:, 2]
        first, second = model(images, c2w, K), model(changed, c2w, K)
        per_view = len(first.means[0]) // 3
        torch.testing.assert_close(first.means[:, : 2 * per_view], second.means[:, : 2 * per_view])
        assert (first.means[:, 2 * per_view :] - second.means[:, 2 * per_view :]).abs().max() > 1e-3

    @torch.no_grad()
    def test_images_at_viewpoint_resolution(self) -> None:
        """Two images with the same 2x2 block means are the same to it."""
        model = make(replace(TINY, image_factor=2, uplift=1))
        images, c2w, K = inputs(2, 32, 16)
        flipped = images.unflatten(3, (-1, 2)).flip(4).flatten(3, 4)
        torch.testing.assert_close(model(images, c2w, K).means, model(flipped, c2w, K).means)
        full = make(replace(TINY, uplift=1))
        assert (full(images, c2w, K).means - full(flipped, c2w, K).means).abs().max() > 1e-3

    def test_contradictions(self) -> None:
        with pytest.raises(ConfigError, match="image_factor = 3"):
            replace(TINY, image_factor=3)
        with pytest.raises(ConfigError, match="more queries"):
            replace(TINY, image_factor=2)
        with pytest.raises(ConfigError, match="channels = 3"):
            MatchingConfig(channels=3)
        with pytest.raises(ConfigError, match="fine = 5"):
            MatchingConfig(fine=5)

    def test_configs_survive_a_file(self) -> None:
        config = replace(LEARNED, camera_encoding="prope", pixel_head=8, self_attention=True)
        assert ILRMConfig.from_dict(config.to_dict()) == config
