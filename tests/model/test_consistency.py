"""The cross-checks of views on each other's surfaces, compared with a pixel-by-pixel count."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ilrm.core.errors import ConfigError
from ilrm.model import ILRM, FootprintDecoder
from ilrm.model.matching import Match
from ilrm.model.matching.consistency import Consistency, cross_check
from tests.conftest import make_cameras
from tests.model.test_ilrm import MATCHED, inputs
from tests.model.test_matching import textured_plane

DECODER = FootprintDecoder(near=0.2, far=400.0)
CHECKED = replace(MATCHED, image_channels=(*MATCHED.image_channels, "consistency"))


def matched(distance_VHW: torch.Tensor) -> Match:
    fraction = (torch.log(distance_VHW / DECODER.near) / math.log(DECODER.far / DECODER.near))[None].float()
    return Match(fraction, torch.ones_like(fraction), torch.ones_like(fraction))


def one_by_one(distance: torch.Tensor, rgb: torch.Tensor, c2w: torch.Tensor, K: torch.Tensor) -> torch.Tensor:
    """(V, H, W, 6) with plain loops over views and pixels, in float64."""
    V, H, W = distance.shape
    out = torch.zeros(V, H, W, 6, dtype=torch.float64)
    focal = [(K[v, 0, 0] + K[v, 1, 1]) / 2 for v in range(V)]
    for v in range(V):
        for i in range(H):
            for j in range(W):
                local = torch.linalg.inv(K[v]) @ torch.tensor([j + 0.5, i + 0.5, 1.0], dtype=torch.float64)
                ray = c2w[v, :3, :3] @ (local / local.norm())
                point = c2w[v, :3, 3] + distance[v, i, j] * ray
                density, agreeing, contradicting, hiding, seeing, difference = 1.0, 0.0, 0.0, 0.0, 0, 0.0
                for u in set(range(V)) - {v}:
                    inside = c2w[u, :3, :3].T @ (point - c2w[u, :3, 3])
                    x, y, z = K[u] @ inside
                    if z <= 0 or not (0 < x / z < W and 0 < y / z < H):
                        continue
                    seeing += 1
                    row, column = int(y / z), int(x / z)
                    behind = math.log(distance[u, row, column]) - math.log(inside.norm())
                    agrees = math.exp(-abs(behind) / 0.1)
                    agreeing += agrees
                    sizes = (distance[v, i, j] / focal[v]) / (inside.norm() / focal[u])
                    density += agrees * min(4.0, float(sizes) ** 2)
                    contradicting += 1 - math.exp(-max(0.0, behind - 0.05) / 0.1)
                    hiding += 1 - math.exp(-max(0.0, -behind - 0.05) / 0.1)
                    difference += agrees * float((rgb[u, row, column] - rgb[v, i, j]).abs().mean())
                out[v, i, j] = torch.tensor(
                    [density, agreeing, contradicting, hiding, seeing, difference / max(agreeing, 0.1)]
                )
    return out


def test_equals_a_count_pixel_by_pixel() -> None:
    cameras = make_cameras(3, 10, 8)
    generator = torch.Generator().manual_seed(0)
    distance = 4 + 0.5 * torch.randn(3, 8, 10, generator=generator).double()
    rgb = torch.rand(3, 8, 10, 3, generator=generator)
    found = cross_check(matched(distance), rgb[None], cameras.c2w[None], cameras.K[None], DECODER)
    expected = one_by_one(distance, rgb.double(), cameras.c2w.double(), cameras.K.double())
    fields = torch.stack([getattr(found, name)[0] for name in Consistency.__dataclass_fields__], dim=-1)
    # A point on the border of two pixels may fall on either side.
    close = torch.isclose(fields.double(), expected, atol=1e-3, rtol=1e-3).all(-1)
    assert close.float().mean() > 0.98
    assert expected[..., 4].max() == 2
    assert (expected[..., 2:4].amax((0, 1, 2)) > 0.5).all()


def test_views_of_one_wall_agree() -> None:
    images, cameras = textured_plane(4)
    distance = 6 / cameras.rays()[1][..., 2]
    found = cross_check(matched(distance), images[None], cameras.c2w[None], cameras.K[None], DECODER)
    middle = (0, slice(None), slice(16, 32), slice(16, 32))
    torch.testing.assert_close(found.density[middle], torch.full((4, 16, 16), 4.0), atol=0.5, rtol=0)
    assert found.doubt().max() < 1e-3


def test_a_wall_in_front_of_the_others_is_contradicted() -> None:
    images, cameras = textured_plane(4)
    distance = 6 / cameras.rays()[1][..., 2]
    distance[1] *= 0.5
    found = cross_check(matched(distance), images[None], cameras.c2w[None], cameras.K[None], DECODER)
    middle = (slice(16, 32), slice(16, 32))
    seeing = found.seeing[0, 1][middle]
    assert seeing.min() >= 2
    assert (found.contradicting[0, 1][middle] > 0.99 * seeing).all()
    assert (found.doubt()[0, 1][middle] > 0.6).all()
    assert found.contradicting[0, 0].max() < 1e-3
    assert (found.hiding[0, 0][middle] > 0.9).all()


@torch.no_grad()
def test_overlapping_views_make_smaller_gaussians() -> None:
    images, cameras = textured_plane(6)
    model = ILRM(CHECKED).eval()
    sizes = []
    for chosen in ([2, 3], [0, 1, 2, 3, 4, 5]):
        data = images[None, chosen], cameras.c2w[None, chosen].float(), cameras.K[None, chosen].float()
        sizes.append(model(*data).scales.median())
    assert sizes[1] < 0.75 * sizes[0]


@torch.no_grad()
def test_one_view_is_enough() -> None:
    assert ILRM(CHECKED).eval()(*inputs(1)).finite().all()


def test_needs_matching() -> None:
    with pytest.raises(ConfigError, match="consistency"):
        replace(CHECKED, matching=None, image_channels=("rgb", "consistency"))


def test_hidden_pixels_are_no_evidence() -> None:
    """A view whose pixels are all hidden is as good as absent."""
    V, H, W = 3, 12, 16
    cameras = make_cameras(V, W, H)
    g = torch.Generator().manual_seed(0)
    distance, images = 3 + torch.rand(V, H, W, generator=g), torch.rand(V, H, W, 3, generator=g)
    hidden = torch.zeros(1, V, H, W, dtype=torch.bool)
    hidden[0, 2] = True
    found = cross_check(matched(distance), images[None], cameras.c2w[None], cameras.K[None], DECODER, hidden)
    pair = cameras[[0, 1]]
    alone = cross_check(matched(distance[:2]), images[None, :2], pair.c2w[None], pair.K[None], DECODER)
    torch.testing.assert_close(found.channels()[:, :2], alone.channels())
