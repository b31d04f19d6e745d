"""Plane-sweep matching finds true depth on textured scenes, and marks pixels where it cannot."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ilrm.core.cameras import Cameras, normalise
from ilrm.core.errors import ConfigError
from ilrm.datasets.procedural import ProceduralConfig, make_batch
from ilrm.model import FootprintDecoder, ILRMConfig, MatchingConfig
from ilrm.model.hidden import fill_hidden, hidden_pixels
from ilrm.model.matching.consistency import cross_check
from ilrm.model.matching.net import MatchingNet, interpolate_by_products
from ilrm.model.matching.sweep import _fill, match_depth
from ilrm.model.matching.view_geometry import source_views
from tests.devices.launches import Launches

CONFIG = ILRMConfig(
    decoder=FootprintDecoder(), matching=MatchingConfig(planes=64, sources=3), image_channels=("rgb", "match")
)


def textured_plane(views: int = 4, size: int = 48) -> tuple[torch.Tensor, Cameras]:
    """Views of a wall at z = 6 with a smooth random texture, cameras side by side."""
    c2w = torch.eye(4).repeat(views, 1, 1)
    c2w[:, 0, 3] = torch.linspace(-1, 1, views)
    K = torch.tensor([[size, 0, size / 2], [0, size, size / 2], [0, 0, 1.0]]).repeat(views, 1, 1)
    cameras = Cameras(c2w, K, size, size)
    origins, directions = cameras.rays()
    x, y = (origins + directions * (6 / directions[..., 2:])).unbind(-1)[:2]
    colour = [
        0.5 + 0.2 * torch.sin(5 * x + i) * torch.cos(4 * y - i) + 0.2 * torch.sin(3 * x * y + i) for i in range(3)
    ]
    return torch.stack(colour, -1).clamp(0, 1), cameras


def test_depth_of_a_textured_wall() -> None:
    images, cameras = textured_plane()
    match = match_depth(images[None], cameras.c2w[None], cameras.K[None], CONFIG)
    decoder = FootprintDecoder()
    distance = decoder.near * (decoder.far / decoder.near) ** match.fraction[0]
    depth = distance * cameras.rays()[1][..., 2]
    relative = (depth / 6 - 1).abs()[:, 4:-4, 4:-4]
    assert relative.median() < 0.01
    assert (relative < 0.05).float().mean() > 0.95
    assert match.score[0, :, 4:-4, 4:-4].median() > 0.9
    assert match.agreement[0, :, 4:-4, 4:-4].median() > 0.8


@pytest.mark.parametrize("learned", [0, 4], ids=["plain", "learned"])
def test_a_batch_is_its_samples(learned: int) -> None:
    """Samples folded into views, and planes taken together or one by one, change nothing but rounding."""
    batch = make_batch(range(40, 43), ProceduralConfig(views=4, width=48, height=32))
    c2w = torch.stack([normalise(Cameras(batch.c2w[b], batch.K[b], 48, 32))[0].c2w for b in range(3)])
    config = replace(CONFIG, matching=MatchingConfig(planes=16, sources=2, channels=learned, fine=5 if learned else 0))
    net = MatchingNet(16, learned, fine=True) if learned else None
    with torch.no_grad():
        together = match_depth(batch.images, c2w, batch.K, config, net)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("ilrm.model.matching.view_geometry._MOST_VALUES", {"cpu": 1, "cuda": 1})
            alone = [match_depth(batch.images[[b]], c2w[[b]], batch.K[[b]], config, net) for b in range(3)]
    for name in ("fraction", "score", "agreement"):
        apart = torch.cat([getattr(match, name) for match in alone]) - getattr(together, name)
        # A point on the border of two pixels may fall on either side.
        assert (apart.abs() < 1e-4).float().mean() > 0.995, name


def test_launches_of_matching_and_cross_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU every operation is a launch, whatever its size. The card once waited for 25,660 of them."""
    monkeypatch.setattr("ilrm.model.matching.view_geometry._MOST_VALUES", {"cpu": 1 << 28, "cuda": 1 << 28})
    config = replace(CONFIG, matching=MatchingConfig(planes=48, sources=3, window=5, channels=16, fine=9))
    batch = make_batch(range(40, 44), ProceduralConfig(views=8, width=32, height=32))
    c2w = torch.stack([normalise(Cameras(batch.c2w[b], batch.K[b], 32, 32))[0].c2w for b in range(4)])
    net, decoder = MatchingNet(48, 16, fine=True), FootprintDecoder()
    with torch.no_grad(), Launches() as launches:
        match = match_depth(batch.images, c2w, batch.K, config, net)
        cross_check(match, batch.images, c2w, batch.K, decoder)
    assert launches.count <= 700


def test_plain_walls_score_low() -> None:
    images, cameras = textured_plane()
    match = match_depth(torch.full_like(images, 0.5)[None], cameras.c2w[None], cameras.K[None], CONFIG)
    assert match.score.abs().max() < 0.05


def test_disagreeing_pixels_are_filled_from_around_them() -> None:
    values = torch.full((1, 1, 13, 10), 0.25)
    weights = torch.ones_like(values)
    values[..., 3:6, 4:7], weights[..., 3:6, 4:7] = 0.9, 0.0
    assert (_fill(values, weights) - 0.25).abs().max() < 1e-6
    untouched = torch.rand(1, 1, 7, 5)
    torch.testing.assert_close(_fill(untouched, torch.ones_like(untouched)), untouched)
    assert torch.isfinite(_fill(values, torch.zeros_like(values))).all()


def test_single_view_has_no_opinion() -> None:
    images, cameras = textured_plane(1)
    match = match_depth(images[None], cameras.c2w[None], cameras.K[None], CONFIG)
    assert (match.fraction == 0.5).all()
    assert (match.score == -1).all()
    assert (match.agreement == 0).all()


def test_views_that_see_nothing_in_common_are_unseen() -> None:
    images, cameras = textured_plane(2)
    c2w = cameras.c2w.clone()
    c2w[1, :3, :3] = torch.diag(torch.tensor([-1.0, 1, -1]))  # looks the other way
    c2w[1, :3, 3] = torch.tensor([0.0, 0, -5])
    match = match_depth(images[None], c2w[None], cameras.K[None], CONFIG)
    assert (match.score == -1).all()


def test_sources_are_the_nearest_views_that_look_the_same_way() -> None:
    c2w = torch.eye(4).repeat(4, 1, 1)
    c2w[:, 0, 3] = torch.tensor([0.0, 1.0, 2.5, 0.1])
    c2w[3, :3, :3] = torch.diag(torch.tensor([-1.0, 1, -1]))
    assert source_views(c2w, 2).tolist() == [[1, 2], [0, 2], [1, 0], [0, 1]]
    assert source_views(c2w, 9).shape == (4, 3)


def test_most_pixels_of_procedural_scenes_are_matched() -> None:
    batch = make_batch(range(40, 43), ProceduralConfig(views=4, width=128, height=128, baseline=(0.3, 0.8)))
    decoder, medians = FootprintDecoder(), []
    for b in range(3):
        cameras, to_world = normalise(Cameras(batch.c2w[b], batch.K[b], 128, 128))
        match = match_depth(batch.images[b][None], cameras.c2w[None], cameras.K[None], CONFIG)
        distance = decoder.near * (decoder.far / decoder.near) ** match.fraction[0]
        depth = torch.einsum("vhwc,vc->vhw", cameras.rays()[1], cameras.forward) * distance
        true = batch.depth[b] / to_world.scale
        medians.append(((depth - true).abs() / true).median())
    assert torch.stack(medians).median() < 0.15


def test_needs_its_config() -> None:
    images, cameras = textured_plane(2)
    with pytest.raises(ConfigError):
        match_depth(images[None], cameras.c2w[None], cameras.K[None], replace(ILRMConfig()))


def test_nothing_is_matched_with_hidden_pixels() -> None:
    """Squares of noise in two views: with them hidden, the rest finds the wall and they take its depth."""
    images, cameras = textured_plane()
    hidden = torch.zeros(1, 4, 48, 48, dtype=torch.bool)
    hidden[:, 1, 10:34, 8:30] = True
    hidden[:, 2, 14:40, 16:36] = True
    noise = torch.rand(4, 48, 48, 3, generator=torch.Generator().manual_seed(0))
    spoiled = torch.where(hidden[0, ..., None], noise, images)
    decoder, inner = FootprintDecoder(), (slice(None), slice(4, -4), slice(4, -4))
    errors = []
    for covered in (None, hidden):
        match = match_depth(spoiled[None], cameras.c2w[None], cameras.K[None], CONFIG, hidden=covered)
        depth = decoder.near * (decoder.far / decoder.near) ** match.fraction[0] * cameras.rays()[1][..., 2]
        errors.append((depth / 6 - 1).abs())
    counting = ~hidden[0][inner]
    assert errors[1][inner][counting].quantile(0.95) < 0.8 * errors[0][inner][counting].quantile(0.95)
    assert errors[1][hidden[0]].max() < 0.8 * errors[0][hidden[0]].max()


def test_hidden_pixels_are_filled_from_around_and_blocks_are_hidden_whole() -> None:
    images = torch.zeros(1, 1, 12, 20, 3)
    images[..., 10:, :] = 1.0
    mask = torch.ones(1, 1, 12, 20, dtype=torch.bool)
    mask[..., 3:9, 1:7] = False
    mask[..., 3:9, 13:18] = False
    filled = fill_hidden(torch.where(mask[..., None], images, 7.0), mask)
    assert (filled - images).abs().max() < 1e-5
    assert (fill_hidden(images, torch.zeros_like(mask)) == 0.5).all()
    coarse = hidden_pixels(mask, 6, 10)[0, 0]
    assert coarse[1:5, 0:4].all()
    assert coarse.sum() == 4 * (4 + 3)


@pytest.mark.parametrize("size", [(8, 10, 6), (7, 9, 5), (4, 5, 3), (1, 1, 1)])
def test_interpolating_by_products_is_trilinear(size: tuple[int, int, int]) -> None:
    x = torch.randn(2, 3, 4, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    expected = torch.nn.functional.interpolate(x, size=size, mode="trilinear", align_corners=False)
    found = interpolate_by_products(x, size)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (there,) = torch.autograd.grad((expected * weights).sum(), x)
    (here,) = torch.autograd.grad((found * weights).sum(), x)
    torch.testing.assert_close(here, there)
