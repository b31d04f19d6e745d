"""Gaussians as values: shapes, selection, moving to another world with rotations and SH."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ilrm.core import spherical_harmonics as sh
from ilrm.core.cameras import Similarity
from ilrm.core.errors import GaussiansError
from ilrm.core.gaussians import PER_GAUSSIAN, Gaussians, matrix_to_quaternion, quaternion_multiply, quaternion_to_matrix
from tests.conftest import make_gaussians
from tests.core.test_cameras import random_similarity


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_transform_moves_covariances_and_colours_along(degree: int) -> None:
    before, move = make_gaussians(20, degree).to(dtype=torch.float64), random_similarity(1)
    after = before.transform(move)
    torch.testing.assert_close(after.means, move.apply_points(before.means))
    R, s = move.rotation, move.scale
    torch.testing.assert_close(after.covariances(), s**2 * R @ before.covariances() @ R.T)
    directions = torch.nn.functional.normalize(torch.randn(20, 3, dtype=torch.float64), dim=-1)
    torch.testing.assert_close(sh.colours(after.sh, directions @ R.T), sh.colours(before.sh, directions))
    back = after.transform(move.inverse())
    torch.testing.assert_close(back.means, before.means)
    torch.testing.assert_close(back.sh, before.sh)


def test_sh_rotation_is_a_homomorphism_and_orthogonal() -> None:
    a, b = random_similarity(1).rotation, random_similarity(2).rotation
    A, B, AB = (sh.rotation_matrix(R, 3) for R in (a, b, a @ b))
    torch.testing.assert_close(A @ B, AB)
    torch.testing.assert_close(A @ A.T, torch.eye(16, dtype=torch.float64))


def test_sh_basis_is_orthonormal_on_the_sphere() -> None:
    """Integral over a fine grid of the sphere: catches a wrong constant in any of the 16 functions."""
    z = (torch.arange(400, dtype=torch.float64) + 0.5) / 200 - 1
    phi = (torch.arange(200, dtype=torch.float64) + 0.5) * torch.pi / 100
    z, phi = (x.flatten() for x in torch.meshgrid(z, phi, indexing="ij"))
    rho = (1 - z * z).sqrt()
    values = sh.basis(torch.stack([rho * phi.cos(), rho * phi.sin(), z], -1), 3)
    gram = values.T @ values * (4 * torch.pi / len(z))
    torch.testing.assert_close(gram, torch.eye(16, dtype=torch.float64), atol=1e-4, rtol=0)


def test_sh_signs_follow_gaussian_splatting() -> None:
    """First-order coefficients multiply -y, z, -x; getting a sign wrong mirrors highlights in every viewer."""
    axis = torch.eye(3, dtype=torch.float64)
    values = sh.basis(axis, 1)[:, 1:]
    expected = 0.4886025119029199 * torch.tensor([[0, 0, -1.0], [-1, 0, 0], [0, 1, 0]], dtype=torch.float64)
    torch.testing.assert_close(values, expected)


def test_quaternions() -> None:
    g = torch.Generator().manual_seed(0)
    quats = torch.nn.functional.normalize(torch.randn(200, 4, generator=g, dtype=torch.float64), dim=-1)
    matrices = quaternion_to_matrix(quats)
    torch.testing.assert_close(matrices @ matrices.mT, torch.eye(3, dtype=torch.float64).expand(200, 3, 3))
    torch.testing.assert_close(torch.linalg.det(matrices), torch.ones(200, dtype=torch.float64))
    again = matrix_to_quaternion(matrices)
    assert (again[:, 0] >= 0).all()
    torch.testing.assert_close((again * quats).sum(-1).abs(), torch.ones(200, dtype=torch.float64))
    product = quaternion_multiply(quats[:100], quats[100:])
    torch.testing.assert_close(quaternion_to_matrix(product), matrices[:100] @ matrices[100:])
    quarter = quaternion_to_matrix(torch.tensor([0.5**0.5, 0, 0, 0.5**0.5]))
    torch.testing.assert_close(quarter @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]), atol=1e-6, rtol=0)
    halves = torch.diag_embed(torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]]))
    torch.testing.assert_close(quaternion_to_matrix(matrix_to_quaternion(halves)), halves)


def test_selection_and_concatenation() -> None:
    gaussians = make_gaussians(10, 1)
    kept = gaussians[gaussians.opacities > 0.5]
    assert len(kept) == int((gaussians.opacities > 0.5).sum())
    assert len(gaussians[3]) == 1
    joined = Gaussians.cat([kept, gaussians[2:4]])
    assert len(joined) == len(kept) + 2
    batched = Gaussians(*(torch.stack([x, x]) for x in (getattr(gaussians, name) for name in PER_GAUSSIAN)))
    assert len(batched) == 2
    assert batched.count == 10
    assert len(batched.flatten()) == 20
    torch.testing.assert_close(batched[1].means, gaussians.means)


FAR = torch.tensor([512345.5, 5432109.3, 250.0], dtype=torch.float64)


def test_an_origin_keeps_positions_far_away_exact() -> None:
    near = make_gaussians(10, 1)
    far = near.at(FAR)
    torch.testing.assert_close(far.world_means, near.means.double() + FAR, atol=1e-8, rtol=0)
    for same in (far[3:7], far.detach(), far.to(dtype=torch.float64), far.flatten()):
        torch.testing.assert_close(same.origin, FAR, atol=0, rtol=0)
    assert not far.local().origin.any()
    moved = far.counted_from(FAR + 2)
    torch.testing.assert_close(moved.world_means, far.world_means, atol=1e-6, rtol=0)
    torch.testing.assert_close(moved.means, near.means - 2)


def test_sets_with_different_origins_are_joined_in_one_world() -> None:
    near = make_gaussians(10)
    joined = Gaussians.cat([near.at(FAR), near.at(FAR + 3), near.at(FAR)])
    expected = torch.cat([near.means, near.means + 3, near.means]).double() + FAR
    torch.testing.assert_close(joined.world_means, expected, atol=1e-6, rtol=0)


def test_a_similarity_moves_the_origin_in_float64() -> None:
    near, move = make_gaussians(10, 2), random_similarity(2, 0.3)
    far = near.at(FAR).transform(move)
    torch.testing.assert_close(far.world_means, move.apply_points(near.means.double() + FAR), atol=1e-5, rtol=0)
    assert far.means.abs().max() < 10
    back = far.transform(move.inverse(), origin=FAR)
    torch.testing.assert_close(back.means, near.means, atol=1e-6, rtol=0)
    torch.testing.assert_close(back.origin, FAR, atol=0, rtol=0)
    assert not near.transform(move).origin.any()


@pytest.mark.parametrize("origin", [torch.zeros(2), torch.tensor([0.0, float("nan"), 0.0])])
def test_impossible_origins_are_refused(origin: torch.Tensor) -> None:
    with pytest.raises(GaussiansError, match="origin"):
        make_gaussians(3).at(origin)


def test_finite_finds_the_broken_ones() -> None:
    gaussians = make_gaussians(5)
    gaussians.sh[2, 0, 1] = float("nan")
    gaussians.scales[4, 0] = float("inf")
    assert gaussians.finite().tolist() == [True, True, False, True, False]


@pytest.mark.parametrize("name", ["means", "scales", "quats", "opacities", "sh"])
def test_wrong_shapes_are_refused_by_name(name: str) -> None:
    values = dict(vars(make_gaussians(5)))
    values[name] = values[name][:4] if name != "sh" else values[name].repeat(1, 2, 1)
    with pytest.raises(GaussiansError):
        Gaussians(**values)


def test_identity_changes_nothing() -> None:
    gaussians = make_gaussians(5, 2)
    same = gaussians.transform(Similarity.identity())
    torch.testing.assert_close(same.sh, gaussians.sh)
    torch.testing.assert_close(same.quats, gaussians.quats)


def test_antialiased_is_kept_and_never_mixed() -> None:
    plain = make_gaussians(6, 1)
    marked = replace(plain, antialiased=True)
    for same in (
        marked[2:],
        marked[0],
        marked.to(dtype=torch.float64),
        marked.detach(),
        marked.flatten(),
        marked.transform(random_similarity(1)),
        Gaussians.cat([marked, marked]),
    ):
        assert same.antialiased
    assert not Gaussians.cat([plain, plain]).antialiased
    with pytest.raises(GaussiansError, match="anti-aliased rendering and others"):
        Gaussians.cat([plain, marked])
    with pytest.raises(GaussiansError, match="no Gaussians to join"):
        Gaussians.cat([])


def test_an_index_out_of_range_is_told_and_ends_loops() -> None:
    gaussians = make_gaussians(3)
    for index in (3, -4, 10**9):
        with pytest.raises(GaussiansError, match=f"no Gaussian {index} among 3"):
            gaussians[index]
    assert torch.equal(gaussians[-1].means, gaussians.means[2:])
    assert [len(one) for one in gaussians] == [1, 1, 1]


@pytest.mark.parametrize("degree", [0, 2])
def test_gsplat_s_arguments_there_and_back(degree: int) -> None:
    before = replace(make_gaussians(9, degree), antialiased=degree == 2)
    given = before.to_gsplat()
    assert set(given) == {"means", "quats", "scales", "opacities", "colors", "sh_degree", "rasterize_mode"}
    assert given["sh_degree"] == degree
    after = Gaussians.from_gsplat(**given)
    assert after.antialiased == before.antialiased
    for name in PER_GAUSSIAN:
        torch.testing.assert_close(getattr(after, name), getattr(before, name))


def test_gsplat_s_plain_colours_and_unused_degrees() -> None:
    some = make_gaussians(9, 3)
    colours = torch.rand(9, 3)
    plain = Gaussians.from_gsplat(some.means, 3 * some.quats, some.scales, some.opacities, colours)
    torch.testing.assert_close(sh.colours(plain.sh, torch.eye(3).repeat(3, 1)), colours)
    torch.testing.assert_close(plain.quats, some.quats)
    reduced = Gaussians.from_gsplat(some.means, some.quats, some.scales, some.opacities, some.sh, sh_degree=1)
    torch.testing.assert_close(reduced.sh, some.sh[:, :4])


@pytest.mark.parametrize(
    "wrong",
    [
        {"sh_degree": 4},
        {"sh_degree": 3},
        {"sh_degree": -1},
        {"rasterize_mode": "smooth"},
        {"sh_degree": None},
        {"scales": torch.ones(9)},
    ],
)
def test_what_gsplat_would_not_draw_is_refused(wrong: dict[str, object]) -> None:
    given = {**make_gaussians(9, 2).to_gsplat(), **wrong}
    with pytest.raises(GaussiansError):
        Gaussians.from_gsplat(**given)  # type: ignore[arg-type]
