from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
from PIL import Image

from ilrm.core.cameras import Cameras
from ilrm.core.errors import IlrmError, IlrmWarning, SceneError
from ilrm.scenes import load_scene
from tests.conftest import make_cameras
from tests.scenes.files import assert_close, transforms, write_transforms

WIDTH, HEIGHT = 96, 72
LENSES = {
    "SIMPLE_PINHOLE": (80, 47, 37),
    "PINHOLE": (80, 84, 47, 37),
    "SIMPLE_RADIAL": (80, 47, 37, -0.1),
    "RADIAL": (80, 47, 37, -0.1, 0.02),
    "OPENCV": (80, 84, 47, 37, -0.1, 0.02, 0.002, -0.001),
    "FULL_OPENCV": (80, 84, 47, 37, -0.1, 0.02, 0.002, -0.001, 0.01, 0, 0, 0),
    "OPENCV_FISHEYE": (80, 84, 47, 37, 0.05, -0.01, 0.001, 0),
    "SIMPLE_RADIAL_FISHEYE": (80, 47, 37, 0.05),
    "OPENCV_FISHEYE without coefficients": (80, 84, 47, 37, 0, 0, 0, 0),
    "OPENCV without coefficients": (80, 84, 47, 37, 0, 0, 0, 0),
}


def light(rays: np.ndarray) -> np.ndarray:
    """(..., 3) colours in [0, 255] of an infinitely far world, by direction (x / z, y / z)."""
    x, y = rays[..., 0], rays[..., 1]
    return 127.5 + 100 * np.stack([np.sin(3 * x + y), np.cos(2 * x - 3 * y), np.sin(4 * y)], -1)


def photograph(camera: pycolmap.Camera) -> np.ndarray:
    """What the camera with its distortion sees: every pixel's centre traced back through COLMAP's own model."""
    x, y = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
    rays = np.asarray(camera.cam_from_img(np.stack([x, y], -1).reshape(-1, 2)))[:, :2]
    return np.rint(light(rays.reshape(camera.height, camera.width, 2))).astype(np.uint8)


def write_model(root: Path, model: str, *, text: bool = False, views: int = 3, folder: str = "") -> Cameras:
    """A COLMAP project of one camera and its photographs of the far world; returns the poses."""
    cameras = make_cameras(views, WIDTH, HEIGHT)
    lens = {"model": model.split()[0], "params": LENSES[model]}
    camera = pycolmap.Camera(width=WIDTH, height=HEIGHT, camera_id=7, **lens)
    reconstruction = pycolmap.Reconstruction()
    reconstruction.add_camera_with_trivial_rig(camera)
    w2c = cameras.w2c.double().numpy()
    for view in reversed(range(views)):
        name = f"{folder}{view}.png"
        image = pycolmap.Image(name=name, camera_id=7, image_id=10 - view, keypoints=np.full((2, 2), 30.0))
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(w2c[view, :3, :3]), w2c[view, :3, 3])
        reconstruction.add_image_with_trivial_frame(image, pose)
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph(camera)).save(root / "images" / name)
    for k in range(2):
        track = pycolmap.Track()
        track.add_element(10, k)
        track.add_element(9, k)
        reconstruction.add_point3D(np.array([k, 2.0, 3.0]), track, np.array([255, 51, 0], np.uint8))
    (root / "sparse/0").mkdir(parents=True)
    (reconstruction.write_text if text else reconstruction.write_binary)(str(root / "sparse/0"))
    return cameras


@pytest.mark.parametrize("text", [False, True])
def test_reads_poses_points_and_names(tmp_path, text):
    cameras = write_model(tmp_path, "SIMPLE_PINHOLE", text=text)
    scene = load_scene(tmp_path)
    assert scene.names == ("0.png", "1.png", "2.png"), "sorted by name, not by id"
    assert_close(scene.cameras.c2w, cameras.c2w, atol=1e-5, rtol=0)
    assert scene.cameras.K[0].tolist() == [[80, 0, 47], [0, 80, 37], [0, 0, 1]]
    assert scene.points is not None
    assert scene.points_rgb is not None
    assert sorted(scene.points.tolist()) == [[0, 2, 3], [1, 2, 3]]
    assert_close(scene.points_rgb[0], torch.tensor([1.0, 0.2, 0.0]))


@pytest.mark.parametrize("place", ["", "sparse", "sparse/0", "sparse/0/cameras.bin"])
def test_any_of_its_folders_will_do(tmp_path, place):
    write_model(tmp_path, "PINHOLE", folder="left/")
    assert load_scene(tmp_path / place).names == ("0.png", "1.png", "2.png")


@pytest.mark.parametrize("model", LENSES)
def test_distortion_is_removed(tmp_path, model):
    """Every undistorted pixel shows what lies along its own pinhole ray, up to the borders."""
    write_model(tmp_path, model, views=2)
    scene = load_scene(tmp_path)
    K = scene.cameras.K[0].double().numpy()
    x, y = np.meshgrid(np.arange(scene.cameras.width) + 0.5, np.arange(scene.cameras.height) + 0.5)
    expected = light(np.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1]], -1))
    error = np.abs(scene.images[0].numpy() * 255 - expected)
    assert error.max() < 1.5  # bilinear interpolation and two roundings; half a pixel of shift gives over 2.3
    assert error.mean() < 0.5  # and over 0.7
    assert min(scene.cameras.width, scene.cameras.height) > 60


def test_a_lens_without_distortion_leaves_the_pixels_alone(tmp_path):
    write_model(tmp_path, "OPENCV without coefficients", views=2)
    scene = load_scene(tmp_path)
    photo = np.asarray(Image.open(tmp_path / "images/0.png"))
    assert np.array_equal((scene.images[0] * 255).round().byte().numpy(), photo)


@pytest.mark.parametrize("model", ["OPENCV", "OPENCV_FISHEYE", "FULL_OPENCV", "OPENCV_FISHEYE without coefficients"])
def test_nerfstudio_and_colmap_agree(tmp_path, model):
    cameras = write_model(tmp_path, model)
    fl_x, fl_y, cx, cy, *extra = LENSES[model]
    camera_model = "OPENCV_FISHEYE" if "FISHEYE" in model else "OPENCV"
    keys = ("k1", "k2", "k3", "k4") if "FISHEYE" in model else ("k1", "k2", "p1", "p2", "k3")
    lens = {"fl_x": fl_x, "fl_y": fl_y, "cx": cx, "cy": cy, **dict(zip(keys, extra, strict=False))}
    names = [f"images/{view}.png" for view in range(3)]
    write_transforms(tmp_path, transforms(cameras, names, camera_model=camera_model, **lens))
    by_json, by_colmap = load_scene(tmp_path / "transforms.json"), load_scene(tmp_path / "sparse/0")
    assert_close(by_json.cameras.c2w, by_colmap.cameras.c2w, atol=1e-5, rtol=0)
    assert_close(by_json.cameras.K, by_colmap.cameras.K)
    assert torch.equal(by_json.images[1], by_colmap.images[1])


def test_intrinsics_follow_reduced_distorted_images(tmp_path):
    write_model(tmp_path, "OPENCV", views=2)
    full = load_scene(tmp_path)
    photo = Image.open(tmp_path / "images/0.png")
    photo.resize((WIDTH // 2, HEIGHT // 2), Image.Resampling.BOX).save(tmp_path / "images/0.png")
    half = load_scene(tmp_path)
    assert_close(half.cameras.K[0, 0, 0] * 2, full.cameras.K[0, 0, 0], rtol=0.02, atol=0)
    assert half.images.shape[2] == pytest.approx(full.images.shape[2] / 2, abs=1)


def test_missing_images_are_listed(tmp_path):
    write_model(tmp_path, "PINHOLE")
    (tmp_path / "images/1.png").unlink()
    with pytest.warns(IlrmWarning, match=r"1 of the 3 images .*1\.png"):
        assert load_scene(tmp_path).names == ("0.png", "2.png")
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(SceneError, match=r"The image 0\.png of the COLMAP model"):
        load_scene(tmp_path)


def test_missing_model_files_are_named(tmp_path):
    write_model(tmp_path, "PINHOLE")
    (tmp_path / "sparse/0/points3D.bin").unlink()
    with pytest.warns(IlrmWarning, match=r"lacks points3D\.bin"):
        assert load_scene(tmp_path).points is None
    (tmp_path / "sparse/0/cameras.bin").unlink()
    with pytest.raises(SceneError, match=r"lacks cameras\.bin"):
        load_scene(tmp_path)


def test_damaged_points_are_left_out(tmp_path):
    write_model(tmp_path, "PINHOLE")
    file = tmp_path / "sparse/0/points3D.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.warns(IlrmWarning, match=r"points are left out: .*points3D\.bin is truncated or damaged"):
        assert load_scene(tmp_path).points is None


@pytest.mark.parametrize("name", ["cameras", "images"])
def test_damaged_binary_files_are_named(tmp_path, name):
    write_model(tmp_path, "PINHOLE")
    file = tmp_path / f"sparse/0/{name}.bin"
    whole = file.read_bytes()
    huge = struct.pack("<Q", 2**60) + whole[8:]
    for damaged in (b"", whole[:5], whole[: len(whole) // 2], whole[:-1], huge):
        file.write_bytes(damaged)
        with pytest.raises(SceneError, match=rf"{name}\.bin is truncated or damaged"):
            load_scene(tmp_path)


@pytest.mark.parametrize("model_id", [-1, 99, 2**31 - 1])
def test_unknown_camera_models_are_refused(tmp_path, model_id):
    write_model(tmp_path, "PINHOLE")
    file = tmp_path / "sparse/0/cameras.bin"
    data = bytearray(file.read_bytes())
    struct.pack_into("<i", data, 12, model_id)
    file.write_bytes(data)
    with pytest.raises(SceneError, match=r"cameras\.bin"):
        load_scene(tmp_path)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("text", [False, True])
def test_random_damage_never_crashes(tmp_path, seed, text):
    write_model(tmp_path, "OPENCV", text=text, views=2)
    g = np.random.default_rng(seed)
    files = sorted((tmp_path / "sparse/0").iterdir())
    file = files[g.integers(len(files))]
    data = bytearray(file.read_bytes())
    for _ in range(3):
        data[g.integers(len(data))] = g.integers(256)
    file.write_bytes(data)
    try:
        scene = load_scene(tmp_path)
    except IlrmError:
        return
    assert len(scene) > 0


def test_a_model_without_images_is_refused(tmp_path):
    (tmp_path / "sparse/0").mkdir(parents=True)
    pycolmap.Reconstruction().write_binary(str(tmp_path / "sparse/0"))
    with pytest.raises(SceneError, match="no registered images"):
        load_scene(tmp_path)


@pytest.mark.parametrize("text", [False, True])
def test_names_that_are_not_utf8_are_found(tmp_path: Path, text: bool) -> None:
    write_model(tmp_path, "PINHOLE", text=text)
    file = tmp_path / "sparse/0" / ("images.txt" if text else "images.bin")
    file.write_bytes(file.read_bytes().replace(b"1.png", b"\xe9.png"))
    with pytest.warns(IlrmWarning, match=r"1 of the 3 images .*xe9\.png"):
        assert load_scene(tmp_path).names == ("0.png", "2.png")
    try:
        (tmp_path / "images/1.png").rename(tmp_path / "images/\udce9.png")
    except OSError:
        pytest.skip("this disk allows UTF-8 names only")
    assert load_scene(tmp_path).names == ("0.png", "2.png", "\udce9.png")


@pytest.mark.parametrize("focal", [0.0, -80.0, 1e-300, float("nan"), float("inf")])
def test_focal_lengths_that_no_lens_has(tmp_path: Path, focal: float) -> None:
    write_model(tmp_path, "OPENCV", text=True)
    file = next(tmp_path.rglob("cameras.txt"))
    text = file.read_text()
    assert " 80 " in text
    file.write_text(text.replace(" 80 ", f" {focal} "))
    with pytest.raises(IlrmError):
        load_scene(tmp_path)


@pytest.mark.skipif(not hasattr(pycolmap, "Rig"), reason="pycolmap before 3.12 knows no rigs")
@pytest.mark.parametrize("suffix", [".bin", ".txt"])
def test_poses_of_rigs_are_those_of_colmap(tmp_path: Path, suffix: str) -> None:
    """A second camera on a rig, turned and moved: its images carry their own poses in the files."""
    model = pycolmap.Reconstruction()
    sensors = [pycolmap.sensor_t(pycolmap.SensorType.CAMERA, number) for number in (1, 2)]
    for number in (1, 2):
        camera = {"model": "PINHOLE", "width": WIDTH, "height": HEIGHT, "params": LENSES["PINHOLE"]}
        model.add_camera(pycolmap.Camera(camera_id=number, **camera))
    rig = pycolmap.Rig(rig_id=1)
    rig.add_ref_sensor(sensors[0])
    turned = pycolmap.Rotation3d(np.array([0, 0.6, 0, 0.8]))
    rig.add_sensor(sensors[1], pycolmap.Rigid3d(turned, np.array([0.3, 0, 0])))
    model.add_rig(rig)
    pose = pycolmap.Rigid3d(pycolmap.Rotation3d(np.array([0.28, 0, 0, 0.96])), np.array([0, 0.5, 1.0]))
    frame = pycolmap.Frame(frame_id=1, rig_id=1, rig_from_world=pose)
    for number, sensor in enumerate(sensors, 1):
        frame.add_data_id(pycolmap.data_t(sensor, number))
    model.add_frame(frame)
    for number in (1, 2):
        image = pycolmap.Image(name=f"{number}.png", camera_id=number, image_id=number)
        image.frame_id = 1
        model.add_image(image)
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / f"{number}.png")
    model.register_frame(1)
    (model.write_binary if suffix == ".bin" else model.write_text)(str(tmp_path))
    scene = load_scene(tmp_path)
    for number in (1, 2):
        expected = np.linalg.inv(np.vstack([model.images[number].cam_from_world().matrix(), [0, 0, 0, 1]]))
        assert_close(scene.cameras.c2w[number - 1], torch.from_numpy(expected), atol=1e-12, rtol=0)
