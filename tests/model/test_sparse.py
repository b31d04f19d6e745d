"""Sparse points speak for the depth of pixels, with a weight: beside slow loops over points and pixels."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ilrm import ILRM
from ilrm.core.cameras import Cameras
from ilrm.model import FootprintDecoder, ILRMConfig, MatchingConfig
from ilrm.model.matching import sparse
from ilrm.model.matching.sparse import SparsePoints, Votes
from ilrm.model.matching.sweep import match_depth
from tests.model.test_matching import CONFIG, textured_plane

DECODER = FootprintDecoder()
LOG_RANGE = math.log(DECODER.far / DECODER.near)
PLANES = 12
LEARNED = replace(CONFIG, matching=MatchingConfig(planes=48, sources=3, channels=4, fine=5))


def some_points(cameras: Cameras, count: int, seed: int = 0) -> SparsePoints:
    """Of all kinds: in images or not, behind cameras, hidden by others, of other colours."""
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.randn(2, count, 3, generator=generator) * torch.tensor([2.0, 2.0, 4.0]) + torch.tensor([0, 0, 5.0])
    return SparsePoints(xyz, torch.rand(2, count, 3, generator=generator))


@pytest.fixture(scope="module")
def views() -> tuple[torch.Tensor, Cameras]:
    """Two samples of three views of 20 x 14 pixels."""
    images, cameras = textured_plane(3, 20)
    pair = Cameras(cameras.c2w.expand(2, -1, -1, -1), cameras.K.expand(2, -1, -1, -1), 20, 14)
    return torch.stack([images[:, :14], images[:, 6:]]), pair


def seen_slowly(points: SparsePoints, rgb: torch.Tensor, cameras: Cameras) -> dict[tuple[int, int], list]:
    """(place, fraction, weight) of every point, for each (sample, view): one point after the other."""
    found = {}
    assert points.rgb is not None
    B, V, H, W, _ = rgb.shape
    for b in range(B):
        for v in range(V):
            R, c = cameras.c2w[b, v, :3, :3], cameras.c2w[b, v, :3, 3]
            local = [R.T @ (p - c) for p in points.xyz[b]]
            pixel = [(cameras.K[b, v] @ p)[:2] / p[2] for p in local]
            ahead = [p[2] > 0 and 0 < x[0] < W and 0 < x[1] < H for p, x in zip(local, pixel, strict=True)]
            rows = []
            for i, (p, x) in enumerate(zip(local, pixel, strict=True)):
                cell = (x / sparse._CELL).floor()
                others = [
                    q[2]
                    for q, y, inside in zip(local, pixel, ahead, strict=True)
                    if inside and ((y / sparse._CELL).floor() - cell).abs().max() <= 1
                ]
                fraction = (p.norm() / DECODER.near).log() / LOG_RANGE
                weight = 0.0
                if (
                    ahead[i]
                    and p[2] <= sparse._FARTHER * (sorted(others)[1] if len(others) > 1 else math.inf)
                    and 0 < fraction < 1
                ):
                    apart = (points.rgb[b, i] - rgb[b, v, int(x[1]), int(x[0])]) / sparse._OTHER_COLOUR
                    weight = math.exp(-0.5 * apart.square().sum())
                rows.append((x, fraction, weight))
            found[b, v] = rows
    return found


def kernel(image: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """(H, W) of a point at a place."""
    row, column = (x.flatten() for x in torch.meshgrid(torch.arange(14), torch.arange(20), indexing="ij"))
    own = int(place[1]), int(place[0])
    away = (column + 0.5 - place[0]) ** 2 + (row + 0.5 - place[1]) ** 2
    unlike = (image[row, column] - image[own]).square().sum(-1)
    within = ((row - own[0]).abs() <= sparse._REACH) & ((column - own[1]).abs() <= sparse._REACH)
    return torch.where(within, torch.exp(-0.5 * (away / sparse._SPREAD**2 + unlike / sparse._ALIKE**2)), 0).view(14, 20)


@pytest.mark.parametrize("at_a_time", [1, 1 << 20])
def test_logits_are_those_of_a_loop(
    views: tuple[torch.Tensor, Cameras], at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ilrm.model.matching.view_geometry._MOST_VALUES", {"cpu": at_a_time, "cuda": at_a_time})
    rgb, cameras = views
    points = some_points(cameras, 60)
    votes = Votes.cast(points, rgb, cameras.c2w, cameras.K, DECODER)
    slow = torch.zeros(2, 3, PLANES, 14, 20)
    counted = 0
    for (b, v), rows in seen_slowly(points, rgb, cameras).items():
        for place, fraction, weight in (row for row in rows if row[2] > 0):
            counted += 1
            for plane in range(PLANES):
                share = max(0.0, 1 - abs(fraction * (PLANES - 1) - plane))
                slow[b, v, plane] += weight * share * kernel(rgb[b, v], place)
    slow = sparse._WEIGHT * slow / (slow.sum(2, keepdim=True) + sparse._DOUBT)
    assert 30 < counted < 2 * 3 * 60 - 30  # some are seen, some are not
    torch.testing.assert_close(votes.logits(PLANES).unflatten(0, (2, 3)), slow, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("at_a_time", [1, 1 << 20])
def test_the_pull_is_that_of_a_loop(
    views: tuple[torch.Tensor, Cameras], at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ilrm.model.matching.view_geometry._MOST_VALUES", {"cpu": at_a_time, "cuda": at_a_time})
    rgb, cameras = views
    points = some_points(cameras, 60)
    votes = Votes.cast(points, rgb, cameras.c2w, cameras.K, DECODER)
    found = torch.full((2, 3, 14, 20), math.log(5 / DECODER.near) / LOG_RANGE) + 0.01 * torch.rand(2, 3, 14, 20)
    total, moved = torch.zeros(2, 3, 14, 20), torch.zeros(2, 3, 14, 20)
    for (b, v), rows in seen_slowly(points, rgb, cameras).items():
        for place, fraction, weight in (row for row in rows if row[2] > 0):
            apart = fraction - found[b, v, int(place[1]), int(place[0])]
            trust = weight * math.exp(-0.5 * (apart * LOG_RANGE / sparse._CLOSE) ** 2)
            total[b, v] += trust * kernel(rgb[b, v], place)
            moved[b, v] += trust * apart * kernel(rgb[b, v], place)
    shift, vouched = votes.pull(found.flatten(0, 1), LOG_RANGE)
    assert moved.abs().max() > 0
    torch.testing.assert_close(shift.unflatten(0, (2, 3)), moved / (total + sparse._DOUBT), atol=1e-5, rtol=1e-3)
    expected = sparse._VOUCHED * total / (total + sparse._DOUBT)
    torch.testing.assert_close(vouched.unflatten(0, (2, 3)), expected, atol=1e-5, rtol=1e-3)


def one_view() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """rgb, c2w and K of a grey view along z."""
    K = torch.tensor([[20.0, 0, 10], [0, 20, 10], [0, 0, 1]])
    return torch.full((1, 1, 20, 20, 3), 0.5), torch.eye(4)[None, None], K[None, None]


def test_what_a_view_does_not_see_says_nothing() -> None:
    front, behind_it, beside_it = [[0.0, 0, 4], [0.1, 0, 4.1]], [0.02, 0, 6], [2.7, 0, 6]
    outside, back = [4.0, 0, 4], [0.0, 0, -4]
    points = SparsePoints(torch.tensor([[*front, behind_it, beside_it, outside, back]]))
    hidden = torch.zeros(1, 1, 20, 20, dtype=torch.bool)
    assert Votes.cast(points, *one_view(), DECODER, hidden).weight.tolist() == [[1, 1, 0, 1, 0, 0]]
    hidden[..., 10, 10] = True  # where the first two are
    assert Votes.cast(points, *one_view(), DECODER, hidden).weight.tolist() == [[0, 0, 0, 1, 0, 0]]


def test_one_point_before_others_does_not_hide_them() -> None:
    points = SparsePoints(torch.tensor([[[0.0, 0, 1], [0.1, 0, 6], [0.0, 0.1, 6.1]]]))
    assert Votes.cast(points, *one_view(), DECODER).weight.tolist() == [[1, 1, 1]]


def test_a_point_of_another_colour_than_the_photo_counts_less() -> None:
    xyz = torch.tensor([[[0.0, 0, 4], [2.7, 0, 6]]])
    weight = Votes.cast(SparsePoints(xyz, torch.tensor([[[0.5] * 3, [1.0] * 3]])), *one_view(), DECODER).weight[0]
    assert weight[0] == 1
    assert 0 < weight[1] < 0.01


def points_of_the_wall(images: torch.Tensor, cameras: Cameras, depth: float, pixels: list) -> SparsePoints:
    """Points at a depth behind pixels (x, y) of the second view, in its colours."""
    width = cameras.width  # as the focal length
    local = torch.tensor(
        [[(x + 0.5) / width * depth - depth / 2, (y + 0.5) / width * depth - depth / 2, depth] for x, y in pixels]
    )
    rgb = torch.stack([images[1, y, x] for x, y in pixels])
    return SparsePoints((local + cameras.centers[1])[None], rgb[None])


@pytest.mark.parametrize("learned", [False, True], ids=["plain", "learned"])
def test_points_give_depth_where_there_is_no_texture(learned: bool) -> None:
    images, cameras = textured_plane(3, 32)
    grey = torch.full_like(images, 0.5)
    pixels = [(x, y) for x in range(2, 32, 4) for y in range(2, 32, 4)]
    points = points_of_the_wall(grey, cameras, 6.0, pixels)
    torch.manual_seed(0)
    config = LEARNED if learned else CONFIG
    net = ILRM(config).eval().matching
    inner = (0, slice(None), slice(6, -6), slice(6, -6))
    errors = []
    for given in (None, points):
        with torch.no_grad():
            match = match_depth(grey[None], cameras.c2w[None], cameras.K[None], config, net, None, given)
        distance = DECODER.near * torch.exp(LOG_RANGE * match.fraction[inner])
        depth = distance * cameras.rays()[1][..., 2][inner[1:]]
        errors.append((depth / 6 - 1).abs().median().item())
    assert errors[0] > 0.2
    assert errors[1] < 0.05


@pytest.mark.parametrize("depth", [2.5, 12.0])
def test_a_wrong_point_does_not_move_what_matched(depth: float) -> None:
    """With the bundled weights, whose logits are sure of a textured wall; the depth stays within 5 %."""
    images, cameras = textured_plane(4)
    model = ILRM.from_pretrained("ilrm-small")
    pixels = [(12, 12), (24, 24), (36, 20)]
    wrong = points_of_the_wall(images, cameras, depth, pixels)
    with torch.no_grad():
        matches = [
            match_depth(images[None], cameras.c2w[None], cameras.K[None], model.config, model.matching, None, points)
            for points in (None, wrong)
        ]
    assert (matches[0].logits != matches[1].logits).any()  # type: ignore[operator]
    ratio = torch.exp(LOG_RANGE * (matches[1].fraction - matches[0].fraction))[0, :, 4:-4, 4:-4]
    assert ((ratio - 1).abs() < 0.05).float().mean() > 0.98
    at = torch.stack([ratio[1, y - 4, x - 4] for x, y in pixels])
    assert ((at - 1).abs() < 0.05).all()


def test_networks_without_points_and_with_none_of_them_seen_are_the_same() -> None:
    """And points move the depth that comes out, in bf16, too."""
    torch.manual_seed(0)
    config = ILRMConfig(
        width=32, head_width=16, layers=1, decoder=DECODER, matching=LEARNED.matching, image_channels=("rgb", "match")
    )
    model = ILRM(config).eval()
    images, cameras = textured_plane(3)
    given = images[None], cameras.c2w[None], cameras.K[None]
    behind = SparsePoints(torch.tensor([[[0.0, 0, -5], [1, 0, -3]]]))
    pixels = [(x, y) for x in range(4, 48, 5) for y in range(4, 48, 5)]
    near = points_of_the_wall(images, cameras, 5.7, pixels)
    with torch.no_grad():
        plain = model(*given)
        assert torch.equal(model(*given, points=behind).means, plain.means)
        assert (model(*given, points=near).means - plain.means).abs().max() > 0.01
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half, moved = model(*given), model(*given, points=near)
    assert moved.means.dtype == torch.float32
    assert (moved.means - half.means).abs().max() > 0.01
