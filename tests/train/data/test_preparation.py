from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ilrm.core.cameras import Cameras, normalise
from ilrm.core.errors import CameraError, SceneError
from ilrm.core.scene import Scene
from ilrm.scenes import load_scene
from ilrm.scenes.released import rescale_and_crop_released
from ilrm.train.config import Chunks, Folders
from ilrm.train.data.preparation import fitted, make_sample, mirror
from ilrm.train.data.samplers import Unusable
from ilrm.train.data.sources import Clip, FiniteSource, open_source
from tests.conftest import make_cameras, shared_path
from tests.scenes.files import assert_close, visible, write_scene
from tests.scenes.test_chunks import encoded, example


def file_source(config: Chunks | Folders) -> FiniteSource:
    source = open_source(config)
    assert isinstance(source, FiniteSource)
    return source


def pixels(points: torch.Tensor, cameras: Cameras) -> torch.Tensor:
    """(V, P, 2) projections."""
    local = torch.einsum("vij,pj->vpi", cameras.w2c[:, :3, :3], points) + cameras.w2c[:, None, :3, 3]
    projected = torch.einsum("vij,vpj->vpi", cameras.K, local)
    return projected[..., :2] / projected[..., 2:]


def marked_scene(depth: bool = True) -> tuple[Scene, torch.Tensor]:
    """White dots on black where known points project, for off-centre principal points."""
    g = torch.Generator().manual_seed(0)
    points = torch.randn(60, 3, generator=g, dtype=torch.float64) * 0.5
    cameras = make_cameras(3, 64, 48).to(dtype=torch.float64)
    cameras.K[:, 0, 2] += 7.3
    points = points[visible(points, cameras).all(0)]
    images = torch.zeros(3, 48, 64, 3)
    for view, places in enumerate(pixels(points, cameras).long().tolist()):
        for x, y in places:
            images[view, y, x] = 1.0
    return Scene(images, cameras, ("a", "b", "c"), images[..., 0] * 2.0 if depth else None), points


def hits(scene: Scene, points: torch.Tensor) -> torch.Tensor:
    """Brightness at the points' projections."""
    places = pixels(points, scene.cameras).long()
    x, y = places[..., 0].clamp(0, 63), places[..., 1].clamp(0, 47)
    return scene.images[:][torch.arange(3)[:, None], y, x, 0]


def test_mirrored_points_project_to_mirrored_pixels():
    scene, points = marked_scene()
    assert len(points) > 5
    assert (hits(scene, points) == 1).all()
    mirrored_points = points * torch.tensor([-1.0, 1.0, 1.0])
    mirrored = mirror(scene).cameras
    expected = pixels(points, scene.cameras)
    expected[..., 0] = 64 - expected[..., 0]
    assert_close(pixels(mirrored_points, mirrored), expected)
    assert (hits(mirror(scene), mirrored_points) == 1).all()
    released = mirror(scene, move_principal_point=False)
    assert torch.equal(released.cameras.K, scene.cameras.K)
    off_by = pixels(mirrored_points, released.cameras)[..., 0] - expected[..., 0]
    assert_close(off_by, torch.full_like(off_by, 2 * scene.cameras.K[0, 0, 2].item() - 64))
    mirror(scene).cameras.check()


def test_mirroring_moves_depth_along_and_twice_is_nothing():
    scene, _ = marked_scene()
    once, twice = mirror(scene), mirror(mirror(scene))
    assert once.depth is not None
    assert torch.equal(once.depth, once.images[:][..., 0] * 2.0)
    assert torch.equal(twice.images[:], scene.images[:])
    assert_close(twice.cameras.K, scene.cameras.K)
    assert torch.equal(twice.cameras.c2w, scene.cameras.c2w)


@pytest.mark.parametrize("rule", ["transformed", "raw"])
def test_mirroring_and_normalising_commute(rule):
    scene, _ = marked_scene()
    flip = torch.diag(torch.tensor([-1.0, 1, 1, 1]))
    expected = flip @ make_sample(scene, 2, rule).c2w @ flip
    assert_close(make_sample(mirror(scene), 2, rule).c2w, expected, atol=1e-6, rtol=0)


def test_the_frame_is_of_the_inputs_alone_and_depth_is_scaled_along():
    scene, _ = marked_scene()
    sample = make_sample(scene, 2, "transformed")
    _, to_world = normalise(scene.cameras, [0, 1])
    assert sample.c2w[:2, :3, 3].abs().max() == pytest.approx(1.0)
    assert sample.depth is not None
    assert scene.depth is not None
    assert_close(sample.depth * to_world.scale, scene.depth)
    assert {x.dtype for x in (sample.images, sample.c2w, sample.K, sample.depth)} == {torch.float32}
    moved = make_sample(scene.select([0, 1]), 2, "transformed")
    assert torch.equal(moved.c2w, sample.c2w[:2]), "targets do not count"
    assert make_sample(marked_scene(depth=False)[0], 2, "transformed").depth is None


def chunk_clip(folder, **changes) -> Clip:
    value = example("a", **{"views": 4, "width": 60, "height": 40, **changes})
    return clip_of(folder, value)


def clip_of(folder, value) -> Clip:
    torch.save([value], folder / "000000.torch")
    (folder / "index.json").write_text(json.dumps({value["key"]: "000000.torch"}))
    return file_source(Chunks(folder)).load(value["key"])


def test_exact_fit_equals_load_scene(tmp_path):
    scene = fitted(chunk_clip(tmp_path), [2, 0], (16, 32), "exact")
    expected = load_scene(tmp_path, size=(32, 16)).select([2, 0])
    assert torch.equal(scene.images[:], expected.images[:])
    assert torch.equal(scene.cameras.K, expected.cameras.K)
    assert torch.equal(scene.cameras.c2w, expected.cameras.c2w)


def test_exact_fit_keeps_the_depth_of_files(tmp_path):
    _, data = write_scene(tmp_path / "scene")
    for frame in data["frames"]:
        name = frame["file_path"].replace(".png", "_depth.png")
        frame["depth_file_path"] = name
        Image.fromarray(np.full((24, 32), 2500, np.uint16)).save(tmp_path / "scene" / name)
    (tmp_path / "scene" / "transforms.json").write_text(json.dumps(data))
    source = file_source(Folders(tmp_path))
    scene = fitted(source.load(source.keys[0]), [0, 1, 2], (16, 16), "exact")
    assert scene.depth is not None
    assert_close(scene.depth, torch.full((3, 16, 16), 2.5))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_released_fit_as_recorded(tmp_path, number):
    golden = dict(np.load(shared_path("golden/main_re10k_dataset.npz")))
    prefix = f"scene{number}_"
    rows = golden[prefix + "cameras_rows18"]
    y, x = np.mgrid[0:360, 0:640]
    frames = [np.stack([3 * x + 17 * i, 5 * y + 31 * i, x + y + 7 * i], -1) % 256 for i in range(len(rows))]
    value = {"key": "k", "cameras": torch.from_numpy(rows), "images": [encoded(f.astype(np.uint8)) for f in frames]}
    clip = clip_of(tmp_path, value)
    context, target = (golden[f"{prefix}{part}_indices"].tolist() for part in ("context", "target"))
    sample = make_sample(fitted(clip, [*context, *target], (256, 256), "released"), len(context), "raw")
    for part, views in (("context", slice(0, len(context))), ("target", slice(len(context), None))):
        expected = torch.from_numpy(golden[f"{prefix}{part}_extrinsics_c2w_normalised"])
        assert_close(sample.c2w[views], expected, atol=2e-6, rtol=2e-6)
        K = torch.from_numpy(golden[f"{prefix}{part}_intrinsics_after_crop"])
        assert_close(sample.K[views], K * torch.tensor([256.0, 256.0, 1.0])[:, None], atol=1e-4, rtol=1e-6)
    shown = golden.get(f"{prefix}context_image_rows100to108_cols120to136_u8")
    if shown is None:  # recorded for the first scene only
        return
    window = (sample.images[: len(context), 100:108, 120:136] * 255).round().byte().permute(0, 3, 1, 2)
    assert torch.equal(window, torch.from_numpy(shown))


def test_released_shim_and_stretch(tmp_path):
    clip = chunk_clip(tmp_path, width=150, height=80)
    shim = fitted(clip, [1], (64, 128), "released_shim")
    whole = load_scene(tmp_path)
    assert torch.equal(shim.images[:], whole.images[[1]][:, 8:72, 11:139])
    assert_close(shim.cameras.K[0, 0, 2] / 128, whole.cameras.K[1, 0, 2] / 150)
    stretched = fitted(clip, [1], (40, 40), "stretch")
    assert_close(stretched.cameras.K, whole.cameras[1].resize(40, 40).K)
    with pytest.raises(Unusable, match="150x80 are cropped to 128x64, not 64x64"):
        fitted(clip, [1], (64, 64), "released_shim")


def test_released_fit_does_not_enlarge(tmp_path):
    with pytest.raises(Unusable, match="60x40 are smaller than 64x32"):
        fitted(chunk_clip(tmp_path), [0], (32, 64), "released")


def spoiled(tmp_path, **columns: float) -> Clip:
    value = example("a", views=4, width=60, height=40)
    for column, number in columns.items():
        value["cameras"][3, int(column[1:])] = number
    return clip_of(tmp_path, value)


def test_wide_views_are_left_out_by_the_released_fits(tmp_path):
    clip = spoiled(tmp_path, c0=0.3)  # 2 atan(0.5 / 0.3) = 118 degrees
    with pytest.raises(Unusable, match="field of view of 118 degrees"):
        fitted(clip, [0, 1], (32, 32), "released")
    fitted(clip, [3], (32, 32), "exact")
    edge = spoiled(tmp_path, c0=0.5 / np.tan(np.radians(49.9)))
    fitted(edge, [0], (32, 32), "released")


def test_odd_poses_are_left_out(tmp_path):
    clip = chunk_clip(tmp_path)
    clip.c2w[3, 0, 3] = 1001.0
    with pytest.raises(Unusable, match="coordinate of 1001"):
        fitted(clip, [0, 3], (40, 64), "stretch")
    fitted(clip, [0, 1], (40, 64), "stretch")
    clip.c2w[3, 0, 3] = -2000.0
    fitted(clip, [0, 3], (40, 64), "stretch")
    clip.c2w[3, :3, :3] *= 1.001
    with pytest.raises(SceneError, match=r"determinant 1\.000000 to 1\.003003") as refusal:
        fitted(clip, [0, 3], (40, 64), "stretch")
    assert not isinstance(refusal.value, Unusable), "counts as broken"


def test_a_nan_pose_is_named(tmp_path):
    clip = spoiled(tmp_path, c9=float("nan"))
    with pytest.raises(CameraError, match="pose of 000003"):
        fitted(clip, [0, 3], (32, 32), "exact")
    with pytest.raises(SceneError, match="determinant nan"):
        fitted(clip, [0, 3], (40, 64), "stretch")


def test_unequal_sizes_are_left_out_by_the_released_fits(tmp_path):
    value = example("a", views=3)
    value["images"][2] = example("a", views=1, width=48)["images"][0]
    clip = clip_of(tmp_path, value)
    with pytest.raises(Unusable, match="several sizes, 32x24 and 48x24"):
        fitted(clip, [0, 2], (16, 16), "released")
    assert fitted(clip, [0, 2], (16, 16), "exact").images[:].shape == (2, 16, 16, 3)
    assert_close(fitted(clip, [0, 1], (16, 16), "released").cameras.K, released_K(tmp_path))


def released_K(folder) -> torch.Tensor:
    return rescale_and_crop_released(load_scene(folder).select([0, 1]), 16, 16).cameras.K
