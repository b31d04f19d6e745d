from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ilrm.core.errors import SceneError
from ilrm.scenes import load_scene
from ilrm.scenes.photos.images import open_photo
from tests.scenes.files import smooth, write_scene

ORIENTATION = 0x0112


def turned(pixels: np.ndarray, path, orientation: int):
    """Save pixels with an EXIF orientation."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path


UPRIGHT = {  # EXIF specification: what has to be done to the stored pixels
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
    8: lambda x: np.rot90(x, 1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path, orientation):
    stored = smooth(12, 7)
    photo = open_photo(turned(stored, tmp_path / "a.png", orientation))
    upright = UPRIGHT[orientation](stored)
    assert (photo.height, photo.width) == upright.shape[:2]
    assert np.array_equal(photo.decode(), upright)


def test_intrinsics_of_stored_pixels_keep_the_photo_as_stored(tmp_path):
    stored = smooth(12, 7)
    path = turned(stored, tmp_path / "a.png", 6)
    assert np.array_equal(open_photo(path, (12, 7)).decode(), stored)
    assert np.array_equal(open_photo(path, (24, 14)).decode(), stored)
    assert np.array_equal(open_photo(path, (7, 12), stored_pixels=True).decode(), UPRIGHT[6](stored))
    assert np.array_equal(open_photo(path, stored_pixels=True).decode(), stored)


def test_sixteen_bits_grey_are_scaled(tmp_path):
    values = np.array([[0, 257, 128, 129], [65535, 65278, 32896, 400]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    expected = np.rint(values / 257.0).astype(np.uint8)
    assert np.array_equal(open_photo(tmp_path / "a.png").decode(), np.repeat(expected[..., None], 3, -1))


def test_transparency_becomes_white(tmp_path):
    rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 128]]], np.uint8)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    alpha = rgba[..., 3:] / 255.0
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(open_photo(tmp_path / "a.png").decode() - expected).max() <= 0.51
    grey = Image.fromarray(np.array([[[50, 0], [50, 255]]], np.uint8), "LA")
    grey.save(tmp_path / "b.png")
    assert open_photo(tmp_path / "b.png").decode().tolist() == [[[255] * 3, [50] * 3]]


@pytest.mark.parametrize(("mode", "suffix"), [("L", "png"), ("1", "png"), ("P", "png"), ("CMYK", "jpg"), ("L", "jpg")])
def test_other_modes_become_rgb(tmp_path, mode, suffix):
    image = Image.fromarray(smooth(12, 7)).convert(mode)
    image.save(tmp_path / f"a.{suffix}", quality=100)
    decoded = open_photo(tmp_path / f"a.{suffix}").decode()
    assert np.abs(decoded.astype(int) - np.asarray(image.convert("RGB"))).max() <= (4 if suffix == "jpg" else 0)


def test_floating_point_and_32_bit_images_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tiff")
    Image.fromarray(np.full((4, 4), 1 << 20, np.int32)).save(tmp_path / "b.tiff")
    with pytest.raises(SceneError, match=r"a\.tiff holds floating"):
        open_photo(tmp_path / "a.tiff").decode()
    with pytest.raises(SceneError, match=r"b\.tiff holds 32-bit"):
        open_photo(tmp_path / "b.tiff").decode()


def test_a_file_that_is_no_image_is_named_at_load(tmp_path):
    write_scene(tmp_path)
    (tmp_path / "images/1.png").write_bytes(b"not an image")
    with pytest.raises(SceneError, match=r"1\.png cannot be opened"):
        load_scene(tmp_path)


def test_a_truncated_image_is_named_when_it_is_decoded(tmp_path):
    write_scene(tmp_path)
    file = tmp_path / "images/1.png"
    file.write_bytes(file.read_bytes()[:-200])
    scene = load_scene(tmp_path)
    assert torch.isfinite(scene.images[0]).all()
    with pytest.raises(SceneError, match=r"1\.png cannot be decoded"):
        scene.images[1]


def test_decompression_bombs_are_refused_by_name_and_flag(tmp_path):
    write_scene(tmp_path)
    with pytest.raises(SceneError, match=r"0\.png would take(.|\n)*max_pixels=768"):
        load_scene(tmp_path, max_pixels=767)
    assert load_scene(tmp_path, max_pixels=768).images[0].shape == (24, 32, 3)
    assert load_scene(tmp_path, max_pixels=None).images[0].shape == (24, 32, 3)


def test_a_photo_that_changes_is_noticed_before_it_is_decoded(tmp_path):
    write_scene(tmp_path)
    scene = load_scene(tmp_path)
    Image.new("RGB", (640, 480)).save(tmp_path / "images/0.png")
    with pytest.raises(SceneError, match=r"0\.png changed while"):
        scene.images[0]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "CMYK", "L", "I;16"])
@pytest.mark.parametrize("size", [(96, 64), (101, 67)])
def test_reduced_photos_are_means_over_blocks(tmp_path, mode, size):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    if mode == "I;16":
        Image.fromarray(smooth(*size)[..., 0].astype(np.uint16) * 257).save(path)
    else:
        Image.fromarray(smooth(*size)).convert(mode).save(path)
    columns, rows = -(-size[0] // 4), -(-size[1] // 4)
    reduced = open_photo(path).decode(4).astype(float)
    expected = smooth(columns, rows)  # the same waves at that resolution
    if mode in ("L", "LA", "I;16"):
        channel = expected[..., 0] if mode == "I;16" else np.asarray(Image.fromarray(expected).convert("L"))
        expected = np.repeat(channel[..., None], 3, -1)
    assert reduced.shape == expected.shape
    assert np.abs(reduced - expected).max() <= (25 if mode == "P" else 2.5)


@pytest.mark.parametrize("size", [(256, 128), (251, 133)])
def test_drafted_jpegs_show_the_same(tmp_path, size):
    Image.fromarray(smooth(*size)).save(tmp_path / "a.jpg", quality=98, subsampling=0)
    Image.fromarray(smooth(*size)).save(tmp_path / "a.png")
    for reduce in (2, 4, 8, 16):
        drafted, exact = (open_photo(tmp_path / name).decode(reduce).astype(float) for name in ("a.jpg", "a.png"))
        assert drafted.shape == exact.shape == (-(-size[1] // reduce), -(-size[0] // reduce), 3)
        assert np.abs(drafted - exact).mean() < 1.5
