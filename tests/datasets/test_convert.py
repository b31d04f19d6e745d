from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ilrm.core.cameras import Cameras
from ilrm.core.errors import ConfigError, SceneError
from ilrm.core.scene import Scene
from ilrm.datasets.convert import Fit, convert_scenes, find_inputs
from ilrm.datasets.dataset import find_scenes
from ilrm.datasets.layouts import Form
from ilrm.datasets.make_set import make_set
from ilrm.datasets.procedural import ProceduralConfig
from ilrm.datasets.save_set import Outcome
from ilrm.scenes import list_keys, load_scene, save_scene
from ilrm.scenes.lenses.models import Lens
from tests.cli.conftest import tree
from tests.conftest import look_at, make_cameras, shared_path
from tests.scenes.files import assert_close, transforms, write_scene, write_transforms

DISTORTION = {"k1": -0.12, "k2": 0.05, "p1": 0.001, "p2": -0.002}
DOTS = torch.tensor([[0.0, 0.0, 0.0], [0.9, 0.5, 0.3], [-0.8, 0.45, 0.1], [0.85, -0.5, 0.0], [-0.9, -0.4, 0.2]])


def convert(inputs: Path | list[Path], output: Path, form: Form = "chunks", **options: Any) -> list[Outcome]:
    inputs = [inputs] if isinstance(inputs, Path) else inputs
    fit = Fit(options.pop("max_side", None), options.pop("size", None))
    refs = find_inputs(inputs, options.pop("names", "folder"))
    assert form != "folders"
    return convert_scenes(refs, output, form, fit, **{"image_format": "png", "jobs": 1, **options})


def converted(output: Path, name: str) -> Scene:
    """A scene of either form."""
    return load_scene(output / "train", key=name) if (output / "train").is_dir() else load_scene(output / name)


def dotted(width: int, height: int, cameras: Cameras, distorted: bool) -> list[np.ndarray]:
    """Photos of soft dots at ``DOTS`` in the world, through the lens of the given full size scaled to the photo's."""
    images = []
    x, y = width / cameras.width, height / cameras.height
    for view in range(len(cameras)):
        K, w2c = cameras.K[view], cameras.w2c[view]
        params = (K[0, 0].item(), K[1, 1].item(), K[0, 2].item(), K[1, 2].item())
        values = tuple(DISTORTION.values()) if distorted else (0.0, 0.0, 0.0, 0.0)
        local = DOTS.double() @ w2c[:3, :3].double().T + w2c[:3, 3].double()
        u, v = (local[:, 0] / local[:, 2]).numpy(), (local[:, 1] / local[:, 2]).numpy()
        k1, k2, p1, p2 = values
        r2 = u * u + v * v
        radial = 1 + k1 * r2 + k2 * r2 * r2
        du = u * radial + 2 * p1 * u * v + p2 * (r2 + 2 * u * u)
        dv = v * radial + 2 * p2 * u * v + p1 * (r2 + 2 * v * v)
        px, py = (params[0] * du + params[2]) * x, (params[1] * dv + params[3]) * y
        jj, ii = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        glow = sum(np.exp(-((jj - a) ** 2 + (ii - b) ** 2) / (2 * 2.0**2)) for a, b in zip(px, py, strict=True))
        images.append(np.repeat(np.rint(255 * np.clip(glow, 0, 1)).astype(np.uint8)[..., None], 3, -1))
    return images


def dl3dv(folder: Path, width: int = 640, height: int = 360, *, distorted: bool = True) -> Cameras:
    """A capture as DL3DV ships it: intrinsics of the full size, photos at a quarter and an eighth of it only."""
    centres = [torch.tensor([0.3 * view - 0.3, 0.1 * view, -3.0], dtype=torch.float64) for view in range(3)]
    c2w = torch.stack([look_at(centre, torch.zeros(3, dtype=torch.float64)) for centre in centres])
    K = torch.tensor([[0.9 * width, 0, 0.5 * width + 8], [0, 0.9 * width, 0.5 * height - 4], [0, 0, 1]]).double()
    cameras = Cameras(c2w, K.repeat(3, 1, 1), width, height)
    for divisor in (4, 8):
        photos = dotted(width // divisor, height // divisor, cameras, distorted)
        (folder / f"images_{divisor}").mkdir(parents=True)
        for view, photo in enumerate(photos):
            Image.fromarray(photo).save(folder / f"images_{divisor}" / f"frame_{view:05d}.png")
    files = [f"images/frame_{view:05d}.png" for view in range(3)]
    lens = {"camera_model": "OPENCV", **DISTORTION} if distorted else {}
    write_transforms(folder, transforms(cameras, files, **lens))
    return cameras


def brightest(image: Tensor, guess: Tensor) -> Tensor:
    """(2,) where the dot near ``guess`` (x, y) has its centre of brightness; pixel centres at + 0.5."""
    height, width = image.shape[:2]
    jj, ii = torch.meshgrid(torch.arange(width) + 0.5, torch.arange(height) + 0.5, indexing="xy")
    near = ((jj - guess[0]) ** 2 + (ii - guess[1]) ** 2 < 6.0**2) * image[..., 0]
    return torch.stack([(near * jj).sum(), (near * ii).sum()]) / near.sum()


def check_dots(scene: Scene, atol: float = 0.08) -> None:
    """Known points of the world lie in the photos where the cameras project them to."""
    checked = 0
    for view in range(len(scene)):
        K, w2c = scene.cameras.K[view].double(), scene.cameras.w2c[view].double()
        local = (DOTS.double() @ w2c[:3, :3].T + w2c[:3, 3]) @ K.T
        for pixel in local[:, :2] / local[:, 2:]:
            if (pixel > 7).all() and pixel[0] < scene.cameras.width - 7 and pixel[1] < scene.cameras.height - 7:
                assert_close(brightest(scene.images[view], pixel), pixel, atol=atol, rtol=0)
                checked += 1
    assert checked >= 8


@pytest.mark.parametrize("form", ["chunks", "json"])
@pytest.mark.parametrize("size", [None, (120, 88), (96, 96)])
def test_points_stay_in_their_pixels(form: Form, size: tuple[int, int] | None, tmp_path: Path) -> None:
    """Through undistortion, scaling, cropping and the conventions of both forms."""
    dl3dv(tmp_path / "in")
    convert(tmp_path / "in", tmp_path / "out", form, size=size)
    back = converted(tmp_path / "out", "in")
    assert size is None or (back.cameras.width, back.cameras.height) == size
    check_dots(back)


def test_the_smallest_copies_that_are_large_enough_are_read(tmp_path: Path) -> None:
    dl3dv(tmp_path / "in", distorted=False)
    for name in ("images_4", "images_8"):  # each in a colour of its own
        for file in (tmp_path / "in" / name).iterdir():
            with Image.open(file) as image:
                Image.new("RGB", image.size, {"images_4": "red", "images_8": "blue"}[name]).save(file)
    red, blue = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0])
    for number, (fit, width, colour) in enumerate(
        [
            ({"max_side": 80}, 80, blue),
            ({"max_side": 40}, 40, blue),
            ({"max_side": 81}, 81, red),
            ({"size": (80, 45)}, 80, blue),
            ({"size": (80, 46)}, 80, red),
            ({}, 160, red),
            ({"max_side": 4000}, 160, red),
        ]
    ):
        convert(tmp_path / "in", tmp_path / str(number), "json", **fit)
        back = converted(tmp_path / str(number), "in")
        assert back.cameras.width == width, fit
        assert torch.equal(back.images[0][0, 0], colour), fit
        scale = 46 / 360 if fit == {"size": (80, 46)} else width / 640  # where the aspect differs, to cover it
        focal = 576 * scale
        assert_close(back.cameras.K[0, 0, 0], torch.tensor(focal), atol=1e-3, rtol=1e-6)


def test_copies_too_small_after_undistortion_are_passed_over(tmp_path: Path) -> None:
    dl3dv(tmp_path / "in")
    lens = Lens("OPENCV", (72.0, 72.0, 41.0, 22.0, *DISTORTION.values()), 80, 45).undistorted("")
    assert lens.width != 80, "else nothing is shown here"
    outcomes = convert(tmp_path / "in", tmp_path / "out", "json", max_side=max(lens.width, 80))
    assert outcomes[0].written is not None
    assert outcomes[0].written.width == max(lens.width, 80)
    check_dots(converted(tmp_path / "out", "in"))


@pytest.mark.parametrize("form", ["chunks", "json"])
def test_cameras_and_png_pixels_are_kept(form: Form, tmp_path: Path) -> None:
    cameras, _ = write_scene(tmp_path / "in", views=4)
    convert(tmp_path / "in", tmp_path / "out", form)
    before, back = load_scene(tmp_path / "in"), converted(tmp_path / "out", "in")
    assert torch.equal(back.images[:], before.images[:])
    assert_close(back.cameras.c2w, before.cameras.c2w, atol=1e-6, rtol=1e-6)
    assert_close(back.cameras.K, cameras.K, atol=1e-5, rtol=1e-6)


def lvsm(folder: Path, names: list[str]) -> None:
    """Scenes as LVSM ships them: their camera files in one folder."""
    write_scene(folder / "photos")
    (folder / "photos" / "transforms.json").unlink()
    (folder / "metadata").mkdir()
    cameras = make_cameras(3, 32, 24)
    K = cameras.K[0]
    for name in names:
        frames = [
            {
                "image_path": f"../photos/images/{view}.png",
                "fxfycxcy": [K[0, 0].item(), K[1, 1].item(), K[0, 2].item(), K[1, 2].item()],
                "w2c": cameras.w2c[view].tolist(),
            }
            for view in range(3)
        ]
        (folder / "metadata" / f"{name}.json").write_text(json.dumps({"scene_name": name, "frames": frames}))


def test_all_kinds_of_inputs_are_found(tmp_path: Path) -> None:
    write_scene(tmp_path / "set" / "one")
    write_scene(tmp_path / "set" / "group" / "two")
    save_scene(load_scene(tmp_path / "set" / "one"), tmp_path / "set" / "three", camera_file="opencv_cameras.json")
    lvsm(tmp_path / "lvsm", ["four", "five"])
    make_set(tmp_path / "chunks", [6], ProceduralConfig(views=2, width=32, height=32, points=1), "chunks", jobs=1)
    (tmp_path / "list.txt").write_text("# two of them\nset/one\n\nset/three/opencv_cameras.json\n")

    def names(path: Path) -> list[str]:
        return [ref.name for ref in find_scenes(path)]

    assert names(tmp_path / "set") == ["two", "one", "three"]
    assert names(tmp_path / "set" / "one") == ["one"]
    assert names(tmp_path / "set" / "one" / "transforms.json") == ["one"]
    assert names(tmp_path / "list.txt") == ["one", "three"]
    assert names(tmp_path / "lvsm" / "metadata") == ["five", "four"]
    for place in ("chunks", "chunks/train", "chunks/train/index.json", "chunks/train/000000.torch"):
        assert names(tmp_path / place) == ["scene_000006"]
    inputs = [tmp_path / "set", tmp_path / "lvsm" / "metadata", tmp_path / "chunks"]
    outcomes = convert(inputs, tmp_path / "out", size=(24, 24))
    assert all(outcome.written for outcome in outcomes)
    assert list_keys(tmp_path / "out" / "train") == ("two", "one", "three", "five", "four", "scene_000006")
    for key in ("two", "four", "scene_000006"):
        assert load_scene(tmp_path / "out" / "train", key=key).cameras.width == 24


def test_equal_names_need_another_rule(tmp_path: Path) -> None:
    for name in ("a", "b.1"):
        write_scene(tmp_path / name / "nerfstudio")
    with pytest.raises(ConfigError, match=r"Several scenes would be named nerfstudio: [^,]*a/nerfstudio, ") as error:
        find_inputs([tmp_path])
    assert "--key-from parent" in error.value.fix
    assert [ref.name for ref in find_inputs([tmp_path], "parent")] == ["a", "b.1"]
    assert [ref.name for ref in find_inputs([tmp_path], "path")] == ["a_nerfstudio", "b.1_nerfstudio"]


def test_broken_scenes_are_named_and_do_not_stop_the_others(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d", "e"):
        _, data = write_scene(tmp_path / "in" / name)
        if name == "b":
            data["frames"][1]["transform_matrix"][0][0] = float("nan")
            write_transforms(tmp_path / "in" / name, data)
    photo = tmp_path / "in" / "c" / "images" / "2.png"
    photo.write_bytes(photo.read_bytes()[:-100])
    (tmp_path / "in" / "d" / "transforms.json").unlink()
    outcomes = {outcome.name: outcome for outcome in convert(tmp_path / "in", tmp_path / "out", "json")}
    assert [name for name in outcomes if outcomes[name].written] == ["a", "e"]
    assert "The pose of 1.png holds NaN" in outcomes["b"].reason
    assert "2.png cannot be decoded" in outcomes["c"].reason
    assert "no camera poses" in outcomes["d"].reason
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["converted"], report["broken"]) == (2, 3)
    assert {name: entry["status"] for name, entry in report["scenes"].items()} == {
        name: "converted" if name in "ae" else "broken" for name in "abcde"
    }
    assert report["scenes"]["a"] == {
        "status": "converted",
        "origin": str(tmp_path / "in" / "a"),
        "views": 3,
        "width": 32,
        "height": 24,
        "warnings": [],
    }
    assert (tmp_path / "out" / "scenes.txt").read_text() == "a/opencv_cameras.json\ne/opencv_cameras.json\n"
    seen = sorted(entry.name for entry in (tmp_path / "out").iterdir() if not entry.name.startswith("."))
    assert seen == ["a", "e", "report.json", "scenes.txt"]


def test_what_is_odd_is_reported_each_time(tmp_path: Path) -> None:
    write_scene(tmp_path / "in")
    Image.new("RGB", (64, 48)).save(tmp_path / "in" / "images" / "0.png")
    for _ in range(2):
        (outcome,) = convert(tmp_path / "in", tmp_path / "out", size=(48, 36))
        assert outcome.written is not None
        assert outcome.written.warnings == (
            "the photos have several sizes (2 of 32x24, 1 of 64x48); all become 48x36",
            "photos of 32x24 (undistorted) were enlarged to 48x36",
        )
    assert outcome.kept


def test_continued_conversion_and_other_settings(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_scene(tmp_path / "in" / name)

    def stop(outcome: Outcome) -> None:
        if outcome.name == "b":
            raise KeyboardInterrupt

    for form in ("chunks", "json"):
        with pytest.raises(KeyboardInterrupt):
            convert(tmp_path / "in", tmp_path / form, form, on_done=stop)
        assert [outcome.kept for outcome in convert(tmp_path / "in", tmp_path / form, form)] == [True, True, False]
        convert(tmp_path / "in", tmp_path / f"{form} at once", form)
        assert tree(tmp_path / form) == tree(tmp_path / f"{form} at once")
        with pytest.raises(Exception, match="max_side is None there, 16 here"):
            convert(tmp_path / "in", tmp_path / form, form, max_side=16)
        shutil.copytree(tmp_path / "in" / "a", tmp_path / "elsewhere" / "a", dirs_exist_ok=True)
        with pytest.raises(Exception, match=r"origin is .*in/a there, .*elsewhere/a here"):
            convert(tmp_path / "elsewhere" / "a", tmp_path / form, form)


@pytest.mark.slow
def test_jobs_do_not_matter(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        dl3dv(tmp_path / "in" / name)
    for jobs in (1, 2):
        convert(tmp_path / "in", tmp_path / str(jobs), size=(60, 40), jobs=jobs, chunk_bytes=6_000)
    assert tree(tmp_path / "1") == tree(tmp_path / "2")
    assert len(list((tmp_path / "1" / "train").glob("*.torch"))) > 1


def test_inputs_without_scenes(tmp_path: Path) -> None:
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    with pytest.raises(SceneError, match="empty holds no scenes"):
        find_inputs([tmp_path / "empty"])
    with pytest.raises(SceneError, match="nowhere does not exist"):
        find_inputs([tmp_path / "nowhere"])
    (tmp_path / "list.txt").write_text("# nothing\n")
    with pytest.raises(SceneError, match="lists no scenes"):
        find_inputs([tmp_path / "list.txt"])
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SceneError, match="cannot be read as a list"):
        find_inputs([tmp_path / "list.txt"])


def test_impossible_fits() -> None:
    with pytest.raises(ConfigError, match="longer side and a size"):
        Fit(10, (10, 10))
    with pytest.raises(ConfigError, match="Photos cannot have a side of 0 pixels"):
        Fit(0)
    with pytest.raises(ConfigError, match="Photos cannot have a side of 0 pixels"):
        Fit(size=(0, 5))


@pytest.mark.shared
@pytest.mark.parametrize("name", ["fox", "kitchen_a"])
def test_real_scenes_keep_their_cameras_and_looks(name: str, tmp_path: Path) -> None:
    source = load_scene(shared_path(f"scenes/{name}"), max_side=128)
    convert(shared_path(f"scenes/{name}"), tmp_path, max_side=128, image_format="jpg")
    back = load_scene(tmp_path / "train", key=name)
    assert_close(back.cameras.K, source.cameras.K, atol=1e-3, rtol=1e-6)
    assert_close(back.cameras.c2w, source.cameras.c2w, atol=1e-5, rtol=1e-5)
    assert (back.images[:4] - source.images[:4]).abs().mean() < 0.02
