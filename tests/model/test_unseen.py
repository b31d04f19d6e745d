"""Sparse points where no input has a surface become Gaussians; the others do not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ilrm import ILRM, Gaussians, Scene
from ilrm.core.cameras import Cameras, Similarity
from ilrm.core.gaussians import quaternion_to_matrix
from ilrm.core.spherical_harmonics import C0
from ilrm.model import FootprintDecoder, ILRMConfig, MatchingConfig
from ilrm.model.matching.neighbours import is_astray, nearest_others, spacing
from ilrm.model.matching.sparse import SparsePoints
from ilrm.model.reconstruct import reconstruct, usable_points
from ilrm.model.unseen import gaussians_of_unseen, is_unseen
from tests.model.test_matching import textured_plane

CONFIG = ILRMConfig(
    width=32,
    head_width=16,
    layers=2,
    decoder=FootprintDecoder(),
    matching=MatchingConfig(planes=32, sources=3),
    image_channels=("rgb", "moment", "direction", "match"),
)


def wall(degree: int = 0) -> Gaussians:
    """A solid one at z = 4, seen at least 4 wide."""
    at = torch.linspace(-3, 3, 61)
    x, y = (v.flatten() for v in torch.meshgrid(at, at, indexing="xy"))
    n = len(x)
    return Gaussians(
        torch.stack([x, y, torch.full_like(x, 4.0)], -1),
        torch.full((n, 3), 0.08),
        torch.tensor([1.0, 0, 0, 0]).expand(n, 4).contiguous(),
        torch.full((n,), 0.95),
        torch.zeros(n, (degree + 1) ** 2, 3),
    )


def cameras() -> Cameras:
    """Two that look along z from x = -0.5 and 0.5, with a field of view of 53 degrees."""
    c2w = torch.eye(4).repeat(2, 1, 1)
    c2w[:, 0, 3] = torch.tensor([-0.5, 0.5])
    return Cameras(c2w, torch.tensor([[32.0, 0, 16], [0, 32, 16], [0, 0, 1]]).repeat(2, 1, 1), 32, 32)


def test_where_points_are_unseen() -> None:
    points = {
        "on the wall": ([0.0, 0, 4], False),
        "hidden by it": ([0.0, 0, 8], True),
        "before it": ([0.0, 0, 2], False),
        "outside of all": ([9.0, 0, 4], True),
        "behind the cameras": ([0.0, 0, -3], True),
        "in the right view alone, on the wall": ([2.3, 0, 4], False),
        "in the right view alone, hidden": ([4.2, 0, 8], True),
    }
    xyz = torch.tensor([place for place, _ in points.values()])
    found = is_unseen(xyz, wall(), cameras())
    assert dict(zip(points, found.tolist(), strict=True)) == {name: unseen for name, (_, unseen) in points.items()}


def patch(count: int = 6) -> torch.Tensor:
    """A square lattice in the plane z = 8, a step of 0.2 apart, hidden by the wall."""
    at = 0.2 * torch.arange(count)
    x, y = (v.flatten() for v in torch.meshgrid(at, at, indexing="xy"))
    return torch.stack([x, y, torch.full_like(x, 8.0)], -1)


@pytest.mark.parametrize("degree", [0, 2])
def test_they_become_discs_along_their_neighbours(degree: int) -> None:
    xyz = torch.cat([patch(), torch.tensor([[0.0, 0, 4]])])
    rgb = torch.rand(len(xyz), 3)
    made = gaussians_of_unseen(SparsePoints(xyz[None], rgb[None]), wall(degree), cameras())
    assert len(made) == 36
    assert made.possible().all()
    torch.testing.assert_close(made.means, xyz[:-1])
    torch.testing.assert_close(made.sh[:, 0] * C0 + 0.5, rgb[:-1])
    assert (made.sh[:, 1:] == 0).all()
    normal = quaternion_to_matrix(made.quats)[..., 0]  # of the shortest axis
    assert (normal[:, 2].abs() > 0.999).all()
    assert (made.scales[:, 0] < 0.5 * made.scales[:, 1]).all()
    middle = made.scales.view(6, 6, 3)[2, 2]  # where all neighbours are a step away, or a diagonal one
    assert 0.2 < middle[2] < 0.2 * 1.5


@pytest.mark.parametrize("count", [0, 3])
def test_few_points_and_points_without_colours_become_none(count: int) -> None:
    few = SparsePoints(patch()[None, :count], torch.rand(1, count, 3))
    assert len(gaussians_of_unseen(few, wall(), cameras())) == 0
    assert len(gaussians_of_unseen(SparsePoints(patch()[None]), wall(), cameras())) == 0


@pytest.mark.parametrize("pairs", [1, 1 << 24])
def test_neighbours_are_those_of_a_loop(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ilrm.model.matching.neighbours._MOST_PAIRS", pairs)
    xyz = torch.rand(30, 3, generator=torch.Generator().manual_seed(1))
    distances, others = nearest_others(xyz, 5)
    for i in range(30):
        slow = sorted(((xyz[i] - xyz[j]).norm().item(), j) for j in range(30) if j != i)[:5]
        assert others[i].tolist() == [j for _, j in slow]
        assert distances[i].tolist() == pytest.approx([apart for apart, _ in slow])
    torch.testing.assert_close(spacing(distances), distances[:, :3].mean(1))


def test_a_point_in_free_space_is_astray() -> None:
    xyz = torch.cat([patch(), torch.tensor([[0.5, 0.5, 5.0]])])
    assert is_astray(xyz).tolist() == [False] * 36 + [True]
    assert not is_astray(xyz[:5]).any()


@pytest.fixture(scope="module")
def scene() -> Scene:
    """Three views of a wall, and points: on it, around what they see, and one that is not finite."""
    images, views = textured_plane(3, 32)
    at = torch.linspace(-8, 8, 20)
    x, y = (v.flatten() for v in torch.meshgrid(at, at, indexing="xy"))
    xyz = torch.stack([x, y, torch.full_like(x, 6.0)], -1)
    xyz = torch.cat([xyz, torch.full((1, 3), torch.nan)]).double()
    rgb = torch.rand(len(xyz), 3, generator=torch.Generator().manual_seed(0))
    return Scene(images, views.to(dtype=torch.float64), ("a", "b", "c"), points=xyz, points_rgb=rgb)


def made(config: ILRMConfig = CONFIG) -> ILRM:
    torch.manual_seed(0)
    model = ILRM(config).eval()
    torch.nn.init.normal_(model.decoder.weight, std=0.02)
    return model


def test_reconstruct_uses_points_only_if_asked(scene: Scene) -> None:
    model = made()
    bare = reconstruct(replace(scene, points=None, points_rgb=None), model)
    off, on = reconstruct(scene, model), reconstruct(scene, model, points=True)
    assert torch.equal(off.means, bare.means)
    assert torch.equal(off.sh, bare.sh)
    own = on[len(off) :]
    assert 100 < len(own) < 400
    assert on.possible().all()
    assert (on.means[: len(off)] - off.means).abs().max() > 0.01
    torch.testing.assert_close(own.means[:, 2], torch.full_like(own.means[:, 2], 6.0), rtol=1e-4, atol=1e-4)
    states = reconstruct(scene, model, iterations=True, points=True)
    assert states.means.shape == (2, len(on), 3)
    torch.testing.assert_close(states[-1].means, on.means)


def test_points_move_with_the_world(scene: Scene) -> None:
    """Also to UTM coordinates, where single precision has steps of half a metre."""
    model = made()
    turn = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    move = Similarity(3.0, turn, torch.tensor([512345.0, 5432109.0, 250.0], dtype=torch.float64))
    here, there = (reconstruct(x, model, points=True) for x in (scene, scene.transform(move)))
    assert len(here) == len(there)
    back = (there.world_means - move.translation) @ turn / 3
    assert (back - here.means).abs().max() < 1e-2


def test_which_points_are_used(scene: Scene) -> None:
    used = usable_points(scene, CONFIG)
    assert used is not None
    assert used.xyz.shape == (1, 400, 3)
    assert usable_points(scene, ILRMConfig()) is None  # it does not match its views
    assert usable_points(replace(scene, points=None), CONFIG) is None
    assert usable_points(replace(scene, points=torch.full((2, 3), torch.nan), points_rgb=None), CONFIG) is None
    many = torch.rand(20_000, 3)
    used = usable_points(replace(scene, points=many, points_rgb=None), CONFIG)
    assert used is not None
    assert torch.equal(used.xyz[0], many[::3])


def test_a_mask_and_a_single_view(scene: Scene) -> None:
    model = made()
    mask = torch.ones(3, 32, 32, dtype=torch.bool)
    mask[:, :, :8] = False
    masked = reconstruct(replace(scene, mask=mask), model, points=True)
    assert len(masked) > len(reconstruct(replace(scene, mask=mask), model)) == 3 * 16 * 12
    assert len(reconstruct(scene.select([1]), model, points=True)) > 16 * 16


def test_points_that_are_few_and_far_between_become_none() -> None:
    """As wrong ones behind everything are; where all are sparse, they are trusted."""
    generator = torch.Generator().manual_seed(0)
    cloud = torch.rand(12, 3, generator=generator) * torch.tensor([40.0, 40, 5]) + torch.tensor([20.0, 20, 10])
    xyz = torch.cat([torch.tensor([0.1, 0.1, 1]) * patch(), cloud])
    for given, count in ((xyz, 0), (cloud, 12)):
        made = gaussians_of_unseen(SparsePoints(given[None], torch.rand(1, len(given), 3)), wall(), cameras())
        assert (made.means[:, 0] > 20).sum() == count
