"""Masks: pixels that do not count, from every kind of mask file, through every change of the photo."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ilrm.core.errors import SceneError
from ilrm.core.scene import LazyMasks, Scene
from ilrm.scenes import load_scene, save_scene
from tests.conftest import make_cameras
from tests.scenes.files import smooth, write_scene, write_transforms
from tests.scenes.test_orientation import STORED

HIDDEN = np.zeros((24, 32), bool)
HIDDEN[6:12, 8:20] = True
COUNTS = torch.from_numpy(~HIDDEN)


def listed(folder: Path, name: str = "mask.png", view: int = 1) -> None:
    """A scene of three views, one of which lists a mask."""
    _, data = write_scene(folder)
    data["frames"][view]["mask_path"] = name
    write_transforms(folder, data)


def save_mask(path: Path, hidden: np.ndarray = HIDDEN, white: int = 255) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.where(hidden, 0, white).astype(np.uint8)).save(path)


def mask_of(scene: Scene, view: int) -> torch.Tensor:
    assert scene.mask is not None
    return scene.mask[view]


def test_black_pixels_of_a_listed_mask_do_not_count(tmp_path: Path) -> None:
    listed(tmp_path)
    save_mask(tmp_path / "mask.png")
    scene = load_scene(tmp_path)
    assert isinstance(scene.mask, LazyMasks)
    assert torch.equal(mask_of(scene, 1), COUNTS)
    assert mask_of(scene, 0).all()
    assert torch.equal(scene.loaded().select([2, 1]).mask_of([1, 0]), torch.stack([COUNTS, mask_of(scene, 0)]))
    write_scene(tmp_path / "plain")
    assert load_scene(tmp_path / "plain").mask is None


@pytest.mark.parametrize("kind", ["labels", "rgb", "palette", "1 bit", "16 bits", "transparent", "jpg"])
def test_masks_of_any_kind(tmp_path: Path, kind: str) -> None:
    name = "mask.jpg" if kind == "jpg" else "mask.png"
    listed(tmp_path, name)
    image = Image.fromarray(np.where(HIDDEN, 0, 255).astype(np.uint8))
    match kind:
        case "labels":
            save_mask(tmp_path / name, white=1)
        case "rgb":
            image.convert("RGB").save(tmp_path / name)
        case "palette":
            image.convert("RGB").quantize(2).save(tmp_path / name)
        case "1 bit":
            image.convert("1").save(tmp_path / name)
        case "16 bits":
            Image.fromarray(np.where(HIDDEN, 0, 9).astype(np.uint16)).save(tmp_path / name)
        case "transparent":
            rgba = np.full((24, 32, 4), 255, np.uint8)
            rgba[HIDDEN, 3] = 0
            Image.fromarray(rgba).save(tmp_path / name)
        case "jpg":
            image.save(tmp_path / name, quality=80)
    differs = mask_of(load_scene(tmp_path), 1) != COUNTS
    assert differs.sum() <= (12 if kind == "jpg" else 0)


def test_what_moves_in_instant_ngp_s_masks_does_not_count(tmp_path: Path) -> None:
    write_scene(tmp_path)
    save_mask(tmp_path / "images/dynamic_mask_2.png", ~HIDDEN)
    scene = load_scene(tmp_path)
    assert torch.equal(mask_of(scene, 2), COUNTS)
    assert mask_of(scene, 0).all()


@pytest.mark.parametrize("name", ["masks/0.png.png", "masks/0.png", "images/masks/0.png.png"])
def test_masks_beside_a_colmap_project(tmp_path: Path, name: str) -> None:
    pytest.importorskip("pycolmap")
    (tmp_path / "images").mkdir()
    (tmp_path / "sparse/0").mkdir(parents=True)
    for view in range(2):
        Image.fromarray(smooth(32, 24, view)).save(tmp_path / f"images/{view}.png")
    model = tmp_path / "sparse/0"
    (model / "cameras.txt").write_text("1 PINHOLE 32 24 30 30 16 12\n")
    (model / "images.txt").write_text("".join(f"{i + 1} 1 0 0 0 {0.1 * i} 0 0 1 {i}.png\n\n" for i in range(2)))
    (model / "points3D.txt").write_text("")
    save_mask(tmp_path / name)
    scene = load_scene(tmp_path)
    assert torch.equal(mask_of(scene, 0), COUNTS)
    assert mask_of(scene, 1).all()


def cut_out(folder: Path, **top: object) -> Scene:
    """A scene whose photos are transparent where pixels must not count."""
    _, data = write_scene(folder)
    for view in range(3):
        rgba = np.dstack([smooth(32, 24, view), np.where(HIDDEN, 0, 255).astype(np.uint8)])
        Image.fromarray(rgba).save(folder / f"images/{view}.png")
    for key in ("fl_x", "fl_y", "cx", "cy"):
        if top:
            del data[key]
    write_transforms(folder, {**data, **top})
    return load_scene(folder)


def test_transparency_of_photographs_is_a_mask_and_of_rendered_objects_white_background(tmp_path: Path) -> None:
    photographs = cut_out(tmp_path / "photographs")
    assert torch.equal(mask_of(photographs, 1), COUNTS)
    rendered = cut_out(tmp_path / "rendered", camera_angle_x=0.8)
    assert rendered.mask is None
    assert (rendered.images[1][torch.from_numpy(HIDDEN)] == 1).all()
    (tmp_path / "photographs/transforms.json").rename(tmp_path / "photographs/transforms_train.json")
    assert load_scene(tmp_path / "photographs").mask is None


def test_masks_follow_size_and_crop(tmp_path: Path) -> None:
    listed(tmp_path)
    save_mask(tmp_path / "mask.png")
    halved = mask_of(load_scene(tmp_path, max_side=16), 1)
    assert not halved[3:6, 4:10].any(), "a pixel counts only where all under it does"
    assert halved[:2].all()
    assert halved[7:].all()
    square = mask_of(load_scene(tmp_path, size=(24, 24)), 1)
    assert torch.equal(square, COUNTS[:, 4:28])
    save_mask(tmp_path / "mask.png", np.kron(HIDDEN, np.ones((4, 4), bool)))
    finer = mask_of(load_scene(tmp_path), 1)
    assert not finer[6:12, 8:20].any()
    assert finer.sum() >= COUNTS.sum() - 2 * (8 + 14), "at most a border of one pixel more"
    save_mask(tmp_path / "mask.png", HIDDEN[::2, ::2])
    assert not mask_of(load_scene(tmp_path), 1)[6:12, 8:20].any()


def test_masks_follow_undistortion(tmp_path: Path) -> None:
    """A hidden square of a distorted photo: its pixels in the undistorted photo do not count."""
    pytest.importorskip("pycolmap")
    _, data = write_scene(tmp_path, width=128, height=96)
    hidden = np.zeros((96, 128), bool)
    hidden[10:30, 12:40] = True
    for view in range(3):
        photo = smooth(128, 96, view)
        photo[hidden] = (255, 0, 255)
        Image.fromarray(photo).save(tmp_path / f"images/{view}.png")
        data["frames"][view]["mask_path"] = "mask.png"
    save_mask(tmp_path / "mask.png", hidden)
    write_transforms(tmp_path, {**data, "k1": -0.15})
    scene = load_scene(tmp_path)
    magenta = (scene.images[0] - torch.tensor([1.0, 0.0, 1.0])).abs().amax(-1) < 0.02
    assert magenta.sum() > 300
    assert not (magenta & mask_of(scene, 0)).any()
    assert (~mask_of(scene, 0)).sum() < 1.4 * magenta.sum()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_of_turned_photos_lie_over_what_is_seen(tmp_path: Path, orientation: int) -> None:
    """Masks are made for the upright photo, or for the stored pixels if width and height show this."""
    _, data = write_scene(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](smooth(32, 24)))
    Image.fromarray(stored).save(tmp_path / "images/0.png", exif=exif)
    data["frames"] = data["frames"][:1]
    data["frames"][0]["mask_path"] = "mask.png"
    write_transforms(tmp_path, data)
    save_mask(tmp_path / "mask.png")
    assert torch.equal(mask_of(load_scene(tmp_path), 0), COUNTS)
    if orientation >= 5:
        save_mask(tmp_path / "mask.png", np.ascontiguousarray(STORED[orientation](HIDDEN[..., None]))[..., 0])
        assert torch.equal(mask_of(load_scene(tmp_path), 0), COUNTS)


def test_masks_that_cannot_be_used_are_left_out_with_one_warning(tmp_path: Path) -> None:
    _, data = write_scene(tmp_path)
    for frame, name in zip(data["frames"], ("none.png", "text.png", "square.png"), strict=True):
        frame["mask_path"] = name
    (tmp_path / "text.png").write_text("no image")
    Image.new("L", (24, 24)).save(tmp_path / "square.png")
    write_transforms(tmp_path, data)
    with pytest.warns(UserWarning, match=r"3 of 3 masks are left out: .*none\.png does not exist") as caught:
        scene = load_scene(tmp_path)
    assert len(caught) == 1
    assert scene.mask is None
    save_mask(tmp_path / "none.png")
    with pytest.warns(UserWarning, match=r"2 of 3 masks are left out: .*text\.png"):
        assert torch.equal(mask_of(load_scene(tmp_path), 0), COUNTS)


@pytest.mark.parametrize("camera_file", ["transforms.json", "opencv_cameras.json"])
def test_saved_scenes_keep_their_masks(tmp_path: Path, camera_file) -> None:
    mask = torch.rand(3, 24, 32, generator=torch.Generator().manual_seed(0)) > 0.5
    names = ("a.jpg", "b.jpg", "c.jpg")
    scene = Scene(torch.full((3, 24, 32, 3), 0.5), make_cameras(3, 32, 24), names, mask=mask)
    file = save_scene(scene, tmp_path / "out", camera_file=camera_file)
    assert json.loads(file.read_text())["frames"][1]["mask_path"] == "masks/b.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = load_scene(file)
    assert back.mask is not None
    assert torch.equal(back.mask[:], mask)


def test_a_scene_refuses_masks_of_another_shape_or_type() -> None:
    scene = Scene(torch.zeros(2, 24, 32, 3), make_cameras(2, 32, 24), ("a", "b"))
    for mask in (torch.ones(2, 24, 31, dtype=torch.bool), torch.ones(2, 24, 32)):
        with pytest.raises(SceneError, match="given a mask"):
            replace(scene, mask=mask)


def test_no_views_are_a_scene_too(tmp_path: Path) -> None:
    write_scene(tmp_path, 2, 32, 24)
    none = load_scene(tmp_path).select([]).loaded()
    assert none.images[:].shape == (0, 24, 32, 3)
    assert none.images[:].dtype == torch.float32
