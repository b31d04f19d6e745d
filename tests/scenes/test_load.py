"""Recognising the format of a path, and the two OpenCV camera files."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ilrm.core.errors import CameraError, SceneError
from ilrm.scenes import load_scene
from tests.conftest import shared_path
from tests.scenes.files import assert_close, smooth, visible, write_scene


def write_opencv(folder, lvsm: bool = False):
    """Turn a scene's transforms.json into opencv_cameras.json, or its LVSM variant."""
    cameras, _ = write_scene(folder)
    (folder / "transforms.json").unlink()
    frames = []
    for view, w2c in enumerate(cameras.w2c.double().tolist()):
        fx, fy, cx, cy = cameras.K[view].double()[[0, 1, 0, 1], [0, 1, 2, 2]].tolist()
        lens = {"fx": fx, "fy": fy, "cx": cx, "cy": cy, "w": 32, "h": 24, "file_path": f"images/{view}.png"}
        frames.append({"w2c": w2c, **lens})
        if lvsm:
            frames[-1] = {"w2c": w2c, "fxfycxcy": [fx, fy, cx, cy], "image_path": f"images/{view}.png"}
    file = folder / ("any_name.json" if lvsm else "opencv_cameras.json")
    file.write_text(json.dumps({"scene_name": "s", "frames": frames}))
    return cameras, file


@pytest.mark.parametrize("lvsm", [False, True])
def test_opencv_and_lvsm_cameras(tmp_path, lvsm):
    cameras, file = write_opencv(tmp_path, lvsm)
    for path in (tmp_path, file):
        scene = load_scene(path)
        assert_close(scene.cameras.c2w, cameras.c2w, atol=1e-6, rtol=0)
        assert_close(scene.cameras.K, cameras.K)
        assert torch.equal((scene.images[2] * 255).round().byte(), torch.from_numpy(smooth(32, 24, 2)))


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ("w2c", [[0.0] * 4] * 4, SceneError, "frame 1 .* has no inverse"),
        ("w2c", [[float("nan")] * 4] * 4, CameraError, "pose of 1.png holds NaN"),
        ("fx", None, SceneError, 'frame 1 .* no "fx"'),
        ("fx", -4, SceneError, 'frame 1 .*"fx" is -4'),
        ("fxfycxcy", [1, 2, 3], SceneError, 'frame 1 .*"fxfycxcy" is'),
        ("fxfycxcy", [1, 2, 3, "4"], SceneError, 'frame 1 .*"fxfycxcy" is'),
        ("fxfycxcy", [0, 2, 3, 4], CameraError, "intrinsics of 1.png are impossible"),
    ],
)
def test_malformed_opencv_cameras_are_named(tmp_path, key, value, error, message):
    _, file = write_opencv(tmp_path)
    data = json.loads(file.read_text())
    data["frames"][1][key] = value
    file.write_text(json.dumps(data))
    with pytest.raises(error, match=message):
        load_scene(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(SceneError, match="does not exist"):
        load_scene(tmp_path / "none")
    with pytest.raises(SceneError, match=r"holds no scene(.|\n)*transforms\.json(.|\n)*sparse/0(.|\n)*index\.json"):
        load_scene(tmp_path)
    (tmp_path / "a.xyz").write_text("")
    with pytest.raises(SceneError, match=r"a\.xyz is not a scene"):
        load_scene(tmp_path / "a.xyz")


@pytest.mark.parametrize("folder", [".", "images"])
def test_photos_without_poses_say_what_is_missing(tmp_path, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    Image.fromarray(smooth(8, 8)).save(tmp_path / folder / "a.JPG", "jpeg")
    for path in (tmp_path, tmp_path / folder / "a.JPG"):
        with pytest.raises(SceneError, match=r"camera poses(.|\n)*COLMAP"):
            load_scene(path)


def test_several_camera_files_need_a_choice(tmp_path):
    _, file = write_opencv(tmp_path, lvsm=True)
    (tmp_path / "second.json").write_text(file.read_text())
    with pytest.raises(SceneError, match=r"several camera files: any_name\.json, second\.json"):
        load_scene(tmp_path)


def test_other_json_files_are_told_apart(tmp_path):
    (tmp_path / "index.json").write_text('{"a": {"context": [0], "target": [1]}}')
    with pytest.raises(SceneError, match="holds no posed frames"):
        load_scene(tmp_path / "index.json")
    with pytest.raises(SceneError, match="holds no scene"):
        load_scene(tmp_path)


def test_a_dataset_root_asks_for_its_stage(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "test/index.json").write_text('{"a": "0.torch"}')
    with pytest.raises(SceneError, match=r"root of a dataset(.|\n)*test"):
        load_scene(tmp_path)


def test_a_key_belongs_to_chunks(tmp_path):
    write_scene(tmp_path)
    with pytest.raises(SceneError, match="only one scene"):
        load_scene(tmp_path, key="a")


@pytest.mark.parametrize("wanted", [{"max_side": 0}, {"size": (0, 5)}, {"max_side": -3}])
def test_empty_sizes_are_refused(tmp_path, wanted):
    write_scene(tmp_path)
    with pytest.raises(SceneError, match="at least 1"):
        load_scene(tmp_path, **wanted)


def test_pinhole_scenes_do_not_import_pycolmap(tmp_path):
    write_scene(tmp_path)
    code = (
        "import sys; from ilrm.scenes import load_scene; load_scene(sys.argv[1]); assert 'pycolmap' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


SIZES = {
    "banana": (14, 336, 512),
    "desk_a": (24, 288, 512),
    "fox": (24, 512, 288),
    "kitchen_a": (19, 384, 512),
    "lund_street": (21, 384, 512),
}


@pytest.mark.shared
@pytest.mark.parametrize("name", SIZES)
def test_real_scenes(name):
    scene = load_scene(shared_path(f"scenes/{name}"))
    assert tuple(scene.images.shape) == (*SIZES[name], 3)
    assert 0.1 < scene.images[0].mean() < 0.9
    assert scene.points is not None
    seen = visible(scene.points, scene.cameras)
    assert (seen.sum(0) >= 2).float().mean() > 0.99, "every point was triangulated from at least two views"


@pytest.mark.shared
def test_depth_agrees_with_the_points():
    scene = load_scene(shared_path("scenes/kitchen_a"), max_side=256)
    assert scene.depth is not None
    assert scene.points is not None
    cameras = scene.cameras
    local = torch.einsum("ij,pj->pi", cameras.w2c[0, :3, :3], scene.points) + cameras.w2c[0, :3, 3]
    local = local[visible(scene.points, cameras)[0]]
    pixel = (local @ cameras.K[0].T)[:, :2] / local[:, 2:]
    measured = scene.depth[0][pixel[:, 1].long(), pixel[:, 0].long()]
    known = measured > 0
    error = (measured[known] / local[known, 2] - 1).abs()
    assert known.sum() > 100
    # Points behind the measured surface are seen from other views; the source states 1 % for the others.
    assert np.quantile(error.numpy(), 0.3) < 0.02
