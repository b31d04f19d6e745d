"""Rays, resizing, normalisation: against reference values and against their own definitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ilrm.core.cameras import Cameras, Similarity, local_origin, normalise, pixel_centres, rays
from ilrm.core.errors import CameraError
from ilrm.core.gaussians import quaternion_to_matrix
from ilrm.core.poses import look_at, mean_pose
from tests.conftest import make_cameras, shared_path


def random_similarity(seed: int = 0, scale: float = 2.5) -> Similarity:
    g = torch.Generator().manual_seed(seed)
    quat = torch.randn(4, generator=g, dtype=torch.float64)
    return Similarity(scale, quaternion_to_matrix(quat), torch.randn(3, generator=g, dtype=torch.float64))


def test_golden_rays() -> None:
    arrays = np.load(shared_path("golden/wide_rays.npz"))

    def get(name: str) -> Tensor:
        return torch.from_numpy(arrays[name])

    c2w = get("in_c2w")
    fx, fy, cx, cy = get("in_fxfycxcy_pixels").unbind(-1)
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    K = torch.stack([fx, zero, cx, zero, fy, cy, zero, zero, one], -1).unflatten(-1, (3, 3))

    def compare(prefix: str, K: Tensor, width: int, height: int) -> None:
        origins, directions = rays(c2w, K, width, height)
        size = "HW" if prefix == "full" else "hw"
        reference = get(f"{prefix}_ray_d_BV3{size}").movedim(2, -1)
        torch.testing.assert_close(directions, reference, atol=1e-6, rtol=0)
        if not prefix.startswith("odd"):
            torch.testing.assert_close(origins, get(f"{prefix}_ray_o_BV3{size}").movedim(2, -1), atol=0, rtol=0)
            moment = torch.linalg.cross(origins, directions, dim=-1)
            torch.testing.assert_close(moment, get(f"{prefix}_o_cross_d_BV3{size}").movedim(2, -1), atol=2e-6, rtol=0)

    half = K * torch.tensor([0.5, 0.5, 1.0])[:, None]
    compare("full", K, 12, 8)
    compare("factor2", half, 6, 4)
    compare("odd_H9_W13_factor2", half, 6, 4)
    offsets = get("in_offset_xy_BVxhwx2").unflatten(0, (2, 2)).unflatten(2, (4, 6))
    origins, directions = rays(c2w, half, 6, 4, offsets)
    reference = get("factor2_offset_ray_d_BxVhwx3")
    torch.testing.assert_close(directions.reshape(reference.shape), reference, atol=1e-6, rtol=0)
    torch.testing.assert_close(origins.reshape(reference.shape), get("factor2_offset_ray_o_BxVhwx3"), atol=0, rtol=0)


def test_rays_project_back_to_pixel_centres() -> None:
    cameras = make_cameras(3, 9, 7)
    origins, directions = cameras.rays()
    points = origins + 2.7 * directions
    local = torch.einsum("vij,vhwj->vhwi", cameras.w2c[:, :3, :3], points) + cameras.w2c[:, None, None, :3, 3]
    pixels = torch.einsum("vij,vhwj->vhwi", cameras.K, local)
    pixels = pixels[..., :2] / pixels[..., 2:]
    expected = torch.stack(torch.meshgrid(torch.arange(9) + 0.5, torch.arange(7) + 0.5, indexing="xy"), -1)
    torch.testing.assert_close(pixels, expected.expand_as(pixels), atol=1e-4, rtol=0)
    assert (local[..., 2] > 0).all()


def test_plucker_is_moment_then_direction_and_independent_of_the_point_on_the_ray() -> None:
    cameras = make_cameras(2, 5, 4)
    origins, directions = cameras.rays()
    moment, direction = cameras.plucker().split(3, dim=-1)
    torch.testing.assert_close(direction, directions)
    other = origins + 3 * directions
    torch.testing.assert_close(torch.linalg.cross(other, directions, dim=-1), moment, atol=1e-5, rtol=1e-5)


def test_resize_and_crop_keep_what_pixels_see() -> None:
    cameras = make_cameras(1, 12, 8)
    point = torch.tensor([0.1, -0.2, 0.3])

    def project(c: Cameras) -> Tensor:
        local = c.w2c[0, :3, :3] @ point + c.w2c[0, :3, 3]
        uvw = c.K[0] @ local
        return uvw[:2] / uvw[2]

    before = project(cameras)
    torch.testing.assert_close(project(cameras.resize(24, 4)), before * torch.tensor([2.0, 0.5]))
    torch.testing.assert_close(project(cameras.crop(3, 2, 5, 5)), before - torch.tensor([3.0, 2.0]))


class TestSimilarity:
    def test_inverse_compose_and_matrix_agree(self) -> None:
        a, b = random_similarity(1), random_similarity(2, 0.3)
        points = torch.randn(10, 3, dtype=torch.float64)
        torch.testing.assert_close(a.inverse().apply_points(a.apply_points(points)), points)
        torch.testing.assert_close(a.compose(b).apply_points(points), a.apply_points(b.apply_points(points)))
        homogeneous = torch.cat([points, torch.ones(10, 1, dtype=torch.float64)], -1) @ a.matrix().T
        torch.testing.assert_close(homogeneous[:, :3], a.apply_points(points))
        torch.testing.assert_close(a.compose(Similarity.identity()).matrix(), a.matrix())

    def test_cameras_see_moved_points_at_the_same_pixels(self) -> None:
        cameras, move = make_cameras(2, 8, 8).to(dtype=torch.float64), random_similarity(3)
        points = torch.randn(5, 3, dtype=torch.float64) * 0.3

        def pixels(c: Cameras, x: Tensor) -> Tensor:
            local = x @ c.w2c[0, :3, :3].T + c.w2c[0, :3, 3]
            uvw = local @ c.K[0].T
            return uvw[:, :2] / uvw[:, 2:]

        torch.testing.assert_close(pixels(cameras.transform(move), move.apply_points(points)), pixels(cameras, points))


class TestNormalise:
    @pytest.mark.parametrize("scene", [0, 1, 2])
    def test_golden_wide(self, scene: int) -> None:
        arrays = np.load(shared_path("golden/wide_dataset_pose_normalisation.npz"))
        inputs = arrays[f"scene{scene}_input_frame_indices"].tolist()
        targets = arrays[f"scene{scene}_target_frame_indices"].tolist()
        c2w = torch.from_numpy(np.linalg.inv(arrays[f"scene{scene}_w2c_float64"]))
        cameras = Cameras(c2w, torch.eye(3, dtype=torch.float64).repeat(len(c2w), 1, 1), 4, 4)
        unit, _ = normalise(cameras, inputs)
        for indices, name in ((inputs, "input"), (targets, "target")):
            reference = torch.from_numpy(arrays[f"scene{scene}_{name}_c2w_normalised"])
            torch.testing.assert_close(unit.c2w[indices].float(), reference, atol=5e-6, rtol=0)

    @pytest.mark.parametrize("scene", [0, 1, 2])
    def test_golden_main(self, scene: int) -> None:
        arrays = np.load(shared_path("golden/main_re10k_dataset.npz"))
        rows = torch.from_numpy(arrays[f"scene{scene}_cameras_rows18"])
        w2c = torch.eye(4).repeat(len(rows), 1, 1)
        w2c[:, :3] = rows[:, 6:].unflatten(1, (3, 4))
        context = arrays[f"scene{scene}_context_indices"].tolist()
        target = arrays[f"scene{scene}_target_indices"].tolist()
        cameras = Cameras(torch.linalg.inv(w2c), torch.eye(3).repeat(len(rows), 1, 1), 4, 4)
        unit, _ = normalise(cameras, context, rule="raw")
        for indices, name in ((context, "context"), (target, "target")):
            reference = torch.from_numpy(arrays[f"scene{scene}_{name}_extrinsics_c2w_normalised"])
            torch.testing.assert_close(unit.c2w[indices], reference, atol=2e-5, rtol=1e-5)

    def test_inputs_fill_the_unit_cube_and_the_similarity_undoes_it(self) -> None:
        cameras = make_cameras(6, 8, 8).to(dtype=torch.float64).transform(random_similarity(4, 30.0))
        for rule in ("transformed", "raw"):
            unit, to_world = normalise(cameras, [0, 2, 5], rule=rule)  # type: ignore[arg-type]
            torch.testing.assert_close(unit.transform(to_world).c2w, cameras.c2w)
            if rule == "transformed":
                torch.testing.assert_close(unit.centers[[0, 2, 5]].abs().max().item(), 1.0)
        assert normalise(cameras, scene_scale=2.0)[1].scale == pytest.approx(2 * normalise(cameras)[1].scale)

    def test_transformed_rule_does_not_depend_on_the_world_frame(self) -> None:
        cameras = make_cameras(5, 8, 8).to(dtype=torch.float64)
        moved = cameras.transform(random_similarity(5, 0.01))
        torch.testing.assert_close(normalise(moved)[0].c2w, normalise(cameras)[0].c2w, atol=1e-9, rtol=0)

    def test_coincident_cameras_keep_the_scale_of_the_world(self) -> None:
        cameras = make_cameras(3, 8, 8)
        c2w = cameras.c2w.clone()
        c2w[:, :3, 3] = torch.tensor([1.0, 2.0, 3.0])
        unit, to_world = normalise(Cameras(c2w, cameras.K, 8, 8))
        assert to_world.scale == 1.0
        torch.testing.assert_close(unit.centers, torch.zeros(3, 3))
        single, _ = normalise(cameras[0])
        torch.testing.assert_close(single.c2w[0], torch.eye(4), atol=1e-6, rtol=0)

    def test_raw_rule_at_the_origin_is_a_clear_error(self) -> None:
        cameras = Cameras(torch.eye(4)[None], torch.eye(3)[None], 4, 4)
        with pytest.raises(CameraError, match="origin"):
            normalise(cameras, rule="raw")
        with pytest.raises(CameraError, match="No input"):
            normalise(cameras, [])

    def test_a_full_ring_of_cameras_has_a_frame_that_moves_along(self) -> None:
        """Forward axes of a ring cancel out and its down axes add up to the same line: no division by zero."""
        angles = torch.arange(8, dtype=torch.float64) * torch.pi / 4
        c2w = torch.eye(4, dtype=torch.float64).repeat(8, 1, 1)
        for i, a in enumerate(angles):
            turn = torch.tensor([[a.cos(), 0, a.sin()], [0, 1, 0], [-a.sin(), 0, a.cos()]], dtype=torch.float64)
            c2w[i, :3, :3] = turn
            c2w[i, :3, 3] = -3 * turn[:, 2]
        cameras = Cameras(c2w, torch.eye(3, dtype=torch.float64).repeat(8, 1, 1), 4, 4)
        rotation, _ = mean_pose(c2w)
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64))
        moved = cameras.transform(random_similarity(6))
        torch.testing.assert_close(normalise(moved)[0].c2w, normalise(cameras)[0].c2w, atol=1e-9, rtol=0)


class TestLookAt:
    CENTRES = torch.tensor([[3.0, 1.0, -2.0], [0.5, -4.0, 1.0]], dtype=torch.float64)
    TARGETS = torch.tensor([[0.0, 0.5, 1.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    DOWN = torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64)

    def test_axes_are_orthonormal_and_image_down_is_down(self) -> None:
        c2w = look_at(self.CENTRES, self.TARGETS, self.DOWN)
        Cameras(c2w, torch.eye(3, dtype=torch.float64).expand(2, 3, 3), 4, 4).check()
        torch.testing.assert_close(c2w[:, :3, 3], self.CENTRES)
        ahead = torch.nn.functional.normalize(self.TARGETS - self.CENTRES, dim=-1)
        torch.testing.assert_close(c2w[:, :3, 2], ahead)
        assert (c2w[:, :3, 0] @ self.DOWN).abs().max() < 1e-12, "image rows are level"
        assert (c2w[:, :3, 1] @ self.DOWN).min() > 0

    def test_roll_turns_right_towards_down(self) -> None:
        level = look_at(self.CENTRES, self.TARGETS, self.DOWN)
        rolled = look_at(self.CENTRES, self.TARGETS, self.DOWN, torch.tensor([torch.pi / 2, 0.0], dtype=torch.float64))
        torch.testing.assert_close(rolled[0, :3, 0], level[0, :3, 1])
        torch.testing.assert_close(rolled[0, :3, 1], -level[0, :3, 0])
        torch.testing.assert_close(rolled[1], level[1])


class TestCheck:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c: c.c2w[1].fill_(float("nan")), "NaN"),
            (lambda c: c.c2w[1, :3, :3].mul_(2), "not orthonormal"),
            (lambda c: c.c2w[1, :3, 0].mul_(-1), "mirror"),
            (lambda c: c.K[1, 0, 0].zero_(), "fx = 0"),
            (lambda c: c.K[1, 1, 1].mul_(-1), "intrinsics"),
        ],
        ids=["nan", "scaled", "mirrored", "zero focal", "negative focal"],
    )
    def test_impossible_views_are_refused_by_name(self, change, message: str) -> None:  # type: ignore[no-untyped-def]
        cameras = make_cameras(3, 8, 8)
        assert cameras.check() is cameras
        broken = Cameras(cameras.c2w.clone(), cameras.K.clone(), 8, 8)
        change(broken)
        with pytest.raises(CameraError, match=message) as raised:
            broken.check(["a.png", "b.png", "c.png"])
        assert "b.png" in str(raised.value)

    def test_wrong_shapes(self) -> None:
        with pytest.raises(CameraError, match="expected"):
            Cameras(torch.eye(4), torch.eye(3), 4, 4)
        with pytest.raises(CameraError, match="empty"):
            Cameras(torch.eye(4)[None], torch.eye(3)[None], 0, 4)


def test_selection() -> None:
    cameras = make_cameras(4, 8, 8)
    assert len(cameras[1]) == 1
    torch.testing.assert_close(cameras[[2, 0]].c2w, cameras.c2w[[2, 0]])
    torch.testing.assert_close(cameras[1:3].K, cameras.K[1:3])


def moved(cameras: Cameras, scale: float, offset: list[float]) -> Cameras:
    there = Similarity(scale, torch.eye(3, dtype=torch.float64), torch.tensor(offset, dtype=torch.float64))
    return cameras.to(dtype=torch.float64).transform(there)


UTM, ECEF = [512345.0, 5432109.0, 250.0], [4027893.0, 306901.0, -4919499.0]


def test_only_far_worlds_get_an_origin_of_their_own() -> None:
    cameras = make_cameras(4, 9, 7)
    extent = normalise(cameras)[1].scale
    assert not cameras.local_origin().any()
    assert not moved(cameras, 1.0, [900 * extent, 0, 0]).local_origin().any()
    assert moved(cameras, 1.0, [1100 * extent, 0, 0]).local_origin().any()
    assert not moved(cameras, 1e4, UTM).local_origin().any()
    assert cameras.relative_to(cameras.local_origin()) is cameras


@pytest.mark.parametrize("offset", [UTM, ECEF])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e2])
def test_cameras_far_away_come_near_in_float64(scale: float, offset: list[float]) -> None:
    near = moved(make_cameras(4, 9, 7), scale, [0, 0, 0])
    far = moved(near, 1.0, offset)
    origin = far.local_origin()
    local = far.relative_to(origin)
    assert local.centers.norm(dim=1).max() < 5 * normalise(near)[1].scale
    steps = near.centers - near.centers[0]
    torch.testing.assert_close(local.centers - local.centers[0], steps, atol=4e-9, rtol=0)
    # One scale, not the substitute for coincident cameras.
    torch.testing.assert_close(normalise(far)[1].scale, normalise(near)[1].scale, atol=4e-9, rtol=1e-9)


def test_an_origin_is_short_to_write() -> None:
    centre = torch.tensor([512345.4821, 5432109.3377, 250.018], dtype=torch.float64)
    assert local_origin(centre, 0.7).tolist() == [512345.5, 5432109.3, 250.0]
    assert local_origin(centre, 34.0).tolist() == [512350.0, 5432110.0, 250.0]
    assert local_origin(centre, 0.0).tolist() == [0, 0, 0]
    assert local_origin(centre * float("nan"), 1.0).tolist() == [0, 0, 0]


@pytest.mark.parametrize("given", [lambda x: x, lambda x: x.numpy()], ids=["tensor", "array"])
def test_cameras_of_world_to_camera_matrices(given: Callable[[Tensor], Any]) -> None:
    cameras = make_cameras(3, 32, 24)
    for rows in (3, 4):
        found = Cameras.from_w2c(given(cameras.w2c[:, :rows]), given(cameras.K[0]), 32, 24)
        torch.testing.assert_close(found.c2w, cameras.c2w)
        torch.testing.assert_close(found.K, cameras.K)


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(2, 4, 4), torch.eye(4), torch.eye(3).repeat(2, 1, 1), torch.eye(4, dtype=torch.long).repeat(2, 1, 1)],
)
def test_matrices_that_no_camera_has_are_refused(wrong: Tensor) -> None:
    with pytest.raises(CameraError):
        Cameras.from_w2c(wrong, torch.eye(3), 8, 6)


def test_rays_equal_matrix_products() -> None:
    """The same with a rotation matrix times a vector for each pixel."""
    cameras = make_cameras(3, 20, 12, seed=4)
    shift = torch.rand(3, 12, 20, 2, generator=torch.Generator().manual_seed(0)) - 0.5
    origins, directions = rays(cameras.c2w, cameras.K, 20, 12, shift)
    pixels = pixel_centres(20, 12, cameras.K) + shift
    homogeneous = torch.cat([pixels, torch.ones_like(pixels[..., :1])], dim=-1)
    local = torch.einsum("vij,vhwj->vhwi", torch.linalg.inv(cameras.K), homogeneous)
    world = torch.einsum("vij,vhwj->vhwi", cameras.c2w[:, :3, :3], local)
    torch.testing.assert_close(directions, torch.nn.functional.normalize(world, dim=-1), atol=1e-6, rtol=0)
    torch.testing.assert_close(origins, cameras.centers[:, None, None].expand_as(origins))
