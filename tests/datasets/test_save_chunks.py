from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ilrm.core.cameras import Similarity
from ilrm.core.errors import OutputError
from ilrm.core.scene import Scene
from ilrm.datasets.procedural import ProceduralConfig, make_scene
from ilrm.datasets.save_chunks import chunk_example, example_bytes, write_chunk
from ilrm.scenes import load_scene, save_scene
from ilrm.scenes.readers.chunks import open_chunk
from ilrm.scenes.save import ImageFormat
from tests.scenes.files import assert_close, visible


@pytest.fixture(scope="module")
def scene() -> Scene:
    return make_scene(5, ProceduralConfig(views=4, width=48, height=40, points=200))


def written(scene: Scene, path: Path, image_format: ImageFormat = "png") -> Scene:
    write_chunk(path, [chunk_example(scene, "a key", image_format=image_format)])
    return load_scene(path, key="a key")


def test_an_example_is_what_pixelsplat_reads(scene: Scene, tmp_path: Path) -> None:
    """Its dataset takes these values, shapes and types."""
    write_chunk(tmp_path / "000000.torch", [chunk_example(scene, "a", url="somewhere"), chunk_example(scene, "b")])
    examples = torch.load(tmp_path / "000000.torch", weights_only=True)
    assert [example["key"] for example in examples] == ["a", "b"]
    example = examples[0]
    assert list(example) == ["key", "url", "timestamps", "cameras", "images"]
    assert example["url"] == "somewhere"
    assert torch.equal(example["timestamps"], torch.arange(4))
    assert example["cameras"].dtype == torch.float32
    assert example["cameras"].shape == (4, 18)
    K, w2c = scene.cameras.K, scene.cameras.w2c
    assert_close(example["cameras"][:, 0], K[:, 0, 0] / 48)
    assert_close(example["cameras"][:, 1], K[:, 1, 1] / 40)
    assert_close(example["cameras"][:, 2:4], torch.tensor([0.5, 0.5]).expand(4, 2))
    assert not example["cameras"][:, 4:6].any()
    assert_close(example["cameras"][:, 6:].reshape(4, 3, 4), w2c[:, :3], atol=1e-6, rtol=1e-6)
    assert all(image.dtype == torch.uint8 and image.ndim == 1 for image in example["images"])
    assert bytes(example["images"][0][:4].tolist()) == b"\xff\xd8\xff\xe0", "a JPEG by default"


def test_png_chunks_read_back_equal(scene: Scene, tmp_path: Path) -> None:
    back = written(scene, tmp_path / "x.torch")
    assert torch.equal((back.images[:] * 255).round(), (scene.images[:] * 255).round())
    assert_close(back.cameras.c2w, scene.cameras.c2w, atol=1e-5, rtol=1e-6)
    assert_close(back.cameras.K, scene.cameras.K, atol=1e-4, rtol=1e-6)


def test_poses_far_from_the_origin_are_written_from_a_point_nearby(scene: Scene, tmp_path: Path) -> None:
    """As float32 in the world they would be rounded to half a metre."""
    offset = torch.tensor([512345.0, 5432109.0, 250.0], dtype=torch.float64)
    there = Similarity(1.0, torch.eye(3, dtype=torch.float64), offset)
    doubles = replace(scene, cameras=scene.cameras.to(dtype=torch.float64))
    back = written(doubles.transform(there), tmp_path / "x.torch").cameras
    steps = scene.cameras.centers - scene.cameras.centers[0]
    assert_close(back.centers - back.centers[0], steps, atol=1e-5, rtol=0)
    assert_close(back.forward, scene.cameras.forward, atol=1e-6, rtol=0)


def test_jpeg_chunks_read_back_nearly_equal(scene: Scene, tmp_path: Path) -> None:
    """On an image as smooth as photos are: JPEG stores colour at half resolution."""
    g = torch.linspace(0, 1, 48).expand(4, 40, 48)
    smooth = Scene(torch.stack([g, 1 - g, g.square()], -1), scene.cameras, scene.names)
    back = written(smooth, tmp_path / "x.torch", "jpg")
    difference = (back.images[:] - smooth.images[:]).abs()
    assert difference.mean() < 0.01
    assert difference.max() < 0.05


def test_points_project_to_the_same_pixels(scene: Scene, tmp_path: Path) -> None:
    """The pixel centre convention survives: depth of the pixel that a true surface point falls into."""
    back = written(scene, tmp_path / "x.torch")
    points = scene.points
    assert points is not None
    assert torch.equal(visible(points.double(), back.cameras), visible(points, scene.cameras))
    here, there = (
        torch.einsum("vij,pj->vpi", c.K.double() @ c.w2c[:, :3, :3].double(), points.double())
        + (c.K.double() @ c.w2c[:, :3, 3:].double()).mT
        for c in (scene.cameras, back.cameras)
    )
    seen = visible(points, scene.cameras)
    assert_close((here[..., :2] / here[..., 2:])[seen], (there[..., :2] / there[..., 2:])[seen], atol=1e-3, rtol=0)


def test_bytes_do_not_depend_on_the_path_and_can_be_mapped(scene: Scene, tmp_path: Path) -> None:
    example = chunk_example(scene, "a")
    write_chunk(tmp_path / "000000.torch", [example])
    write_chunk(tmp_path / "other" / "name.torch", [example])
    data = (tmp_path / "000000.torch").read_bytes()
    assert data == (tmp_path / "other" / "name.torch").read_bytes()
    assert example_bytes(example) < len(data) < example_bytes(example) + 20_000
    with zipfile.ZipFile(tmp_path / "000000.torch") as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
    mapped = torch.load(tmp_path / "000000.torch", weights_only=True, mmap=True)
    assert torch.equal(mapped[0]["images"][3], example["images"][3])


def test_a_file_in_the_way_is_named(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"Cannot write .*file/000000\.torch"):
        write_chunk(tmp_path / "file" / "000000.torch", [chunk_example(scene, "a")])


def test_chunks_and_camera_files_hold_the_same_scene(scene: Scene, tmp_path: Path) -> None:
    chunk = written(scene, tmp_path / "x.torch")
    folder = load_scene(save_scene(scene, tmp_path / "json", camera_file="opencv_cameras.json"))
    assert torch.equal(chunk.images[:], folder.images[:])
    assert_close(chunk.cameras.c2w, folder.cameras.c2w, atol=1e-5, rtol=1e-6)
    assert open_chunk(tmp_path / "x.torch").keys == ("a key",)
