"""Problems that users of other programs met, as captures of the analytic world: exact, refused or warned about."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ilrm.core.errors import IlrmWarning, SceneError
from ilrm.scenes import load_scene
from ilrm.scenes.lenses.models import Lens
from tests.scenes.analytic import (
    FOCAL,
    HEIGHT,
    WIDTH,
    agreement,
    arc,
    photograph,
    pinhole_rays,
    radial_rays,
    save_photo,
    write_capture,
)

EXACT, RESAMPLED = 55.0, 27.0
PINHOLE = f"PINHOLE {WIDTH} {HEIGHT} {FOCAL} {FOCAL} {WIDTH / 2} {HEIGHT / 2}"


def write_text_model(
    project: Path,
    names: list[str],
    *,
    model: str = "sparse/0",
    poses: list[np.ndarray] | None = None,
    blank: str = "\n",
) -> None:
    """A COLMAP project in text form, as scripts write it from known poses; ``blank`` follows each image's line."""
    import pycolmap

    folder = project / model
    folder.mkdir(parents=True)
    lines = ["# images\n"]
    for number, (name, c2w) in enumerate(zip(names, poses or arc(len(names)), strict=True), 1):
        w2c = np.linalg.inv(c2w)
        x, y, z, w = pycolmap.Rotation3d(w2c[:3, :3]).quat
        numbers = " ".join(repr(float(value)) for value in (w, x, y, z, *w2c[:3, 3]))
        lines.append(f"{number} {numbers} 1 {name}\n{blank}")
        save_photo(project / "images" / name.replace("\\", "/"), photograph(c2w, pinhole_rays()))
    (folder / "images.txt").write_text("".join(lines), encoding="utf-8")
    (folder / "cameras.txt").write_text(f"1 {PINHOLE}\n")
    (folder / "points3D.txt").write_text("# none\n")


# --- COLMAP ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("places", [("sparse/0", "sparse/1"), ("colmap/sparse/0", "colmap/sparse/1"), ("0", "1")])
def test_the_model_with_most_photos_counts(tmp_path: Path, places: tuple[str, str]) -> None:
    poses, names = arc(8), [f"{view}.png" for view in range(8)]
    write_text_model(tmp_path, names[:3], model=places[0], poses=poses[:3])
    write_text_model(tmp_path, names[3:], model=places[1], poses=poses[3:])
    with pytest.warns(IlrmWarning, match=rf"{places[1]} of 2 models: 5 of 8 photos"):
        scene = load_scene(tmp_path)
    assert scene.names == tuple(names[3:])
    assert min(agreement(scene)) > EXACT
    assert load_scene(tmp_path / places[0]).names == tuple(names[:3]), "a path to one model is taken at its word"


def test_models_of_hloc(tmp_path: Path) -> None:
    write_text_model(tmp_path, ["a.png"], model="models/0")
    write_text_model(tmp_path, ["b.png", "c.png"], model="models/1")
    with pytest.warns(IlrmWarning, match=r"models/1 of 2 models: 2 of 3 photos"):
        assert load_scene(tmp_path).names == ("b.png", "c.png")


@pytest.mark.parametrize(
    "blank",
    ["", "\n", "# a comment\n", "\n\n\n", "10.5 20.5 -1 30 40 7\n", "# a comment\n10.5 20.5 -1\n", "\n10.5 20.5 -1\n"],
)
def test_text_models_of_scripts_and_editors(tmp_path: Path, blank: str) -> None:
    names = ["flight plan wp-2 (0).png", "1 2 3.png", "ümlaut.png", "a#b.png"]
    write_text_model(tmp_path, names, blank=blank)
    scene = load_scene(tmp_path)
    assert set(scene.names) == set(names)
    assert min(agreement(scene)) > EXACT


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("7 0 0 0 0 1 2 3 1 a.png", "pose 0 0 0 0 1 2 3"),
        ("7 nan 0 0 0 1 2 3 1 a.png", "pose nan"),
        ("7 1 0 0 0 1 2 3 1", "is '7 1 0 0 0"),
        ("7 1 0 0 0 1 2 x 1 a.png", "is '7 1 0 0 0"),
        ("7 1 0 0 0 1 2 3 99 0.png", "camera 99"),
        ("10.5 20.5 -1", "is '10.5"),
    ],
)
def test_odd_lines_of_text_models_are_named(tmp_path: Path, line: str, words: str) -> None:
    write_text_model(tmp_path, ["1.png"])
    save_photo(tmp_path / "images/0.png", photograph(arc(1)[0], pinhole_rays()))
    file = tmp_path / "sparse/0/images.txt"
    file.write_text(file.read_text() + "10.5 20.5 -1\n" + line + "\n")
    with pytest.raises(SceneError, match=r"line [45] of .*images\.txt") as error:
        load_scene(tmp_path)
    assert words in str(error.value)


@pytest.mark.parametrize("line", ["1 PINHOLE 160 120 150 150 80", "1 NONE 160 120 1", "1 PINHOLE a 120 1 1 1 1", "2"])
def test_odd_cameras_of_text_models_are_named(tmp_path: Path, line: str) -> None:
    write_text_model(tmp_path, ["1.png"])
    (tmp_path / "sparse/0/cameras.txt").write_text(f"# cameras\n{line}\n")
    with pytest.raises(SceneError, match=r"line 2 of .*cameras\.txt is"):
        load_scene(tmp_path)


def test_what_colmap_has_lost_is_left_out(tmp_path: Path) -> None:
    write_text_model(tmp_path, [f"{view}.png" for view in range(5)])
    (tmp_path / "images/0.png").unlink()
    (tmp_path / "sparse/0/points3D.txt").unlink()
    with pytest.warns(IlrmWarning) as heard:
        scene = load_scene(tmp_path)
    assert min(agreement(scene)) > EXACT
    told = sorted(str(warning.message) for warning in heard)
    assert ["1 of the 5 images" in told[0], "lacks points3D.txt" in told[1], len(told)] == [True, True, 2]


# --- names of photos ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "listed"),
    [
        ("images/{:04d}.png", "images\\{:04d}.png"),
        ("images/{:04d}.png", ".\\images\\{:04d}.png"),
        ("images/a/{:04d}.png", "images/a\\{:04d}.png"),
        ("images/DJI_{:04d}.JPG", "images/DJI_{:04d}.jpg"),
        ("images/DJI_{:04d}.jpg", "images/DJI_{:04d}.JPG"),
        ("images/r_{:d}.PNG", "./images/r_{:d}"),
        ("Images/{:d}.png", "images/{:d}.png"),
        ("images/frame.{:d}.v2.png", "images/frame.{:d}.v2"),
    ],
)
def test_spellings_that_can_mean_one_file_only(tmp_path: Path, file: str, listed: str) -> None:
    write_capture(tmp_path, 2, file=file, listed=listed)
    scene = load_scene(tmp_path)
    assert scene.names == tuple(Path(file.format(view)).name for view in range(2))
    assert min(agreement(scene)) > 25  # JPEG


def test_backslashes_in_colmap_models(tmp_path: Path) -> None:
    write_text_model(tmp_path, ["cam0\\0.png", "cam1\\0.png"])
    scene = load_scene(tmp_path)
    assert scene.names == ("cam0/0.png", "cam1/0.png")
    assert min(agreement(scene)) > EXACT


@pytest.mark.parametrize(
    ("file", "listed"),
    [
        ("images/{:04d}.jpg", "images/{:04d}.png"),
        ("images/{:04d}.png", "/home/someone/capture/images/{:04d}.png"),
        ("images/{:04d}.png", "C:\\data\\capture\\images\\{:04d}.png"),
        ("images/{:04d}.png", "rgb/{:04d}.png"),
    ],
)
def test_other_spellings_get_a_hint_and_are_not_used(tmp_path: Path, file: str, listed: str) -> None:
    write_capture(tmp_path, 2, file=file, listed=listed)
    with pytest.raises(SceneError) as error:
        load_scene(tmp_path)
    assert f"{file.format(0)} exists, {listed.format(0)} is listed" in str(error.value)


def test_two_files_that_may_be_meant_are_no_answer(tmp_path: Path) -> None:
    write_capture(tmp_path, 2, file="images/A{:d}.png", listed="images/a{:d}.png")
    save_photo(tmp_path / "images/a0.PNG", np.zeros((HEIGHT, WIDTH, 3), np.uint8), format="png")
    with pytest.warns(IlrmWarning, match="1 of the 2 images"):
        assert load_scene(tmp_path).names == ("A1.png",)


def test_test_poses_that_were_never_rendered(tmp_path: Path) -> None:
    write_capture(tmp_path, 4, file="train/{:04d}.png")
    content = json.loads((tmp_path / "transforms.json").read_text())
    (tmp_path / "transforms.json").rename(tmp_path / "transforms_train.json")
    for view, frame in enumerate(content["frames"]):
        frame["file_path"] = f"test/{view:04d}.png"
    (tmp_path / "transforms_test.json").write_text(json.dumps(content))
    with pytest.warns(IlrmWarning, match=r"4 of the 8 images of .*transforms_test\.json do not exist"):
        scene = load_scene(tmp_path)
    assert len(scene) == 4
    assert min(agreement(scene)) > EXACT


# --- intrinsics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "off"), [(4, 0.0), (2, 0.0), (2, -0.01), (2.5, 0.0), (0.5, 0.0), (8, 0.005)])
def test_intrinsics_of_other_photos_without_their_size(tmp_path: Path, factor: float, off: float) -> None:
    centre = {"cx": WIDTH / 2 * factor * (1 + off), "cy": HEIGHT / 2 * factor * (1 + off)}
    write_capture(tmp_path, 2, drop=("w", "h"), fl_x=FOCAL * factor, fl_y=FOCAL * factor, **centre)
    size = f"{WIDTH * factor:.0f}x{HEIGHT * factor:.0f}"
    with pytest.warns(IlrmWarning, match=f"principal point is that of {size}") as heard:
        scene = load_scene(tmp_path)
    assert len(heard) == 1, "once for all photos"
    assert scene.cameras.K[0, 0, 0].item() == pytest.approx(FOCAL, rel=1e-6)
    if off == 0:
        assert min(agreement(scene)) > EXACT


@pytest.mark.parametrize(("cx", "cy"), [(320.0, 100.0), (-5.0, 60.0), (80.0, 121.0), (1e30, 1e30), (700.0, 330.0)])
def test_principal_points_outside_that_nothing_explains(tmp_path: Path, cx: float, cy: float) -> None:
    write_capture(tmp_path, 2, drop=("w", "h"), cx=cx, cy=cy)
    with pytest.raises(SceneError, match=r"principal point at .*outside its photo of 160x120"):
        load_scene(tmp_path)


@pytest.mark.parametrize("keys", [{"fxfycxcy": True}, {}])
def test_the_other_camera_files_have_the_same_rule(tmp_path: Path, keys: dict[str, bool]) -> None:
    poses = write_capture(tmp_path, 2)
    (tmp_path / "transforms.json").unlink()
    values = [4 * FOCAL, 4 * FOCAL, 2.0 * WIDTH, 2.0 * HEIGHT]
    lens = {"fxfycxcy": values} if keys else dict(zip(("fx", "fy", "cx", "cy"), values, strict=True))
    path = "image_path" if keys else "file_path"
    frames = [
        {path: f"images\\{view:04d}.png", "w2c": np.linalg.inv(c2w).tolist(), **lens} for view, c2w in enumerate(poses)
    ]
    (tmp_path / "opencv_cameras.json").write_text(json.dumps({"frames": frames}))
    with pytest.warns(IlrmWarning, match="principal point is that of 640x480"):
        assert min(agreement(load_scene(tmp_path))) > EXACT


def test_fields_of_view_in_degrees(tmp_path: Path) -> None:
    angle = math.degrees(2 * math.atan(WIDTH / 2 / FOCAL))
    write_capture(tmp_path, 2, drop=("fl_x", "fl_y"), x_fov=angle)
    assert min(agreement(load_scene(tmp_path))) > EXACT


@pytest.mark.parametrize(
    "lens",
    [
        {"latlong": True},
        {"equirectangular": 1},
        {"ftheta_p0": 0.0, "ftheta_p1": 0.01},
        {"camera_model": "EQUIRECTANGULAR"},
        {"k4": 0.1},
        {"k6": 0.1},
        {"skew": 0.1},
    ],
)
@pytest.mark.parametrize("in_frame", [False, True])
def test_lenses_that_are_no_pinhole_are_refused(tmp_path: Path, lens: dict[str, Any], in_frame: bool) -> None:
    write_capture(tmp_path, 2)
    content = json.loads((tmp_path / "transforms.json").read_text())
    (content["frames"][1] if in_frame else content).update(lens)
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    with pytest.raises(SceneError, match=f"frame {int(in_frame)} .*"):
        load_scene(tmp_path)


def test_flags_that_are_not_set_are_no_lens(tmp_path: Path) -> None:
    unset = {"latlong": False, "is_fisheye": False, "ftheta_p0": 0, "k4": 0, "rolling_shutter": [0, 0, 0, 0]}
    write_capture(tmp_path, 2, **unset)
    assert min(agreement(load_scene(tmp_path))) > EXACT


def test_what_may_be_wrong_with_the_lens_is_said(tmp_path: Path) -> None:
    write_capture(tmp_path / "rolling", 2, rolling_shutter=[0, 0, 0.02, 0])
    with pytest.warns(IlrmWarning, match="rolling shutter"):
        load_scene(tmp_path / "rolling")
    angle = 2 * math.atan(0.5)
    rays = pinhole_rays(160, 80, 160.0)
    write_capture(tmp_path / "wide", 2, rays=rays, drop=("fl_x", "fl_y", "cx", "cy"), camera_angle_x=angle)
    with pytest.warns(IlrmWarning, match="exactly twice as wide as high"):
        assert min(agreement(load_scene(tmp_path / "wide"))) > EXACT


def test_distortion_of_a_frame_of_its_own(tmp_path: Path) -> None:
    write_capture(tmp_path, 2, rays=radial(-0.1, 150.0))
    content = json.loads((tmp_path / "transforms.json").read_text())
    for frame in content["frames"]:
        frame["distortion_params"] = [-0.1, 0, 0, 0, 0, 0]
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    assert min(agreement(load_scene(tmp_path))) > RESAMPLED


# --- lenses that fold -----------------------------------------------------------------------------------------------


def radial(k1: float, focal: float, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    turn = math.inf if k1 >= 0 else 1 / math.sqrt(-3 * k1)
    return radial_rays(width, height, focal, lambda r: r * (1 + k1 * r * r), fold=min(turn, 4.0))


@pytest.mark.parametrize(("k1", "share"), [(-0.2, 0.46), (-0.3, 0.6), (-0.25, 0.55)])
def test_folding_lenses_are_cropped_before_the_turn(tmp_path: Path, k1: float, share: float) -> None:
    width, height = 200, 150
    write_capture(
        tmp_path, 3, rays=radial(k1, share * width, width, height), fl_x=share * width, fl_y=share * width, k1=k1
    )
    with pytest.warns(
        IlrmWarning, match=r"distortion of the lens OPENCV .* folds back inside the photo; cropped to the"
    ):
        scene = load_scene(tmp_path)
    assert min(agreement(scene)) > RESAMPLED
    assert scene.cameras.width * scene.cameras.height > 0.8 * width * height


def test_lenses_that_fold_too_early_are_refused(tmp_path: Path) -> None:
    write_capture(tmp_path, 2, rays=radial(-0.33, 92.0, 200, 150), fl_x=92.0, fl_y=92.0, k1=-0.33)
    with pytest.raises(SceneError, match=r"the lens OPENCV .*folds back inside the photo; .* show 3\d% of its pixels"):
        load_scene(tmp_path)


# Parameters, the distorted radius by the formula, and whether it folds back inside the photo.
RADIAL: dict[str, tuple[str, tuple[float, ...], Callable[[np.ndarray], np.ndarray], bool]] = {
    "one coefficient": ("SIMPLE_RADIAL", (92, 100, 75, -0.2), lambda r: r - 0.2 * r**3, True),
    "two": ("RADIAL", (92, 100, 75, -0.1, -0.02), lambda r: r - 0.1 * r**3 - 0.02 * r**5, True),
    "off centre": ("RADIAL", (92, 120, 60, -0.15, 0.0), lambda r: r - 0.15 * r**3, True),
    "rational": (
        "FULL_OPENCV",
        (92, 92, 100, 75, -0.2, 0, 0, 0, 0, 0.02, 0, 0),
        lambda r: r * (1 - 0.2 * r**2) / (1 + 0.02 * r**2),
        True,
    ),
    "fisheye": (
        "OPENCV_FISHEYE",
        (98, 98, 100, 75, -0.24, 0, 0, 0),
        lambda r: np.arctan(r) - 0.24 * np.arctan(r) ** 3,
        True,
    ),
    "fisheye that does not": (
        "OPENCV_FISHEYE",
        (92, 92, 100, 75, -0.1, 0, 0, 0),
        lambda r: np.arctan(r) - 0.1 * np.arctan(r) ** 3,
        False,
    ),
    "narrow": ("SIMPLE_RADIAL", (150, 100, 75, -0.2), lambda r: r - 0.2 * r**3, False),
}


@pytest.mark.parametrize("name", RADIAL)
def test_no_pixel_of_an_undistorted_photo_lies_beyond_the_turn(name: str) -> None:
    """The distorted radius grows all along the way from the axis to every corner, by the formula itself."""
    model, params, distort, folds = RADIAL[name]
    lens = Lens(model, params, 200, 150)
    pinhole = lens.undistorted("photo")
    fx, fy, cx, cy = pinhole.params
    corners = np.array([[x, y] for x in (-cx, pinhole.width - cx) for y in (-cy, pinhole.height - cy)]) / [fx, fy]
    for radius in np.linalg.norm(corners, axis=-1):
        assert (np.diff(distort(np.linspace(0, radius, 1000))) > 0).all()
    assert (lens.kept_share() < 1) == folds
    assert lens.kept_share() > 0.5


def test_tangential_distortion_that_folds_is_refused() -> None:
    assert Lens("OPENCV", (92, 92, 100, 75, 0, 0, 0.12, 0.12), 200, 150).kept_share() == 1, "beyond what is shown"
    with pytest.raises(SceneError, match="lens OPENCV"):
        Lens("OPENCV", (92, 92, 100, 75, 0, 0, 0.2, 0.2), 200, 150).undistorted("photo")
    with pytest.raises(SceneError, match="lens OPENCV"):
        Lens("OPENCV", (92, 92, 100, 75, 1e300, 0, 0, 0), 200, 150).undistorted("photo")
