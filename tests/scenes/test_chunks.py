from __future__ import annotations

import io
import json
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ilrm.core.cameras import Cameras
from ilrm.core.errors import CameraError, SceneError
from ilrm.scenes import list_keys, load_scene
from ilrm.scenes.readers import chunks
from tests.conftest import make_cameras
from tests.scenes.files import assert_close, smooth


def encoded(pixels: np.ndarray, kind: str = "png") -> torch.Tensor:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8)


def example(key: str, views: int = 3, width: int = 32, height: int = 24) -> dict[str, Any]:
    cameras = make_cameras(views, width, height, seed=len(key))
    rows = torch.zeros(views, 18)
    rows[:, 0], rows[:, 1] = cameras.K[:, 0, 0] / width, cameras.K[:, 1, 1] / height
    rows[:, 2], rows[:, 3] = cameras.K[:, 0, 2] / width, cameras.K[:, 1, 2] / height
    rows[:, 6:] = cameras.w2c[:, :3].flatten(1)
    images = [encoded(smooth(width, height, view)) for view in range(views)]
    return {"key": key, "url": "", "timestamps": torch.arange(views), "cameras": rows, "images": images}


def write_chunks(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save([example("a"), example("bb", width=40)], folder / "000000.torch")
    torch.save([example("ccc", views=5)], folder / "000001.torch")
    (folder / "index.json").write_text(json.dumps({"a": "000000.torch", "bb": "000000.torch", "ccc": "000001.torch"}))
    return folder


def expected_cameras(key: str, views: int = 3, width: int = 32) -> Cameras:
    return make_cameras(views, width, 24, seed=len(key))


def test_scenes_are_found_by_key(tmp_path):
    folder = write_chunks(tmp_path)
    assert list_keys(folder) == ("a", "bb", "ccc")
    assert list_keys(folder / "000000.torch") == ("a", "bb")
    for path in (folder, folder / "index.json", folder / "000000.torch"):
        scene = load_scene(path, key="bb")
        assert_close(scene.cameras.K, expected_cameras("bb", width=40).K)
        assert_close(scene.cameras.c2w, expected_cameras("bb", width=40).c2w, atol=1e-6, rtol=1e-6)
        assert torch.equal((scene.images[1] * 255).round().byte(), torch.from_numpy(smooth(40, 24, 1)))
    assert len(load_scene(folder)) == 3, "the first scene by default"
    (folder / "index.json").unlink()
    assert list_keys(folder) == ("a", "bb", "ccc")
    assert len(load_scene(folder, key="ccc")) == 5


def test_only_the_chunk_of_the_key_is_opened(tmp_path):
    folder = write_chunks(tmp_path)
    (folder / "000000.torch").write_bytes(b"broken")
    assert len(load_scene(folder, key="ccc")) == 5


def test_images_stay_encoded_until_used(tmp_path):
    spoiled = example("a")
    spoiled["images"][1] = spoiled["images"][1][:-200]
    torch.save([spoiled], tmp_path / "0.torch")
    scene = load_scene(tmp_path / "0.torch")
    assert torch.isfinite(scene.images[0]).all()
    with pytest.raises(SceneError, match=r"image 1 of scene a of .*0\.torch cannot be decoded"):
        scene.images[1]


def test_code_in_a_chunk_is_never_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    torch.save([Attack()], tmp_path / "zip.torch")
    (tmp_path / "raw.torch").write_bytes(pickle.dumps([Attack()]))
    for name in ("zip.torch", "raw.torch"):
        with pytest.raises(SceneError, match=rf"{name} cannot be read as a chunk"):
            load_scene(tmp_path / name)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated_chunks_are_refused(tmp_path, keep):
    file = write_chunks(tmp_path) / "000001.torch"
    data = file.read_bytes()
    file.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(SceneError, match=r"000001\.torch cannot be read as a chunk"):
        load_scene(tmp_path, key="ccc")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda e: e.update(cameras=torch.zeros(3, 12)), "The cameras of scene a"),
        (lambda e: e.pop("cameras"), "The cameras of scene a"),
        (lambda e: e.update(images=[]), "The images of scene a"),
        (lambda e: e.update(images=[torch.zeros(3)] * 3), "The images of scene a"),
        (lambda e: e["images"].pop(), "2 images but 3 cameras in scene a"),
        (lambda e: e.update(key=5), "is not a chunk"),
        (lambda e: e["cameras"].zero_(), "has no inverse"),
    ],
)
def test_malformed_scenes_are_named(tmp_path, spoil, message):
    value = example("a")
    spoil(value)
    torch.save([value], tmp_path / "0.torch")
    with pytest.raises(SceneError, match=message):
        load_scene(tmp_path / "0.torch")


def test_tensors_that_are_none_are_refused(tmp_path):
    for kind in (torch.Tensor.to_sparse, lambda x: x.to("meta"), lambda x: x[:1, :1].expand(10**9, 18)):
        value = example("a")
        value["cameras"] = kind(value["cameras"])
        torch.save([value], tmp_path / "0.torch")
        with pytest.raises(SceneError, match=r"0\.torch cannot be read as a chunk"):
            load_scene(tmp_path / "0.torch")
    value = example("a")
    expected = load_scene(write_chunks(tmp_path / "chunks"), key="a")
    value["cameras"] = torch.nn.Parameter(value["cameras"])
    torch.save([value], tmp_path / "0.torch")
    assert torch.equal(load_scene(tmp_path / "0.torch").cameras.c2w, expected.cameras.c2w)


def test_photos_that_are_parts_of_each_other_without_end_are_refused(tmp_path):
    value = example("a", views=40)
    whole = value["images"][0]
    value["images"] = [whole[i:] for i in range(40)]
    torch.save([value], tmp_path / "0.torch")
    with pytest.raises(SceneError, match="The images of scene a"):
        load_scene(tmp_path / "0.torch")


def test_scenes_that_share_their_photos_are_looked_at_once(tmp_path, monkeypatch):
    value = example("a")
    torch.save([value] * 1000, tmp_path / "0.torch")
    asked = []
    monkeypatch.setattr(chunks, "share_reasonably", lambda images: asked.append(images) or True)
    assert len(list_keys(tmp_path / "0.torch")) == 1000
    assert len(asked) == 1


def test_impossible_cameras_name_the_view(tmp_path):
    value = example("a")
    value["cameras"][2, 0] = -1
    torch.save([value], tmp_path / "0.torch")
    with pytest.raises(CameraError, match="intrinsics of 000002"):
        load_scene(tmp_path / "0.torch")


def test_unknown_keys_list_known_ones(tmp_path):
    folder = write_chunks(tmp_path)
    for path in (folder, folder / "000000.torch"):
        with pytest.raises(SceneError, match=r"no scene 'x'(.|\n)*one of a, bb"):
            load_scene(path, key="x")


def test_a_missing_chunk_is_named(tmp_path):
    (write_chunks(tmp_path) / "000001.torch").unlink()
    with pytest.raises(SceneError, match=r"names 000001\.torch, which does not exist"):
        load_scene(tmp_path, key="ccc")


def test_compressed_archives_are_read_too(tmp_path):

    file = write_chunks(tmp_path) / "000001.torch"
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    assert list_keys(file) == ("ccc",)


def test_poses_that_single_precision_has_rounded_are_told(tmp_path):
    """UTM coordinates in a chunk have steps of half a metre. Other chunks give no warning."""
    scene = example("a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.save([scene], tmp_path / "near.torch")
        load_scene(tmp_path / "near.torch")
    w2c = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    w2c[:, :3] = scene["cameras"][:, 6:].reshape(3, 3, 4)
    c2w = torch.linalg.inv(w2c)
    c2w[:, :3, 3] += torch.tensor([512345.0, 5432109.0, 250.0])
    scene["cameras"][:, 6:] = torch.linalg.inv(c2w)[:, :3].flatten(1)
    torch.save([scene], tmp_path / "far.torch")
    with pytest.warns(UserWarning, match="single-precision poses with steps of about 0"):
        load_scene(tmp_path / "far.torch")
