"""Reading a result folder, with the files next to the splats."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ilrm.core.errors import GaussiansError, IlrmWarning, SceneError
from ilrm.evaluate import psnr
from ilrm.results import Result, load_result
from ilrm.results.result import photos_of
from ilrm.splats import save_ply
from ilrm.splats.cameras import find_names
from ilrm.view.layers import update_layers
from ilrm.view.pictures import picture
from tests.conftest import CAPTURE, make_gaussians


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


def test_names_of_another_trainer_mean_photos_by_their_stems(capture: Result) -> None:
    """INRIA's trainer writes names without folder and suffix."""
    assert capture.cameras is not None
    stems = [Path(name).stem for name in capture.names]
    assert np.array_equal(
        photos_of(CAPTURE, stems, capture.cameras), photos_of(CAPTURE, capture.names, capture.cameras)
    )
    assert find_names(["a", "b", "c"], ["x/a.png", "b.jpg", "y/b.png"]) == [0, None, None]
    assert find_names(["a.png", "b"], ["a.png", "b.png"]) == [0, None]


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


def test_damaged_or_foreign_files_beside_are_left_out_with_a_word(capture_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(capture_folder, folder := tmp_path / "copy")
    photo = next((folder / "inputs").rglob("*.jpg"))
    photo.write_bytes(b"no photo")
    with pytest.warns(IlrmWarning, match=photo.name):
        assert sum(found is None for found in load_result(folder).photos) == 1
    photo.unlink()
    for metrics in ("{", "[]"):
        (folder / "metrics.json").write_text(metrics)
        with pytest.warns(IlrmWarning, match=r"metrics\.json"):
            assert load_result(folder).metrics == {}
    (folder / "metrics.json").unlink()
    for cameras in ("{}", "[]", "[1]", '{"frames": [{"file_path": "a", "transform_matrix": []}]}', "null"):
        (folder / "cameras.json").write_text(cameras)
        with pytest.warns(IlrmWarning, match=r"cameras\.json is not a camera file"):
            assert load_result(folder).cameras is None
    (folder / "scene.ply").unlink()
    with pytest.raises(GaussiansError, match=r"holds no scene\.ply"):
        load_result(folder)


def test_cameras_of_impossible_size_do_not_enlarge_photos(capture_folder: Path, tmp_path: Path) -> None:
    """A file of 2 kB must not ask for gigabytes: pictures are as large as the photos that are there."""
    shutil.copytree(capture_folder, folder := tmp_path / "copy")
    whole, stored = load_result(folder), json.loads((folder / "cameras.json").read_text())
    assert whole.cameras is not None
    for frame in stored["frames"]:
        frame |= {key: 500 * frame[key] for key in ("w", "h", "fx", "fy", "cx", "cy")}
    (folder / "cameras.json").write_text(json.dumps(stored))
    result = load_result(folder)
    assert result.cameras is not None
    assert (result.cameras.width, result.cameras.height) == (whole.cameras.width, whole.cameras.height)
    torch.testing.assert_close(result.cameras.K, whole.cameras.K)
    assert all(np.array_equal(a, b) for a, b in zip(result.photos, whole.photos, strict=True))
    shutil.rmtree(folder / "inputs")
    alone = load_result(folder).cameras
    assert alone is not None
    assert max(alone.width, alone.height) == 4096


def test_update_layers_lead_to_the_result(capture: Result) -> None:
    """The states come from the stored photos and named weights; the last is what was saved, up to JPEG."""
    layers = update_layers(capture)
    names = [*(f"update layer {i + 1}" for i in range(6)), *(f"feedback {i + 1}" for i in range(3))]
    assert [name for name, _ in layers] == names
    assert capture.cameras is not None
    saved = picture(capture.gaussians, capture.cameras[0], "colour", near=0.01)
    last, first = (picture(g, capture.cameras[0], "colour", near=0.01) for g in (layers[-1][1], layers[0][1]))
    assert _psnr(last, saved) > 35 > _psnr(first, saved)


def test_update_layers_need_photos_and_weights(capture: Result) -> None:
    from dataclasses import replace

    from ilrm.core.errors import ConfigError

    with pytest.raises(SceneError, match="--photos"):
        update_layers(replace(capture, photos=()))
    with pytest.raises(ConfigError, match="names the weights"):
        update_layers(replace(capture, metrics={}))


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    import torch

    return psnr(*(torch.from_numpy(np.array(image))[None].float() / 255 for image in (a, b))).item()
