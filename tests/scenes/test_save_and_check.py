from __future__ import annotations

import pytest
import torch
from PIL import Image

from ilrm.core.errors import SceneError
from ilrm.core.scene import Scene
from ilrm.scenes import check_scene, load_scene, save_scene
from tests.conftest import make_cameras
from tests.scenes.files import assert_close, write_scene, write_transforms


def small_scene(views: int = 3) -> Scene:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (views, 24, 32, 3), generator=g) / 255
    depth = torch.randint(0, 9000, (views, 24, 32), generator=g) / 1000
    points, rgb = torch.randn(5, 3, generator=g), torch.randint(0, 256, (5, 3), generator=g) / 255
    names = tuple(f"photo {view}.jpg" for view in range(views))
    return Scene(images, make_cameras(views, 32, 24), names, depth, points, rgb)


def test_saved_scenes_read_back_equal(tmp_path):
    scene = small_scene()
    file = save_scene(scene, tmp_path / "out")
    assert file == tmp_path / "out/transforms.json"
    back = load_scene(file)
    assert back.names == ("photo 0.png", "photo 1.png", "photo 2.png")
    assert_close(back.cameras.c2w, scene.cameras.c2w, atol=1e-6, rtol=0)
    assert_close(back.cameras.K, scene.cameras.K)
    assert_close(back.images[:], scene.images[:])
    assert_close(back.depth, scene.depth)
    assert_close(back.points, scene.points)
    assert_close(back.points_rgb, scene.points_rgb)


def test_opencv_cameras_read_back_equal(tmp_path):
    scene = small_scene()
    back = load_scene(save_scene(scene, tmp_path, camera_file="opencv_cameras.json"))
    assert_close(back.cameras.c2w, scene.cameras.c2w, atol=1e-6, rtol=0)
    assert_close(back.images[:], scene.images[:])


def test_jpeg_and_equal_stems(tmp_path):
    scene = small_scene(2)
    scene = Scene(torch.full_like(scene.images[:], 0.5), scene.cameras, ("a/1.png", "b/1.png"))
    back = load_scene(save_scene(scene, tmp_path, image_format="jpg"))
    assert back.names == ("000000.jpg", "000001.jpg")
    assert (back.images[:] - 0.5).abs().max() < 0.01


def test_depth_beyond_16_bits_is_refused_and_nothing_is_left(tmp_path):
    scene = small_scene()
    assert scene.depth is not None
    far = Scene(scene.images, scene.cameras, scene.names, scene.depth + 60)
    with pytest.raises(SceneError, match="depth of photo 0"):
        save_scene(far, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def messages(path, level: str) -> str:
    return "\n".join(finding.message for finding in check_scene(path) if finding.level == level)


def test_a_good_scene_has_no_complaints(tmp_path):
    write_scene(tmp_path)
    assert messages(tmp_path, "error") == ""
    assert messages(tmp_path, "warning") == ""
    assert messages(tmp_path, "info") == "3 views of 32x24"


def test_all_undecodable_images_are_reported(tmp_path):
    write_scene(tmp_path)
    for view in (0, 2):
        file = tmp_path / f"images/{view}.png"
        file.write_bytes(file.read_bytes()[:-200])
    errors = messages(tmp_path, "error")
    assert "0.png cannot be decoded" in errors
    assert "2.png cannot be decoded" in errors
    assert "1.png" not in errors


def test_a_scene_that_does_not_load_is_one_error(tmp_path):
    assert "holds no scene" in messages(tmp_path, "error")


def test_odd_values_are_warned_about(tmp_path):
    _, data = write_scene(tmp_path, views=4)
    data["frames"][1]["transform_matrix"] = data["frames"][0]["transform_matrix"]
    data["frames"][2] |= {"fl_x": 5.0, "cx": -3.0}
    write_transforms(tmp_path, data)
    Image.new("RGB", (64, 48), "red").save(tmp_path / "images/3.png")
    warnings = messages(tmp_path, "warning")
    assert "1.png has exactly the pose of 0.png" in warnings
    assert "2.png has a horizontal field of view of 145 degrees" in warnings
    assert "2.png has the principal point outside the image" in warnings
    assert "3.png is a single flat colour" in warnings
    assert "3 of 32x24, 1 of 64x48" in warnings


def test_useless_poses_are_warned_about(tmp_path):
    _, data = write_scene(tmp_path)
    for frame in data["frames"]:
        for row in frame["transform_matrix"][:3]:
            row[3] = 1.0
    write_transforms(tmp_path, data)
    assert "all cameras are at the same position" in messages(tmp_path, "warning")
    for view, frame in enumerate(data["frames"]):
        frame["transform_matrix"][0][3], frame["transform_matrix"][1][3] = 512345 + 0.2 * view, 5432109
    write_transforms(tmp_path, data)
    assert "origin is far away" in messages(tmp_path, "info")
    assert messages(tmp_path, "warning") == ""
    for view, frame in enumerate(data["frames"]):
        frame["transform_matrix"][0][3] = 5e5 + 1e-3 * view
    write_transforms(tmp_path, data)
    assert "same position" not in messages(tmp_path, "warning"), "a millimetre apart is apart, however far away"
    data["frames"] = data["frames"][:1]
    write_transforms(tmp_path, data)
    assert "one view alone" in messages(tmp_path, "warning")
