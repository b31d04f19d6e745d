"""Scenes made from arrays and from files, and scenes on another device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ilrm
from ilrm.core import scene as core_scene
from ilrm.core.errors import CameraError, SceneError
from ilrm.core.scene import LazyImages, LazyMasks
from tests.conftest import make_cameras
from tests.scenes.files import smooth

WIDTH, HEIGHT, VIEWS = 32, 24, 3
_ORIENTATION = 0x0112
_QUARTER_TURN = 6  # stored pixels are displayed rotated clockwise


@pytest.fixture
def photos() -> np.ndarray:
    """(V, H, W, 3) uint8."""
    return np.stack([smooth(WIDTH, HEIGHT, view) for view in range(VIEWS)])


@pytest.fixture
def cameras() -> ilrm.Cameras:
    return make_cameras(VIEWS, WIDTH, HEIGHT)


@pytest.mark.parametrize(
    "given",
    [
        lambda x: x,
        lambda x: list(x),
        lambda x: torch.from_numpy(x),
        lambda x: [torch.from_numpy(image) for image in x],
        lambda x: x.astype(np.float32) / 255,
        lambda x: torch.from_numpy(x).double() / 255,
    ],
    ids=["array", "arrays", "tensor", "tensors", "float array", "double tensor"],
)
def test_images_of_any_kind_are_the_same_scene(
    given: Callable[[np.ndarray], Any], photos: np.ndarray, cameras: ilrm.Cameras
) -> None:
    scene = ilrm.Scene.from_images(given(photos), cameras)
    assert scene.names == ("view 0", "view 1", "view 2")
    assert scene.images[:].dtype == torch.float32
    torch.testing.assert_close(scene.images[:], torch.from_numpy(photos).float() / 255)


def save_all(photos: np.ndarray, folder: Path) -> list[Path]:
    files = [folder / f"{view}.png" for view in range(len(photos))]
    for file, photo in zip(files, photos, strict=True):
        Image.fromarray(photo).save(file)
    return files


def test_files_are_the_same_scene_and_wait(tmp_path: Path, photos: np.ndarray, cameras: ilrm.Cameras) -> None:
    files = save_all(photos, tmp_path)
    scene = ilrm.Scene.from_images([str(files[0]), *files[1:]], cameras)
    assert scene.names == ("0.png", "1.png", "2.png")
    assert isinstance(scene.images, LazyImages)
    assert torch.equal(scene.images[:], torch.from_numpy(photos).float() / 255)


def test_files_of_one_name_are_called_by_their_paths(tmp_path: Path, photos: np.ndarray, cameras: ilrm.Cameras) -> None:
    files = []
    for name, photo in zip("abc", photos, strict=True):
        (tmp_path / name).mkdir()
        files.append(tmp_path / name / "photo.png")
        Image.fromarray(photo).save(files[-1])
    assert ilrm.Scene.from_images(files, cameras).names == tuple(map(str, files))
    assert ilrm.Scene.from_images(files, cameras, ["x", "y", "z"]).names == ("x", "y", "z")


def test_larger_files_are_stretched_to_the_cameras(tmp_path: Path, cameras: ilrm.Cameras) -> None:
    large = np.stack([smooth(4 * WIDTH, 4 * HEIGHT, view) for view in range(VIEWS)])
    scene = ilrm.Scene.from_images(save_all(large, tmp_path), cameras)
    blocks = torch.from_numpy(large).float().unflatten(1, (HEIGHT, 4)).unflatten(3, (WIDTH, 4)).mean((2, 4)) / 255
    torch.testing.assert_close(scene.images[:], blocks, atol=0.02, rtol=0)


@pytest.mark.parametrize("upright", [True, False])
def test_orientation_is_applied_unless_only_the_stored_pixels_fit(tmp_path: Path, upright: bool) -> None:
    stored = smooth(WIDTH, HEIGHT)
    exif = Image.Exif()
    exif[_ORIENTATION] = _QUARTER_TURN
    Image.fromarray(stored).save(tmp_path / "turned.png", exif=exif)
    camera = make_cameras(1, HEIGHT, WIDTH) if upright else make_cameras(1, WIDTH, HEIGHT)
    scene = ilrm.Scene.from_images([tmp_path / "turned.png"], camera)
    shown = np.rot90(stored, -1) if upright else stored
    assert torch.equal(scene.images[0], torch.from_numpy(shown.copy()).float() / 255)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x[:2], "2 images and 3 cameras"),
        (lambda x: x.transpose(0, 3, 1, 2), "permute the channels"),
        (lambda x: x[:, :-1], "resize"),
        (lambda x: x.astype(np.int64), "torch.int64"),
        (lambda x: x.astype(np.float32), "values from"),
        (lambda x: np.where(x > 100, np.nan, 0.5), "nan"),
        (lambda x: "photos", "load_scene"),
        (lambda x: [*x[:2], "photo.png"], "either paths or arrays"),
        (lambda x: ["a.png", "b.png", "c.png"], "a.png does not exist"),
    ],
)
def test_images_that_do_not_fit_are_refused(
    change: Callable[[np.ndarray], Any], says: str, photos: np.ndarray, cameras: ilrm.Cameras
) -> None:
    with pytest.raises(SceneError, match=says):
        ilrm.Scene.from_images(change(photos), cameras)


def test_files_of_another_shape_are_refused(tmp_path: Path, cameras: ilrm.Cameras) -> None:
    files = save_all(np.stack([smooth(WIDTH, WIDTH)] * VIEWS), tmp_path)
    with pytest.raises(SceneError, match="32x32, its camera 32x24"):
        ilrm.Scene.from_images(files, cameras)


def test_paths_need_somebody_who_knows_files(cameras: ilrm.Cameras, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_scene, "_photo_openers", [])
    with pytest.raises(SceneError, match=r"import ilrm\.scenes"):
        ilrm.Scene.from_images(["a.png", "b.png", "c.png"], cameras)


def test_names_and_cameras_are_checked(photos: np.ndarray, cameras: ilrm.Cameras) -> None:
    with pytest.raises(SceneError, match="V unique names"):
        ilrm.Scene.from_images(photos, cameras, ["a", "a", "b"])
    cameras.c2w[1, 0, 0] = torch.nan
    with pytest.raises(CameraError, match="view 1"):
        ilrm.Scene.from_images(photos, cameras)


def test_a_scene_moves_to_another_device_with_all_it_has(cameras: ilrm.Cameras) -> None:
    """On the device "meta", which every machine has: no tensor may stay on the CPU."""
    depth = torch.ones(VIEWS, HEIGHT, WIDTH)
    scene = ilrm.Scene(
        images=torch.rand(VIEWS, HEIGHT, WIDTH, 3),
        cameras=cameras,
        names=("a", "b", "c"),
        depth=depth,
        mask=depth > 0,
        points=torch.rand(5, 3),
        points_rgb=torch.rand(5, 3),
    )
    moved = scene.to("meta")
    tensors = (moved.images, moved.cameras.c2w, moved.cameras.K, moved.depth, moved.mask, moved.points)
    assert {str(x.device) for x in (*tensors, moved.points_rgb) if x is not None} == {"meta"}
    assert moved.names == scene.names
    assert scene.images[:].device.type == "cpu"


def test_images_that_wait_are_decoded_on_the_other_device(cameras: ilrm.Cameras) -> None:
    asked = []

    def read(dtype: torch.dtype, *size: int) -> torch.Tensor:
        asked.append(size)
        return torch.ones(HEIGHT, WIDTH, *size, dtype=dtype)

    images = LazyImages([lambda: read(torch.uint8, 3)] * VIEWS, HEIGHT, WIDTH)
    masks = LazyMasks([lambda: read(torch.bool)] * VIEWS, HEIGHT, WIDTH)
    scene = ilrm.Scene(images, cameras, ("a", "b", "c"), mask=masks).to("meta").select([2, 0])
    assert asked == []
    assert scene.images[:].device.type == scene.images[0].device.type == scene.images[:0].device.type == "meta"
    assert scene.mask is not None
    assert scene.mask[:].device.type == "meta"
