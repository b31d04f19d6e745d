"""COLMAP projects: COLMAP's own bindings and our loader find the same cameras, photos and points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
from PIL import Image

from ilrm.core.errors import GaussiansError, OutputError
from ilrm.core.scene import Scene
from ilrm.core.spherical_harmonics import C0
from ilrm.scenes import load_scene
from ilrm.splats import save_colmap
from tests.conftest import make_cameras, make_gaussians

WIDTH, HEIGHT = 32, 24


def make_scene(views: int = 3, *, own_intrinsics: bool = False) -> Scene:
    cameras = make_cameras(views, WIDTH, HEIGHT).to(dtype=torch.float64)
    if own_intrinsics:
        cameras.K[:, 0, 0] *= torch.arange(1, views + 1)
    images = torch.randint(0, 256, (views, HEIGHT, WIDTH, 3), generator=torch.Generator().manual_seed(0)) / 255
    return Scene(images, cameras, tuple(f"photo_{view}.jpg" for view in range(views)))


@pytest.mark.parametrize("own_intrinsics", [False, True])
def test_our_loader_finds_the_same(tmp_path: Path, own_intrinsics: bool) -> None:
    scene, gaussians = make_scene(own_intrinsics=own_intrinsics), make_gaussians(50, 2)
    assert save_colmap(scene, gaussians, tmp_path / "project") == ("photo_0.png", "photo_1.png", "photo_2.png")
    back = load_scene(tmp_path / "project")
    torch.testing.assert_close(back.cameras.c2w, scene.cameras.c2w, atol=1e-6, rtol=0)
    torch.testing.assert_close(back.cameras.K, scene.cameras.K, atol=1e-9, rtol=0)
    assert torch.equal(back.images[:], scene.images[:]), "PNG keeps every pixel"
    assert back.points is not None
    assert back.points_rgb is not None
    nearest = torch.cdist(gaussians.means.double(), back.points.double()).min(dim=1)
    assert nearest.values.max() < 1e-6
    assert sorted(nearest.indices.tolist()) == list(range(50))
    colours = (0.5 + C0 * gaussians.sh[:, 0]).clamp(0, 1)
    torch.testing.assert_close(back.points_rgb[nearest.indices], colours, atol=0.5 / 255 + 1e-6, rtol=0)


def test_colmap_opens_it(tmp_path: Path) -> None:
    """It also projects each centre to the same pixel as our camera model."""
    scene, gaussians = make_scene(), make_gaussians(30)
    save_colmap(scene, gaussians, tmp_path)
    model = pycolmap.Reconstruction(str(tmp_path / "sparse/0"))
    assert (model.num_cameras(), model.num_images(), model.num_points3D()) == (1, 3, 30)
    image = next(image for image in model.images.values() if image.name == "photo_1.png")
    assert Image.open(tmp_path / "images" / image.name).size == (WIDTH, HEIGHT)
    local = torch.linalg.inv(scene.cameras.c2w[1])[:3] @ torch.tensor([0.1, -0.2, 0.3, 1]).double()
    ours = (scene.cameras.K[1] @ local)[:2] / local[2]
    np.testing.assert_allclose(image.project_point(np.array([0.1, -0.2, 0.3])), ours, atol=1e-6)


def test_an_earlier_project_is_replaced_and_other_files_stay(tmp_path: Path) -> None:
    save_colmap(make_scene(3), make_gaussians(5), tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    save_colmap(make_scene(2), make_gaussians(5), tmp_path, image_format="jpg")
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == ["photo_0.jpg", "photo_1.jpg"]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert len(load_scene(tmp_path)) == 2


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(GaussiansError, match="no Gaussians"):
        save_colmap(make_scene(), make_gaussians(0), tmp_path / "a")
    with pytest.raises(OutputError, match="Cannot write"):
        save_colmap(make_scene(), make_gaussians(2), "/proc/project")
    assert list(tmp_path.iterdir()) == []
