"""Filters keep what they promise, in order, and do not change the original."""

from __future__ import annotations

import torch

from ilrm.core.gaussians import Gaussians
from ilrm.core.spherical_harmonics import colours
from ilrm.splats import filters
from tests.conftest import make_gaussians


def line(count: int = 5) -> Gaussians:
    """Gaussians at x = 0, 1, 2 ... with opacities 0, 0.25, 0.5 ... and growing scales, sheets in the end."""
    g = make_gaussians(count, 3)
    steps = torch.arange(count)
    means, scales = torch.zeros(count, 3), torch.ones(count, 3) * (steps + 1)[:, None]
    means[:, 0] = steps
    return Gaussians(means, scales, g.quats, steps / (count - 1), g.sh)


def kept(gaussians: Gaussians) -> list[int]:
    return gaussians.means[:, 0].int().tolist()


def test_opacity() -> None:
    assert kept(filters.keep_opaque(line(), 0.5)) == [2, 3, 4]
    assert kept(filters.keep_opaque(line(), 0)) == [0, 1, 2, 3, 4]


def test_scale_counts_the_longest_axis() -> None:
    g = line()
    g.scales[0, 2] = 9
    assert kept(filters.keep_small(g, 3)) == [1, 2]


def test_crop_keeps_its_borders() -> None:
    assert kept(filters.crop(line(), (1, -1, -1), (3, 1, 1))) == [1, 2, 3]
    assert kept(filters.crop(line(), (1, 0.1, -1), (3, 1, 1))) == []


def test_the_most_important_keep_their_order() -> None:
    g = line()  # importance 0, 1, 4.5, 12, 25
    g.scales[4, 1:] = 0.01  # a needle covers almost nothing
    assert kept(filters.keep_most_important(g, 2)) == [2, 3]
    assert kept(filters.keep_most_important(g, 99)) == [0, 1, 2, 3, 4]
    torch.testing.assert_close(filters.importance(line())[3].item(), 0.75 * 16)


def test_a_lower_degree_keeps_the_lower_coefficients() -> None:
    g = line()
    assert torch.equal(filters.lower_sh_degree(g, 1).sh, g.sh[:, :4])
    assert filters.lower_sh_degree(g, 3).sh_degree == 3
    flat = filters.lower_sh_degree(g, 0)
    there, back = (colours(flat.sh, torch.tensor([0.0, 0, z]).expand(5, 3)) for z in (1.0, -1.0))
    assert torch.equal(there, back)


def test_nothing_is_changed_in_place() -> None:
    g = line()
    before = [value.clone() for value in (g.means, g.scales, g.opacities, g.sh)]
    for change in (filters.keep_opaque, filters.keep_small, filters.keep_most_important, filters.lower_sh_degree):
        change(g, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, (g.means, g.scales, g.opacities, g.sh), strict=True))
