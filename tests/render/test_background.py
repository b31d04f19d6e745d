"""What is drawn behind Gaussians, and that files keep it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ilrm.core.cameras import Similarity
from ilrm.core.errors import GaussiansError
from ilrm.core.gaussians import Gaussians
from ilrm.core.scene import Scene
from ilrm.pictures.frames import Picture, render_frame
from ilrm.render import render
from ilrm.render.comparison import compare
from ilrm.scenes.photos.background import background_colour
from ilrm.splats import load_gaussians, save_gaussians
from ilrm.view.splats import background_image
from tests.conftest import make_cameras, make_gaussians

RED = (0.8, 0.1, 0.2)


@pytest.fixture
def red() -> Gaussians:
    return replace(make_gaussians(3, scale=0.01), background=RED)


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_their_own_is_drawn_unless_another_is_asked_for(red: Gaussians, backend: str) -> None:
    camera = make_cameras(1, 16, 16)

    def corner(*asked: object) -> list[float]:
        return render(red, camera, *asked, backend=backend).rgb[0, 0, 0].tolist()  # type: ignore[arg-type]

    assert corner() == pytest.approx(RED)
    assert corner((0.0, 0.5, 1.0)) == pytest.approx((0, 0.5, 1))
    assert render(replace(red, background=None), camera).rgb[0, 0, 0].tolist() == pytest.approx((1, 1, 1))


def test_photos_are_compared_before_it(red: Gaussians) -> None:
    batch, cameras = red.map(lambda x: x[None]), make_cameras(1, 16, 16)
    cameras = replace(cameras, c2w=cameras.c2w[None], K=cameras.K[None])
    photos = torch.zeros(1, 1, 16, 16, 3)
    for backend in ("numba", "reference"):
        found = compare(batch, cameras, photos, backend=backend)  # type: ignore[arg-type]
        assert found.residual[0, 0, 0, 0].tolist() == pytest.approx([-x for x in RED])


def test_frames_have_it_in_all_panels(red: Gaussians) -> None:
    frame = render_frame(red, make_cameras(1, 16, 16), Picture(("rgb", "depth")))
    assert frame[0, 0].tolist() == frame[0, 16].tolist() == pytest.approx(RED)


def test_it_stays_with_them(red: Gaussians) -> None:
    turned = red.transform(Similarity(2.0, torch.eye(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)))
    for kept in (red[:2], red.to(dtype=torch.float64), turned, Gaussians.cat([red, replace(red, background=None)])):
        assert kept.background == RED


@pytest.mark.parametrize("given", [(0.1, 0.2), (0.0, 0.5, 1.1), (float("nan"), 0.0, 0.0)])
def test_other_colours_are_refused(given: tuple[float, ...]) -> None:
    with pytest.raises(GaussiansError, match="three numbers from 0 to 1"):
        replace(make_gaussians(2), background=given)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["scene.ply", "scene.compressed.ply"])
def test_files_keep_it(red: Gaussians, name: str, tmp_path: Path) -> None:
    save_gaussians(red, tmp_path / name)
    assert load_gaussians(tmp_path / name).background == pytest.approx(RED)
    save_gaussians(replace(red, background=None), tmp_path / name)
    assert load_gaussians(tmp_path / name).background is None


@pytest.mark.parametrize("comment", [b"background", b"background 1 2 3", b"background a b c", b"background nan 0 0"])
def test_other_comments_say_nothing(red: Gaussians, comment: bytes, tmp_path: Path) -> None:
    file = tmp_path / "scene.ply"
    save_gaussians(red, file)
    content = file.read_bytes()
    assert content.count(b"comment background 0.8000 0.1000 0.2000") == 1
    file.write_bytes(content.replace(b"comment background 0.8000 0.1000 0.2000", b"comment " + comment))
    assert load_gaussians(file).background is None


def test_a_page_shows_it(red: Gaussians) -> None:
    image = background_image(red)
    assert image is not None
    assert image.reshape(-1, 3).tolist() == [[204, 26, 51]] * 4
    assert background_image(replace(red, background=None)) is None


def photos(images: torch.Tensor, mask: torch.Tensor | None = None) -> Scene:
    names = tuple(map(str, range(len(images))))
    return Scene(images, make_cameras(len(images), images.shape[2], images.shape[1]), names, mask=mask)


def test_it_is_the_colour_of_alike_edges_else_the_mean() -> None:
    draw = torch.Generator().manual_seed(0)
    clutter = torch.rand(3, 20, 30, 3, generator=draw)
    assert background_colour(photos(clutter)) == pytest.approx(clutter.mean((0, 1, 2)).tolist(), abs=1e-5)
    wall = clutter.clone()
    colour = torch.tensor([0.9, 0.85, 0.8])
    for edge in (wall[:, :3], wall[:, -3:], wall[:, :, :3], wall[:, :, -3:]):
        edge[:] = colour + 0.01 * torch.rand(edge.shape, generator=draw)
    assert background_colour(photos(wall)) == pytest.approx((colour + 0.005).tolist(), abs=3e-3)


def test_masks_leave_it_open() -> None:
    images = torch.rand(2, 20, 30, 3)
    assert background_colour(photos(images, torch.ones(2, 20, 30) > 0)) is None
