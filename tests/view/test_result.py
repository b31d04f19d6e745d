"""Reading a folder of results, with what lies beside the splats."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ilrm.errors import CameraError, GaussiansError, SceneError
from ilrm.evaluate import psnr
from ilrm.export import save_ply
from ilrm.view import Result, load_result
from ilrm.view.layers import update_layers
from ilrm.view.pictures import picture
from ilrm.view.result import photos_of
from tests.conftest import make_gaussians
from tests.view.conftest import CAPTURE


def test_a_whole_folder(capture_folder: Path, capture: Result) -> None:
    assert capture.path == capture_folder / "scene.ply"
    assert capture.title == "capture"
    assert capture.cameras is not None
    assert len(capture.cameras) == len(capture.names) == len(capture.photos) == 3
    assert {photo.shape for photo in capture.photos if photo is not None} == {(96, 96, 3)}
    assert capture.numbers["Gaussians"] == f"{len(capture.gaussians):,}"
    assert capture.numbers["held-out PSNR"] == f"{capture.metrics['psnr']:.2f} dB"
    truth = photos_of(CAPTURE, capture.names, capture.cameras)
    for photo, original in zip(capture.photos, truth, strict=True):  # the right photo for each name, JPEG or not
        assert photo is not None
        assert np.abs(photo.astype(float) - original).mean() < 3


def test_a_file_alone(tmp_path: Path) -> None:
    save_ply(make_gaussians(5), tmp_path / "thing.ply")
    result = load_result(tmp_path / "thing.ply")
    assert (result.title, result.cameras, result.photos, result.mesh) == ("thing", None, (), None)
    assert result.numbers == {"Gaussians": "5"}


def test_what_strangers_write_becomes_plain_text(tmp_path: Path) -> None:
    save_ply(make_gaussians(5), tmp_path / "scene.ply")
    metrics = '{"psnr": 1%s, "ssim": NaN, "weights": "a\\u0007\\ud800%s", "refine_steps_done": true}'
    (tmp_path / "metrics.json").write_text(metrics % ("0" * 400, "b" * 500))
    result = load_result(tmp_path)
    assert list(result.numbers) == ["Gaussians", "weights"]
    assert result.numbers["weights"] == "a\ufffd\ufffd" + "b" * 117 + "..."
    named = replace(result, names=("x", "y\n", "x"))
    assert named.labels == ["1: x", "y\ufffd", "3: x"]


def test_missing_photos_are_left_out(capture_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(capture_folder, folder := tmp_path / "copy")
    first = sorted((folder / "inputs").rglob("*.jpg"))[0]
    first.unlink()
    assert [photo is None for photo in load_result(folder).photos] == [True, False, False]
    shutil.rmtree(folder / "inputs")
    assert load_result(folder).photos == ()


def test_names_do_not_lead_out_of_the_folder(capture_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(capture_folder, folder := tmp_path / "copy")
    secret = shutil.copy(next((folder / "inputs").rglob("*.jpg")), tmp_path / "secret.jpg")
    cameras = json.loads((folder / "cameras.json").read_text())
    for frame, name in zip(cameras["frames"], ("../../secret.jpg", str(secret), "x/../../../secret.jpg"), strict=True):
        frame["file_path"] = name
    (folder / "cameras.json").write_text(json.dumps(cameras))
    assert load_result(folder).photos == ()


def test_damage_is_named(capture_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(capture_folder, folder := tmp_path / "copy")
    photo = next((folder / "inputs").rglob("*.jpg"))
    photo.write_bytes(b"no photo")
    with pytest.raises(SceneError, match=photo.name):
        load_result(folder)
    photo.unlink()
    (folder / "metrics.json").write_text("{")
    with pytest.raises(SceneError, match=r"metrics\.json"):
        load_result(folder)
    (folder / "cameras.json").write_text("{}")
    with pytest.raises(CameraError, match=r"cameras\.json"):
        load_result(folder)
    (folder / "scene.ply").unlink()
    with pytest.raises(GaussiansError, match=r"holds no scene\.ply"):
        load_result(folder)


def test_update_layers_lead_to_the_result(capture: Result) -> None:
    """The states come from the stored photos and named weights; the last is what was saved, up to JPEG."""
    layers = update_layers(capture)
    assert [name for name, _ in layers] == [f"update layer {i + 1}" for i in range(len(layers))]
    assert len(layers) > 1
    assert capture.cameras is not None
    saved = picture(capture.gaussians, capture.cameras[0], "colour", near=0.01)
    last, first = (picture(g, capture.cameras[0], "colour", near=0.01) for g in (layers[-1][1], layers[0][1]))
    assert _psnr(last, saved) > 35 > _psnr(first, saved)


def test_update_layers_need_photos_and_weights(capture: Result) -> None:
    from dataclasses import replace

    from ilrm.errors import ConfigError

    with pytest.raises(SceneError, match="--photos"):
        update_layers(replace(capture, photos=()))
    with pytest.raises(ConfigError, match="which weights"):
        update_layers(replace(capture, metrics={}))


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    import torch

    return psnr(*(torch.from_numpy(np.array(image))[None].float() / 255 for image in (a, b))).item()
