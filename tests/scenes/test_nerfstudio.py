from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from ilrm.core.errors import CameraError, IlrmWarning, SceneError
from ilrm.scenes import declared_holdout, load_scene
from tests.scenes.files import assert_close, smooth, write_scene, write_transforms


def test_reads_what_was_written(tmp_path):
    cameras, _ = write_scene(tmp_path)
    for path in (tmp_path, str(tmp_path / "transforms.json")):
        scene = load_scene(path)
        assert scene.names == ("0.png", "1.png", "2.png")
        assert_close(scene.cameras.c2w, cameras.c2w, atol=1e-6, rtol=0)
        assert_close(scene.cameras.K, cameras.K)
        assert torch.equal((scene.images[2] * 255).round().byte(), torch.from_numpy(smooth(32, 24, 2)))


def test_max_side_scales_images_intrinsics_and_depth(tmp_path):
    cameras, data = write_scene(tmp_path)
    for view in range(3):
        depth = np.full((24, 32), 1000 * (view + 1), np.uint16)
        Image.fromarray(depth).save(tmp_path / f"depth{view}.png")
        data["frames"][view]["depth_file_path"] = f"depth{view}.png"
    write_transforms(tmp_path, data)
    scene = load_scene(tmp_path, max_side=16)
    assert scene.images.shape == (3, 12, 16, 3)
    assert_close(scene.cameras.K, cameras.resize(16, 12).K)
    assert scene.depth is not None
    assert_close(scene.depth, torch.tensor([1.0, 2.0, 3.0])[:, None, None].expand(3, 12, 16))
    assert load_scene(tmp_path, max_side=64).images.shape == (3, 24, 32, 3), "never enlarged"


def test_size_covers_and_crops_with_the_principal_point(tmp_path):
    cameras, _ = write_scene(tmp_path)
    scene = load_scene(tmp_path, size=(20, 20))
    expected = cameras.crop(4, 0, 24, 24).resize(20, 20)
    assert_close(scene.cameras.K, expected.K)
    whole = Image.fromarray(smooth(32, 24, 0)).crop((4, 0, 28, 24)).resize((20, 20), Image.Resampling.LANCZOS)
    difference = (scene.images[0] * 255).round() - torch.from_numpy(np.array(whole)).float()
    assert difference.abs().max() <= 1  # Pillow rounds a box differently from a crop


def test_mixed_sizes_follow_the_most_common_one(tmp_path):
    cameras, data = write_scene(tmp_path)
    Image.fromarray(smooth(64, 48, 1)).save(tmp_path / "images/1.png")
    Image.fromarray(smooth(24, 24, 2)).save(tmp_path / "images/2.png")
    data["frames"][2] |= {"fl_x": 20.0, "fl_y": 20.0, "cx": 12.0, "cy": 11.0, "w": 24, "h": 24}
    data["frames"].append(data["frames"][0] | {"file_path": "images/3.png"})
    Image.fromarray(smooth(32, 24, 3)).save(tmp_path / "images/3.png")
    write_transforms(tmp_path, data)
    scene = load_scene(tmp_path)
    assert scene.images.shape == (4, 24, 32, 3)
    assert_close(scene.cameras.K[1], cameras.K[1])  # declared 32x24, stored twice as large
    factor = 32 / 24
    expected = torch.tensor([[20 * factor, 0, 16], [0, 20 * factor, 11 * factor - 4], [0, 0, 1]])
    assert_close(scene.cameras.K[2], expected)
    # The same waves at twice the resolution look the same.
    difference = (scene.images[1] * 255 - torch.from_numpy(smooth(32, 24, 1)).float()).abs()
    assert difference.max() < 4


def test_reduced_copies_are_found_and_intrinsics_follow(tmp_path):
    cameras, _ = write_scene(tmp_path)
    (tmp_path / "images_4").mkdir()
    for view in range(3):
        Image.fromarray(smooth(8, 6, view)).save(tmp_path / f"images_4/{view}.png")
        (tmp_path / f"images/{view}.png").unlink()
    scene = load_scene(tmp_path)
    assert scene.images.shape == (3, 6, 8, 3)
    assert_close(scene.cameras.K, cameras.resize(8, 6).K)


def test_blender_files_without_suffix_and_with_held_out_views(tmp_path):
    _, data = write_scene(tmp_path)
    (tmp_path / "transforms.json").unlink()
    frames = [{"file_path": f"./images/{i}", "transform_matrix": f["transform_matrix"]}
              for i, f in enumerate(data["frames"])]  # fmt: skip
    (tmp_path / "transforms_train.json").write_text(json.dumps({"camera_angle_x": 0.8, "frames": frames[:2]}))
    (tmp_path / "transforms_test.json").write_text(json.dumps({"camera_angle_x": 0.8, "frames": frames[2:]}))
    scene = load_scene(tmp_path)
    focal = 16 / math.tan(0.4)
    assert_close(scene.cameras.K[0], torch.tensor([[focal, 0, 16], [0, focal, 12], [0, 0, 1]]))
    assert scene.names == ("0.png", "1.png", "2.png")
    assert declared_holdout(tmp_path) == ("2.png",)


def test_vertical_field_of_view_and_test_filenames(tmp_path):
    _, data = write_scene(tmp_path)
    for key in ("fl_x", "fl_y", "cx", "cy"):
        del data[key]
    data |= {"camera_angle_x": 1.0, "camera_angle_y": 0.9, "test_filenames": ["images/1.png"]}
    write_transforms(tmp_path, data)
    K = load_scene(tmp_path).cameras.K[0]
    assert K[0, 0].item() == pytest.approx(16 / math.tan(0.5), rel=1e-6)
    assert K[1, 1].item() == pytest.approx(12 / math.tan(0.45), rel=1e-6)
    assert K[:2, 2].tolist() == [16, 12]
    assert declared_holdout(tmp_path) == ("1.png",)


def test_equal_base_names_keep_their_folders(tmp_path):
    _, data = write_scene(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "images/1.png").rename(tmp_path / "other/0.png")
    data["frames"][1]["file_path"] = "other/0.png"
    write_transforms(tmp_path, data)
    assert load_scene(tmp_path).names == ("images/0.png", "other/0.png", "images/2.png")


def test_slightly_skewed_rotations_are_cleaned(tmp_path):
    cameras, data = write_scene(tmp_path)
    data["frames"][0]["transform_matrix"] = [
        [round(x, 4) for x in row] for row in data["frames"][0]["transform_matrix"]
    ]
    write_transforms(tmp_path, data)
    c2w = load_scene(tmp_path).cameras.c2w
    rotation = c2w[0, :3, :3].double()
    assert (rotation.T @ rotation - torch.eye(3)).abs().max() < 1e-6
    assert_close(c2w[0], cameras.c2w[0], atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: d["frames"][1].pop("transform_matrix"), 'frame 1 .* no "transform_matrix"'),
        (lambda d: d["frames"][1].pop("file_path"), 'frame 1 .* no "file_path"'),
        (lambda d: d["frames"][2].update(fl_x="500"), 'frame 2 .*"fl_x" is "500"'),
        (lambda d: d["frames"][2].update(fl_x=True), 'frame 2 .*"fl_x" is true'),
        (lambda d: d.update(fl_x=0), '"fl_x" is 0'),
        (lambda d: d.update(fl_y=-3.5), '"fl_y" is -3.5'),
        (lambda d: d.update(cx=math.nan), '"cx" is NaN'),
        (lambda d: (d.pop("fl_x"), d.pop("fl_y")), 'neither "fl_x" nor "camera_angle_x"'),
        (lambda d: (d.pop("fl_x"), d.update(camera_angle_x=3.3)), '"camera_angle_x" is 3.3'),
        (lambda d: d["frames"][0].update(transform_matrix=[[1, 2], [3, 4]]), 'frame 0 .*"transform_matrix" is'),
        (lambda d: d["frames"][0]["transform_matrix"][0].__setitem__(0, "1"), 'frame 0 .*"transform_matrix" is'),
        (lambda d: d["frames"][0].update(transform_matrix=None), 'frame 0 .* no "transform_matrix"'),
        (lambda d: d["frames"].clear(), "holds no frames"),
        (lambda d: d.pop("frames"), "holds no posed frames|holds no frames"),
        (lambda d: d["frames"].append(7), "holds no frames"),
        (lambda d: d["frames"].append(dict(d["frames"][0])), "images/0.png more than once"),
        (lambda d: d.update(camera_model="EQUIRECTANGULAR"), "camera model 'EQUIRECTANGULAR'"),
        (lambda d: d.update(k4=0.1), "k4 = 0.1"),
        (lambda d: d.update(w=20, h=40), "is 32x24, but its intrinsics are for 20x40"),
        (lambda d: d.update(w=-32), '"w" is -32'),
        (lambda d: d.update(w=0.3), "declares an image of 0x24"),
        (lambda d: d.update(fl_x=10**400), '"fl_x" is 10000'),
    ],
)
def test_malformed_values_are_named(tmp_path, spoil, message):
    _, data = write_scene(tmp_path)
    spoil(data)
    write_transforms(tmp_path, data)
    with pytest.raises(SceneError, match=message):
        load_scene(tmp_path)


def test_many_missing_files_are_counted(tmp_path):
    write_scene(tmp_path, views=8)
    for view in range(7):
        (tmp_path / f"images/{view}.png").unlink()
    with pytest.warns(IlrmWarning, match=r"7 of the 8 images.*left out.*4\.png \.\.\. \(7 in total\)"):
        assert load_scene(tmp_path).names == ("7.png",)
    (tmp_path / "images/7.png").unlink()
    with pytest.raises(SceneError, match=r"8 of the 8 images"):
        load_scene(tmp_path)


@pytest.mark.parametrize(
    "path", ["images/none.png", "/", ".", "..", "images/..", "x" * 5000, "\0", "\ud800", "a\\..\\b"]
)
def test_a_photo_that_is_not_there_is_left_out(tmp_path, path):
    _, data = write_scene(tmp_path)
    Image.new("RGB", (32, 24)).save(f"{tmp_path}.png")  # what a folder's name with a suffix would be
    data["frames"][1]["file_path"] = path
    write_transforms(tmp_path, data)
    with pytest.warns(IlrmWarning, match="1 of the 3 images .* do not exist and are left out"):
        assert load_scene(tmp_path).names == ("0.png", "2.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m[0].__setitem__(3, math.nan), "pose of 1.png holds NaN"),
        (lambda m: m[0].__setitem__(0, math.inf), "pose of 1.png holds NaN or infinite"),
        (lambda m: [row.__setitem__(k, row[k] * 0.33) for row in m[:3] for k in range(3)], "rotation of 1.png is not"),
        (lambda m: [row.__setitem__(0, -row[0]) for row in m[:3]], "rotation of 1.png is a mirror image"),
    ],
)
def test_impossible_poses_name_the_view(tmp_path, change, message):
    _, data = write_scene(tmp_path)
    change(data["frames"][1]["transform_matrix"])
    write_transforms(tmp_path, data)
    with pytest.raises(CameraError, match=message):
        load_scene(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "not json", "\x00\x01", "[" * 100_000, '{"frames": "no"}', "[]", "3"])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "transforms.json").write_text(text)
    with pytest.raises(SceneError, match=r"transforms\.json"):
        load_scene(tmp_path)


def test_points_beside_the_file(tmp_path):
    write_scene(tmp_path)
    ply = "ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty double y\nproperty float z\n"
    (tmp_path / "points.ply").write_text(ply + "end_header\n1 2 3\n-4 5e-1 6\n")
    scene = load_scene(tmp_path)
    assert scene.points is not None
    assert scene.points.tolist() == [[1, 2, 3], [-4, 0.5, 6]]
    assert scene.points_rgb is None
    for count, words in (
        ("9" * 12, "has too few"),
        (2**63, "has too few"),
        ("9" * 5000, "does not begin"),
        ("²", "does"),
    ):
        spoiled = ply.replace("vertex 2", f"vertex {count}") + "end_header\n1 2 3\n"
        (tmp_path / "points.ply").write_text(spoiled, encoding="utf-8")
        with pytest.warns(UserWarning, match=rf"points\.ply {words}"):
            assert load_scene(tmp_path).points is None
