"""The released preparation, compared with arrays recorded from the released code."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ilrm.core.cameras import Cameras, normalise
from ilrm.core.errors import SceneError
from ilrm.core.scene import LazyImages, Scene
from ilrm.datasets.indices import read_evaluation_index, read_kmeans_index
from ilrm.scenes import load_scene, split_holdout
from ilrm.scenes.released import (
    crop_to_multiple_released,
    nearest_multiple,
    rescale_and_crop_released,
    resize_bilinear_opencv,
    stretch_released,
    stretch_to_multiple,
)
from tests.conftest import shared_path
from tests.scenes.files import assert_close
from tests.scenes.test_chunks import encoded


def arrays(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(shared_path(f"golden/{name}.npz")))


def in_pixels(K: np.ndarray, width: int, height: int) -> Tensor:
    return torch.from_numpy(K) * torch.tensor([width, height, 1.0])[:, None]


def scene_of(images: Tensor, K: Tensor) -> Scene:
    """A scene of uint8 images (V, H, W, 3)."""
    views, height, width, _ = images.shape
    lazy = LazyImages([lambda image=image: image for image in images], height, width)
    cameras = Cameras(torch.eye(4).repeat(views, 1, 1), K, width, height)
    return Scene(lazy, cameras, tuple(str(view) for view in range(views)))


def as_bytes(images: Tensor) -> Tensor:
    return (images * 255).round().byte()


@pytest.mark.parametrize("case", range(5))
@pytest.mark.parametrize("lazy", [True, False])
def test_rescale_and_crop(case, lazy):
    golden = {k[6:]: v for k, v in arrays("main_crop_shim").items() if k.startswith(f"case{case}_")}
    images = torch.from_numpy(golden["in_image_u8"]).permute(0, 2, 3, 1)
    height, width = golden["target_hw"].tolist()
    scene = scene_of(images, in_pixels(golden["in_intrinsics"], images.shape[2], images.shape[1]))
    if not lazy:
        scene = Scene(scene.images[:], scene.cameras, scene.names)
    out = rescale_and_crop_released(scene, width, height)
    expected = torch.from_numpy(golden["out_image_u8"]).permute(0, 2, 3, 1)
    assert torch.equal(as_bytes(out.images[:]), expected)
    assert_close(out.cameras.K, in_pixels(golden["out_intrinsics"], width, height), atol=1e-5, rtol=1e-6)


def test_eight_bit_values_survive_the_way_through_floats():
    values = torch.from_numpy(arrays("main_crop_shim")["uint8_to_float_to_uint8_truncation_check"])
    assert torch.equal((torch.arange(256) / 255 * 255).to(torch.uint8), values)


def test_patch_shim_by_the_specified_numbers():
    K = in_pixels(np.array([[[0.9, 0, 0.5], [0, 1.6, 0.5], [0, 0, 1]]], np.float32), 480, 270)
    image = torch.arange(270 * 480 * 3).reshape(1, 270, 480, 3).to(torch.uint8)
    out = crop_to_multiple_released(scene_of(image, K))
    assert out.images.shape == (1, 256, 448, 3)
    assert torch.equal(as_bytes(out.images[:]), image[:, 7:263, 16:464])
    expected = [[0.9 * 480, 0, 224], [0, 1.6 * 270, 128], [0, 0, 1]]
    assert_close(out.cameras.K[0], torch.tensor(expected))


def test_enlarging_is_refused():
    scene = scene_of(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.eye(3)[None])
    with pytest.raises(SceneError, match="8x8 cannot be cropped to 16x4"):
        rescale_and_crop_released(scene, 16, 4)
    with pytest.raises(SceneError, match="8x8 are too small"):
        crop_to_multiple_released(scene)


@pytest.mark.parametrize("case", range(4))
def test_stretch(case):
    golden = {k[6:]: v for k, v in arrays("wide_resize").items() if k.startswith(f"case{case}_")}
    fx, fy, cx, cy, *_ = golden["in_fx_fy_cx_cy_h_w"]
    K = torch.tensor([[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]], dtype=torch.float64)
    source = torch.from_numpy(golden["in_image_hwc_u8"])[None]
    height, width, _ = golden["out_image_hwc_u8"].shape
    out = stretch_released(scene_of(source, K), width, height)
    assert torch.equal(as_bytes(out.images[0]), torch.from_numpy(golden["out_image_hwc_u8"]))
    values = out.cameras.K[0, [0, 1, 0, 1], [0, 1, 2, 2]]
    assert_close(values, torch.from_numpy(golden["out_fx_fy_cx_cy"]), atol=1e-12, rtol=1e-7)


def test_rounding_rule():
    golden = arrays("wide_resize")
    sides = [nearest_multiple(side) for side in golden["rounding_rule_in"]]
    assert sides == golden["rounding_rule_out_multiple_of_16"].tolist()


def test_the_released_input_size():
    scene = scene_of(torch.zeros(1, 540, 960, 3, dtype=torch.uint8), torch.eye(3)[None])
    assert stretch_to_multiple(scene).images.shape == (1, 544, 960, 3)
    with pytest.raises(SceneError, match="8x8 are too small"):
        stretch_to_multiple(scene_of(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.eye(3)[None]))


def test_bilinear_equals_opencv_bit_for_bit():
    g = np.random.default_rng(0)
    sizes = [(540, 960, 544, 960), (40, 64, 20, 32), (1, 1, 5, 7), *g.integers(1, 90, (200, 4)).tolist()]
    for h, w, height, width in sizes:
        image = g.integers(0, 256, (h, w, 3), dtype=np.uint8)
        expected = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        assert np.array_equal(resize_bilinear_opencv(image, width, height), expected), (h, w, height, width)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_chunk_through_the_whole_released_road(tmp_path, number):
    golden = arrays("main_re10k_dataset")
    prefix = f"scene{number}_"
    rows = golden[prefix + "cameras_rows18"]
    y, x = np.mgrid[0:360, 0:640]
    frames = [np.stack([3 * x + 17 * i, 5 * y + 31 * i, x + y + 7 * i], -1) % 256 for i in range(len(rows))]
    images = [encoded(frame.astype(np.uint8)) for frame in frames]
    torch.save([{"key": "k", "cameras": torch.from_numpy(rows), "images": images}], tmp_path / "0.torch")
    scene = rescale_and_crop_released(load_scene(tmp_path / "0.torch"), 256, 256)
    context, target = (golden[f"{prefix}{part}_indices"].tolist() for part in ("context", "target"))
    cameras, _ = normalise(scene.cameras, context, rule="raw")
    for part, views in (("context", context), ("target", target)):
        expected = torch.from_numpy(golden[f"{prefix}{part}_extrinsics_c2w_normalised"])
        assert_close(cameras.c2w[views], expected, atol=2e-6, rtol=2e-6)
        K = in_pixels(golden[f"{prefix}{part}_intrinsics_after_crop"], 256, 256)
        assert_close(cameras.K[views], K, atol=1e-4, rtol=1e-6)
        box = f"{prefix}{part}_image_rows100to108_cols120to136_u8"
        if box in golden:
            pixels = as_bytes(scene.images[views]).permute(0, 3, 1, 2)
            assert torch.equal(pixels[:, :, 100:108, 120:136], torch.from_numpy(golden[box]))
            mean = scene.images[views].double().mean((1, 2)).numpy()
            np.testing.assert_allclose(mean, golden[f"{prefix}{part}_image_mean_per_view_channel"], atol=1e-6)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_opencv_cameras_through_the_whole_released_road(tmp_path, number):
    golden = {k[7:]: v for k, v in arrays("wide_dataset_pose_normalisation").items() if k.startswith(f"scene{number}_")}
    frames = []
    for view, (w2c, lens) in enumerate(zip(golden["w2c_float64"], golden["fx_fy_cx_cy_h_w"], strict=True)):
        fx, fy, cx, cy, h, w = lens.tolist()
        pixels = golden.get("frame8_source_hwc_u8") if view == 8 else None
        blank = np.zeros((int(h), int(w), 3), np.uint8)
        Image.fromarray(blank if pixels is None else pixels).save(tmp_path / f"{view:03d}.png")
        values = {"fx": fx, "fy": fy, "cx": cx, "cy": cy, "h": int(h), "w": int(w)}
        frames.append({"file_path": f"{view:03d}.png", "w2c": w2c.tolist(), **values})
    (tmp_path / "opencv_cameras.json").write_text(json.dumps({"scene_name": "s", "frames": frames}))
    scene = stretch_to_multiple(load_scene(tmp_path))
    inputs = sorted(golden["index_file_list"].tolist())
    _, targets = split_holdout(len(scene))
    assert inputs == golden["input_frame_indices"].tolist()
    assert targets == golden["target_frame_indices"].tolist()
    cameras, _ = normalise(scene.cameras, inputs)
    for views, part in ((inputs, "input"), (targets, "target")):
        expected = torch.from_numpy(golden[f"{part}_c2w_normalised"])
        assert_close(cameras.c2w[views], expected, atol=2e-6, rtol=2e-6)
    K = cameras.K[inputs + targets][:, [0, 1, 0, 1], [0, 1, 2, 2]]
    assert_close(K, torch.from_numpy(golden["fxfycxcy_out"]), atol=1e-5, rtol=1e-6)
    if "frame8_out_chw_u8" in golden:
        assert torch.equal(as_bytes(scene.images[8]).permute(2, 0, 1), torch.from_numpy(golden["frame8_out_chw_u8"]))


def test_evaluation_index(tmp_path):
    golden = arrays("main_view_samplers")
    (tmp_path / "index.json").write_text(str(golden["evaluation_index_json_in"]))
    index = read_evaluation_index(tmp_path / "index.json")
    scored = [views for views in index.values() if views is not None]
    assert [list(views.context) for views in scored] == golden["evaluation_context_out"].tolist()
    assert [list(views.target) for views in scored] == golden["evaluation_target_out"].tolist()
    assert index["none"] is None
    full = read_evaluation_index(shared_path("indices/evaluation_index_re10k.json"))
    counts = [len(full), sum(views is not None for views in full.values())]
    assert counts == golden["evaluation_index_counts_total_nonnull"].tolist()


def test_kmeans_index():
    index = read_kmeans_index(shared_path("indices/longlrm_dl3dv_fold_8_kmeans_input_idx.json"))
    assert len(index) == 140
    for lists in index.values():
        assert {count: len(views) for count, views in lists.items()} == {16: 16, 32: 32}
        assert not any(view % 8 == 0 for views in lists.values() for view in views)


@pytest.mark.parametrize(
    "value", [[], {}, {"a": 5}, {"a": {"context": [1]}}, {"a": {"context": [-1], "target": [0]}}, {"a": []}]
)
def test_malformed_evaluation_indices_are_refused(tmp_path, value):
    (tmp_path / "index.json").write_text(json.dumps(value))
    with pytest.raises(SceneError, match=r"index\.json"):
        read_evaluation_index(tmp_path / "index.json")


@pytest.mark.parametrize("views", [[1], [1, 1], "12", [1, 2.5]])
def test_malformed_kmeans_indices_are_refused(tmp_path, views):
    (tmp_path / "index.json").write_text(json.dumps([{"scene_name": "s", "fold_8_kmeans_2_input": views}]))
    with pytest.raises(SceneError, match="fold_8_kmeans_2_input of s"):
        read_kmeans_index(tmp_path / "index.json")
