"""Photos stored rotated, in every format, through every loader, compared with a picture that has an up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ilrm.core.scene import Scene
from ilrm.datasets.convert import Fit, convert_scenes, find_inputs
from ilrm.scenes import load_scene
from ilrm.scenes.photos.images import open_photo
from tests.conftest import make_cameras
from tests.files.test_image_files import chunk
from tests.scenes.files import FLIP, write_transforms

WIDTH, HEIGHT = 48, 32  # of the upright picture
# EXIF specification, the other way round: how an upright picture (H, W, 3) is stored under each orientation.
STORED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
    8: lambda x: np.rot90(x, -1),
}
FORMATS = ["jpg", "png", "png_behind", "webp", "tif", "tif_deflate", "avif"]


def picture() -> np.ndarray:
    """uint8 (HEIGHT, WIDTH, 3): red grows to the right, green downwards, blue tells the halves."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    blue = np.where(x < WIDTH // 2, 60, 180)
    return np.stack([40 + 4 * x, 40 + 6 * y, blue], -1).clip(0, 255).astype(np.uint8)


def write(folder: Path, kind: str, orientation: int, view: int = 0) -> str:
    """The picture as a rotated photo; its file name."""
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation](picture())))
    name = f"{view}.{kind.split('_')[0]}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind.startswith("tif"):
        image.save(folder / name, tiffinfo={0x0112: orientation}, compression="tiff_deflate" if "_" in kind else None)
    elif kind == "png_behind":
        image.save(folder / name)
        data = (folder / name).read_bytes()
        late = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
        (folder / name).write_bytes(data[:-12] + late + data[-12:])
    else:
        if kind == "avif" and "AVIF" not in Image.registered_extensions().values():
            pytest.skip("this Pillow has no AVIF")
        quality = {"jpg": {"quality": 98, "subsampling": 0}, "webp": {"lossless": True}, "avif": {"quality": 98}}
        image.save(folder / name, exif=exif.tobytes(), **quality.get(kind, {}))
    return name


def agrees(image: torch.Tensor, expected: np.ndarray) -> bool:
    """Whether an image in [0, 1] shows that, but for compression (any turn would differ by 40 and more)."""
    got = np.rint(image.numpy() * 255)
    return got.shape == expected.shape and bool(np.abs(got - expected.astype(float)).mean() < 4)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_json_captures_are_upright(tmp_path: Path, kind: str, orientation: int) -> None:
    """transforms.json with and without a size, and opencv_cameras.json: intrinsics belong to the upright photo."""
    name = write(tmp_path, kind, orientation)
    pose = (np.eye(4) @ FLIP).tolist()
    size = {"w": WIDTH, "h": HEIGHT}
    for declared in (size, {}):
        lens = {"fl_x": 50.0, "fl_y": 50.0, "cx": WIDTH / 2, "cy": HEIGHT / 2, **declared}
        write_transforms(tmp_path, {**lens, "frames": [{"file_path": name, "transform_matrix": pose}]})
        scene = load_scene(tmp_path / "transforms.json")
        assert (scene.cameras.width, scene.cameras.height) == (WIDTH, HEIGHT)
        assert agrees(scene.images[0], picture())
    frame = {"file_path": name, "w2c": np.eye(4).tolist(), "fx": 50, "fy": 50, "cx": WIDTH / 2, "cy": HEIGHT / 2}
    (tmp_path / "opencv_cameras.json").write_text(json.dumps({"frames": [{**frame, **size}]}))
    assert agrees(load_scene(tmp_path / "opencv_cameras.json").images[0], picture())


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_stored_pixels_stay_as_stored(tmp_path: Path, kind: str, orientation: int) -> None:
    """A declared size of the stored pixels says so where width and height tell; COLMAP always means them."""
    name = write(tmp_path, kind, orientation)
    stored = STORED[orientation](picture())
    photo = open_photo(tmp_path / name, (stored.shape[1], stored.shape[0]), stored_pixels=True)
    assert photo.size == (stored.shape[1], stored.shape[0])
    assert agrees(torch.from_numpy(photo.decode()) / 255, stored)
    assert agrees(torch.from_numpy(photo.decode(2)) / 255, stored[1::2, 1::2])
    if orientation >= 5:
        assert agrees(torch.from_numpy(open_photo(tmp_path / name, (64, 96)).decode()) / 255, stored)


@pytest.mark.parametrize("kind", ["jpg", "tif"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_colmap_and_converted_captures(tmp_path: Path, kind: str, orientation: int) -> None:
    pytest.importorskip("pycolmap")
    stored = np.ascontiguousarray(STORED[orientation](picture()))
    height, width = stored.shape[:2]
    (tmp_path / "in/images").mkdir(parents=True)
    (tmp_path / "in/sparse/0").mkdir(parents=True)
    names = [write(tmp_path / "in/images", kind, orientation, view) for view in range(2)]
    model = tmp_path / "in/sparse/0"
    (model / "cameras.txt").write_text(f"1 PINHOLE {width} {height} 50 50 {width / 2} {height / 2}\n")
    lines = [f"{i + 1} 1 0 0 0 {0.1 * i} 0 0 1 {name}\n\n" for i, name in enumerate(names)]
    (model / "images.txt").write_text("".join(lines))
    (model / "points3D.txt").write_text("")
    assert agrees(load_scene(tmp_path / "in").images[1], stored)
    outcomes = convert_scenes(find_inputs([tmp_path / "in"]), tmp_path / "out", "chunks", Fit(), jobs=1)
    assert [outcome.reason for outcome in outcomes] == [""]
    assert agrees(load_scene(tmp_path / "out/train").images[1], stored)


def test_chunks_of_turned_photos_hold_pixels_as_they_mean_them(tmp_path: Path) -> None:
    """The readers of that format ignore orientation, so a tag in an encoded image rotates nothing."""
    from ilrm.datasets.save_chunks import chunk_example, write_chunk

    scene = Scene(torch.zeros(1, HEIGHT, WIDTH, 3), make_cameras(1, WIDTH, HEIGHT), ("a",))
    example = chunk_example(scene, "key")
    data = (tmp_path / write(tmp_path, "jpg", 6)).read_bytes()
    write_chunk(tmp_path / "0.torch", [{**example, "images": [torch.frombuffer(bytearray(data), dtype=torch.uint8)]}])
    assert agrees(load_scene(tmp_path / "0.torch").images[0], STORED[6](picture()))
