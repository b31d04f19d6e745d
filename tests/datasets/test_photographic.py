"""Procedural scenes in the photographic style: photos where they belong, views through windows; and plain scenes that
are what they were."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ilrm.core.errors import ConfigError
from ilrm.datasets.make_set import make_set
from ilrm.datasets.procedural import ProceduralBatch, ProceduralConfig, furniture, make_batch, photographic, photos
from ilrm.datasets.procedural.batch import _cast_group, describe
from ilrm.datasets.procedural.layout import sample_world
from ilrm.datasets.procedural.table import COLUMNS, WIDTH, Fetched, place
from tests.datasets.test_procedural import _look_up, _project, _unproject

PLAIN = ProceduralConfig(views=3, width=32, height=32, points=16)
# Mean of the images, depths and points of seeds 0 to 3 before there was another style.
PINNED = [
    *(0.565680, 3.195458, 0.414814, 0.642297, 1.043622, -0.008000),
    *(0.612870, 2.424325, 0.012510, 0.539176, 3.055951, -0.220096),
]
SMALL = replace(PLAIN, style="photographic")
MATTE = replace(SMALL, views=4, width=96, height=96, specular=0.0, baseline=(0.1, 0.3))
ASSETS = files("ilrm") / "assets" / "photos"
ROOT = Path(__file__).resolve().parents[2]


# --- plain scenes -----------------------------------------------------------------------------------------------------


def test_plain_scenes_are_what_they_were() -> None:
    """Means of images, depth and points of four seeds, as before there was another style."""
    batch = make_batch(range(4), PLAIN)
    found = [(x[k].double().mean().item()) for k in range(4) for x in (batch.images, batch.depth, batch.points)]
    assert found == pytest.approx(PINNED, rel=1e-4, abs=1e-5)
    assert sample_world(0, PLAIN).laid is None


def test_a_seed_has_the_same_cameras_in_both_styles() -> None:
    for seed in range(5):
        plain, other = sample_world(seed, PLAIN), sample_world(seed, SMALL)
        assert np.array_equal(plain.c2w, other.c2w)


def test_an_unknown_style_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"style = 'baroque' is unknown(.|\n)*photographic"):
        ProceduralConfig(style="baroque")  # type: ignore[arg-type]


def test_plain_sets_that_were_begun_before_there_were_styles_go_on(tmp_path: Path) -> None:
    tiny = replace(PLAIN, views=2, width=16, height=16)
    make_set(tmp_path / "set", [0], tiny, jobs=1)
    described = (tmp_path / "set" / "scene_000000" / "transforms.json").read_text()
    assert '"clearance"' in described
    assert '"style"' not in described
    make_set(tmp_path / "photographic", [0], replace(tiny, style="photographic"), jobs=1)
    assert '"photographic"' in (tmp_path / "photographic" / "scene_000000" / "transforms.json").read_text()


# --- photographic ones ------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_bits_in_any_batch_also_beside_plain_scenes() -> None:
    alone, among = make_batch([5], SMALL), make_batch([9, 5], SMALL)
    for name in ProceduralBatch.__dataclass_fields__:
        assert torch.equal(getattr(alone, name)[0], getattr(among, name)[1]), name
    assert not torch.equal(alone.images, make_batch([5], PLAIN).images)


def test_worlds_rendered_together_are_those_rendered_alone() -> None:
    """As on a GPU, where several worlds share their tables."""
    described, alone = [describe(seed, SMALL) for seed in (3, 4, 5)], make_batch([3, 4, 5], SMALL)
    together = _cast_group(described, SMALL, torch.device("cpu"))
    torch.testing.assert_close(together.depth, alone.depth, rtol=1e-4, atol=1e-4)
    assert ((together.images - alone.images).abs() < 1e-3).float().mean() > 0.999


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_makes_the_same_scenes() -> None:
    here, there = make_batch([0, 1, 4], SMALL), make_batch([0, 1, 4], SMALL, "cuda")
    assert (here.images - there.images.cpu()).abs().median() < 1e-3
    assert ((here.depth - there.depth.cpu()).abs() < 1e-3 * here.depth).float().mean() > 0.99


@pytest.mark.parametrize("kind", ["room", "open"])
def test_colours_and_depth_agree_between_views(kind: str) -> None:
    config = replace(MATTE, kind=kind)
    errors, still, matched = [], [], 0
    for seed in (0, 1, 2):
        batch = make_batch([seed], config)
        points = _unproject(batch.depth[0, 1], batch.c2w[0, 1], batch.K[0, 1])
        xy, ratio = _project(points, batch, 2)
        same = (ratio - 1).abs() < 0.01
        matched += int(same.sum())
        here = batch.images[0, 1].flatten(0, 1)
        errors.append((_look_up(batch.images[0, 2], xy) - here)[same].abs().mean(1))
        still.append((batch.images[0, 2].flatten(0, 1) - here)[same].abs().mean(1))
    assert matched > 0.3 * 3 * 96 * 96
    assert torch.cat(errors).median() < 0.02
    assert torch.cat(errors).mean() < 0.7 * torch.cat(still).mean()


def test_what_is_seen_through_a_window_is_far_away() -> None:
    config = replace(MATTE, kind="room", views=2, width=48, height=48)
    through = 0
    for seed in range(6):
        world = sample_world(seed, config)
        assert world.laid is not None
        if not (world.laid[:, 0] == photos.PORTAL).any():
            assert world.dome > 1e5
            continue
        batch = make_batch([seed], config)
        for view in range(2):
            points = _unproject(batch.depth[0, view], batch.c2w[0, view], batch.K[0, view])
            outside = (points - torch.from_numpy(world.room_centre).float()).abs() > torch.from_numpy(world.room) + 0.01
            far = outside.any(1)
            radius = points[far].norm(dim=1)
            torch.testing.assert_close(radius, torch.full_like(radius, world.dome), rtol=1e-3, atol=0)
            through += int(far.sum())
    assert through > 200


def test_photos_windows_and_furniture_are_common() -> None:
    worlds = [sample_world(seed, SMALL) for seed in range(40)]
    laid = [world.laid for world in worlds if world.laid is not None]
    assert len(laid) == 40
    kinds = [{int(kind) for kind in rows[:, 0]} for rows in laid]
    assert sum(photos.TILE in kind for kind in kinds) > 36
    assert 8 < sum(photos.PORTAL in kind for kind in kinds) < 32
    assert sum(photos.PANORAMA in kind for kind in kinds) > 15
    tiles = {int(row[1]) for rows in laid for row in rows if row[0] == photos.TILE}
    assert len(tiles) == len(photos.SURFACES) + len(photos.PICTURES)
    assert len({int(row[1]) for rows in laid for row in rows if row[0] == photos.PANORAMA}) == photos.PANORAMAS


def test_light_varies_more_than_in_plain_scenes() -> None:
    spread = []
    for style in ("plain", "photographic"):
        worlds = [sample_world(seed, replace(PLAIN, style=style, objects=(0, 0))) for seed in range(60)]
        exposure = [world.exposure for world in worlds]
        warmth = [np.log(world.lights[0, 3] / world.lights[0, 5]) for world in worlds]
        flatness = [np.log(world.ambient[0, 1] / world.lights[0, 4]) for world in worlds]
        spread.append(np.std([exposure, warmth, flatness], axis=1))
    assert (spread[1] > 1.2 * spread[0]).all()


def test_nothing_crowds_the_cameras_or_overflows() -> None:
    for seed in range(30):
        world = sample_world(seed, SMALL)
        centres = world.c2w[:, :3, 3]
        assert all(part.distance(centres).min() >= SMALL.clearance for part in world.primitives)
        counts = np.bincount([part.shape for part in world.primitives], minlength=3)
        assert (counts <= photographic.MOST).all()


@pytest.mark.parametrize("maker", ["shelf", "desk", "chair", "plant", "tripod", "fence", "tree"])
def test_every_piece_stands_on_the_floor_and_fits_alone(maker: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        made = getattr(furniture, maker)(rng, np.zeros(3), np.eye(3), 1.0)
        counts = np.bincount([part.primitive.shape for part in made], minlength=3)
        assert (counts <= photographic.MOST).all()
        lowest = min(
            float((part.primitive.centre - np.abs(part.primitive.axes) @ part.primitive.half)[2]) for part in made
        )
        assert -0.1 < lowest < 0.15
        for part in made:
            assert np.allclose(part.primitive.axes.T @ part.primitive.axes, np.eye(3), atol=1e-9)
            assert np.linalg.det(part.primitive.axes) == pytest.approx(1.0)


# --- photos on surfaces -----------------------------------------------------------------------------------------------


def sheet(name: str) -> np.ndarray:
    with (ASSETS / name).open("rb") as file:
        return np.array(Image.open(file).convert("RGB")) / 255.0


def picture(tile: int) -> np.ndarray:
    """(256, 256, 3) of one tile."""
    row, column = divmod(tile, 5)
    return sheet("tiles.jpg")[row * 256 : (row + 1) * 256, column * 256 : (column + 1) * 256]


def box_surface(count: int) -> Fetched:
    """A cube of half extent 1 around the origin, hit by so many rays."""
    columns = torch.zeros(WIDTH, count)
    columns[place("frame")] = torch.eye(3).flatten()[:, None]
    columns[place("shape")] = torch.tensor([0.0, 1.0, 0.0])[:, None]
    return Fetched(columns)


def laid_on(points: torch.Tensor, row: np.ndarray, footprint: float = 1e-3) -> torch.Tensor:
    """(R, 3) displayed colours of points (R, 3) of that cube under a photo."""
    rows = torch.from_numpy(row)[None].expand(len(points), -1)
    surface, pixel = box_surface(len(points)), torch.full((len(points),), footprint)
    shown = photos.load(torch.device("cpu"))
    return photos.lay_on(shown, torch.zeros(3, len(points)), rows, surface, points.T, pixel).T ** (1 / 2.2)


def once(tile: int) -> np.ndarray:
    return photos.pack(kind=photos.TILE, photo=tile, share=1.0, size=0.5, offset=0.5, density=0.5, tint=np.ones(3))


def test_a_picture_covers_a_face_once_and_upright() -> None:
    tile = photos.PICTURES[3]
    steps = (torch.arange(32) + 0.5) / 16 - 1
    z, y = torch.meshgrid(-steps, steps, indexing="ij")
    face = torch.stack([torch.full_like(y, 1.0), y, z], -1).view(-1, 3)
    seen = laid_on(face, once(tile), 1 / 16).view(32, 32, 3).numpy()
    expected = picture(tile).reshape(32, 8, 32, 8, 3).mean((1, 3))
    assert np.abs(seen - expected).mean() < 0.03
    assert np.abs(seen[::-1] - expected).mean() > 0.08
    assert np.abs(seen[:, ::-1] - expected).mean() > 0.02


def test_tiles_repeat_without_seams() -> None:
    row = photos.pack(kind=photos.TILE, photo=2, share=1.0, size=1.0, density=1.0, tint=np.ones(3))
    y = torch.linspace(-3.0, 3.0, 6001)
    line = torch.stack([torch.full_like(y, 10.0), y, torch.full_like(y, 0.3)], -1)
    seen = laid_on(line, row, 1e-4)
    assert seen.diff(dim=0).abs().max() < 0.15
    torch.testing.assert_close(seen, seen.flip(0), atol=1e-3, rtol=0)
    assert seen.std() > 0.05


def test_distant_photos_are_their_means() -> None:
    face = torch.tensor([[1.0, 0.0, 0.0]]).repeat(64, 1)
    face[:, 1:] = torch.rand(64, 2, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9
    near, far = (laid_on(face, once(photos.PICTURES[1]), size) for size in (1e-3, 1.0))
    assert far.std(0).max() < 0.6 * near.std(0).max()
    assert (far.mean(0) - near.mean(0)).abs().max() < 0.1


def test_panoramas_stand_in_their_directions() -> None:
    row = photos.pack(kind=photos.PANORAMA, photo=3, share=1.0, tint=np.ones(3), offset=(0.25, 0.0))
    rows, columns = torch.tensor([100, 250, 300]), torch.tensor([10, 500, 900])
    longitude = ((columns + 0.5) / 1024 - 0.25) * 2 * torch.pi
    latitude = (0.5 - (rows + 0.5) / 512) * torch.pi
    points = 20 * torch.stack([longitude.cos() * latitude.cos(), longitude.sin() * latitude.cos(), latitude.sin()], 1)
    expected = sheet("panoramas.jpg")[3 * 512 + rows.numpy(), columns.numpy()]
    np.testing.assert_allclose(laid_on(points, row).numpy(), expected, atol=2e-2)


def test_surfaces_without_a_photo_keep_their_paint() -> None:
    albedo = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    rows = torch.from_numpy(photos.no_photo())[None].repeat(5, 1)
    shown = photos.load(torch.device("cpu"))
    assert torch.equal(photos.lay_on(shown, albedo, rows, box_surface(5), torch.zeros(3, 5), torch.ones(5)), albedo)


def test_a_gpu_looks_up_every_photo_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ProceduralConfig(views=2, width=40, height=32, style="photographic")
    expected = make_batch([1, 4], config)
    monkeypatch.setattr(photos, "may_ask", lambda values: False)
    found = make_batch([1, 4], config)
    assert torch.equal(found.depth, expected.depth)
    torch.testing.assert_close(found.images, expected.images)


def test_columns_stand_where_they_are_looked_up() -> None:
    values = Fetched(torch.arange(WIDTH)[:, None].float())
    assert [len(values[name]) for name in COLUMNS] == list(COLUMNS.values())
    assert torch.cat([values[name] for name in COLUMNS]).flatten().tolist() == list(range(WIDTH))


# --- whose photos they are --------------------------------------------------------------------------------------------


def test_the_photos_are_small_and_each_source_is_named() -> None:
    sizes = [len((ASSETS / name).read_bytes()) for name in ("tiles.jpg", "panoramas.jpg")]
    assert sum(sizes) < 1_500_000
    assert sheet("tiles.jpg").shape[0] * sheet("tiles.jpg").shape[1] == 256**2 * 20
    assert sheet("panoramas.jpg").shape == (512 * photos.PANORAMAS, 1024, 3)
    spec = importlib.util.spec_from_file_location("photos_maker", ROOT / ".ci" / "photos.py")
    assert spec is not None
    assert spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    assert maker.PANORAMAS[3] == "rooitou_park"
    notice = (ASSETS / "NOTICE.md").read_text("utf-8")
    for name in {*(name for name, _ in maker.TILES), *maker.PANORAMAS}:
        assert name in notice, name
