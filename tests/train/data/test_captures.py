"""Captures as training samples: which views, which part of them, what is known of depth, and always the same."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ilrm.core.cameras import Cameras, points_at_depth
from ilrm.core.errors import ConfigError, SceneError
from ilrm.scenes.save import save_scene
from ilrm.train.config import Captures, InputNoise, Spread, TrainConfig
from ilrm.train.data import captures as module
from ilrm.train.data.batch import Batch
from ilrm.train.data.captures import Capture, Window, cut, draw_window, load_capture, sparse_depth
from ilrm.train.data.loader import BatchMaker, batches, validation_batches
from ilrm.train.data.neighbours import choose_neighbours, shared_by_pose, shared_surface
from ilrm.train.data.samplers import TooFewFrames
from ilrm.train.data.sources import open_source
from ilrm.train.data.visibility import project
from ilrm.train.engine import train
from ilrm.train.presets import HELD_OUT
from tests.conftest import make_cameras, shared_path
from tests.scenes.files import write_scene
from tests.train.data.sets import PROCEDURAL, config, stage
from tests.train.data.test_loader import same
from tests.train.data.worlds import HEIGHT, WIDTH, world
from tests.train.runs import STAGE, rows, tiny

PLAIN = {"zoom": 1.0, "exposure": 0.0, "white_balance": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three captures with points: a room each, and one of them in a group of its own."""
    root = tmp_path_factory.mktemp("captures")
    for seed, name in enumerate(("a", "b", "group/c")):
        save_scene(replace(world(seed), depth=None), root / name)
    return root


def settings(folder: Path, *, source: dict[str, Any] | None = None, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {"size": (48, 64), "sampler": Spread(inputs=(2, 3), targets=2), **changes}
    return config(stage(Captures(folder, **(source or {})), **values))


def capture_of(folder: Path) -> Capture:
    return load_capture(folder / "a", 512)


# --- which scenes -----------------------------------------------------------------------------------------------------


def keys(folder: Path, **changes: Any) -> tuple[str, ...]:
    source = open_source(Captures(folder, **changes))
    assert isinstance(source, module.CaptureSource)
    return source.keys


def test_scenes_are_used_or_left_out_by_name(folder: Path) -> None:
    assert keys(folder) == ("a", "b", "group/c")
    assert keys(folder, leave_out=("b",)) == ("a", "group/c")
    assert keys(folder, only=("group/c", "b")) == ("b", "group/c")
    assert keys(folder / "a") == ("a",)
    assert keys(folder / "a" / "transforms.json") == ("transforms.json",)


def test_names_that_are_not_there_are_refused(folder: Path) -> None:
    with pytest.raises(SceneError, match=r"holds no d, which the config names(.|\n)*a, b, group/c"):
        open_source(Captures(folder, leave_out=("a", "d")))
    with pytest.raises(SceneError, match=r"All 3 scenes of .* are left out"):
        open_source(Captures(folder, leave_out=("a", "b", "group/c")))
    with pytest.raises(ConfigError, match="both used and left out: a"):
        Captures(folder, only=("a",), leave_out=("a",))
    with pytest.raises(SceneError, match="nowhere does not exist"):
        open_source(Captures(folder / "nowhere"))


def test_training_and_held_out_scenes_have_counters_of_their_own(folder: Path) -> None:
    both = stage(Captures(folder, leave_out=("b",)), Captures(folder, only=("b",)), sampler=Spread((2,), 1), batch=6)
    names = BatchMaker(config(both))[0].names
    assert sorted(names) == ["a", "b", "b", "b", "group/c", "group/c"] or sorted(names) == [
        "a",
        "a",
        "b",
        "b",
        "b",
        "group/c",
    ]


# --- a batch ----------------------------------------------------------------------------------------------------------


def test_batches_depend_on_step_and_place_alone(folder: Path) -> None:
    run = settings(folder, batch=4, shapes=((64, 48),), noise=InputNoise())
    whole = [BatchMaker(run)[step] for step in range(4)]
    late = BatchMaker(run)
    same(late[3], whole[3])
    assert torch.equal(late.samples(3, [2]).images[0], whole[3].images[2])
    assert len({batch.images[0].sum().item() for batch in whole}) == 4
    for workers in (0, 1):
        resumed = list(batches(replace(run, workers=workers), start_step=2, steps=2))
        for ours, expected in zip(resumed, whole[2:], strict=True):
            same(ours, expected)


def test_all_samples_of_a_step_have_its_shape(folder: Path) -> None:
    run = settings(folder, shapes=((64, 48), (32, 96)), batch=2)
    sizes = [tuple(BatchMaker(run)[step].images.shape[2:4]) for step in range(12)]
    assert set(sizes) == {(48, 64), (64, 48), (32, 96)}
    assert sizes == [run.stage_at(step).size for step in range(12)]
    assert sizes != [replace(run, seed=1).stage_at(step).size for step in range(12)]
    assert settings(folder).stage_at(5).size == (48, 64)


def test_shapes_must_fit_the_network(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"Images of 30x90 do not divide"):
        settings(folder, shapes=((64, 48), (30, 90)))
    with pytest.raises(ConfigError, match=r"size \(4, 96\)"):
        settings(folder, shapes=((4, 96),))


def test_sources_are_mixed_and_named(folder: Path) -> None:
    run = config(
        stage(replace(PROCEDURAL, weight=0.75), Captures(folder, weight=0.25), batch=4, sampler=Spread((2,), 1))
    )
    made = [BatchMaker(run)[step] for step in range(4)]
    kinds = [kind for batch in made for kind in batch.kinds]
    assert kinds.count("captures") == 4
    assert [name.startswith("procedural") for batch in made for name in batch.names] == [
        k == "procedural" for k in kinds
    ]


def look_up(image: Tensor, xy: Tensor) -> Tensor:
    """Bilinear colours (M, 3) of an image (H, W, 3) at image positions (M, 2)."""
    grid = (xy / torch.tensor([image.shape[1], image.shape[0]]) * 2 - 1)[None, None].float()
    return torch.nn.functional.grid_sample(image.permute(2, 0, 1)[None], grid, align_corners=False)[0, :, 0].T


def reprojected(batch: Batch, sample: int, view: int, other: int) -> tuple[Tensor, Tensor]:
    """Colours (M, 3) at the known depths of one view, and where another view should show the same."""
    height, width = batch.images.shape[2:4]
    assert batch.depth is not None
    row, column = batch.depth[sample, view].nonzero().unbind(1)
    pixels = torch.stack([column + 0.5, row + 0.5], 1)
    c2w, K = batch.c2w[sample], batch.K[sample]
    points = points_at_depth(batch.depth[sample, view, row, column], pixels, c2w[view], K[view])
    xy, z = project(points, Cameras(c2w[[other]], K[[other]], width, height))
    inside = (z[0] > 0) & (xy[0] > 1).all(1) & (xy[0] < torch.tensor([width, height]) - 1).all(1)
    assert inside.sum() > 20
    return look_up(batch.images[sample, view], pixels[inside]), look_up(batch.images[sample, other], xy[0, inside])


@pytest.mark.parametrize("flip", [False, True])
def test_points_show_the_same_texture_in_all_views_mirrored_or_not(folder: Path, flip: bool) -> None:
    """Photos, poses, intrinsics of the window and sparse depth tell one story."""
    run = settings(folder, flip=flip, batch=4, source={"zoom": 1.3, "span": 1.0}, sampler=Spread((3,), 1))
    right, wrong = [], []
    mirrored = 0
    for step in range(2):
        batch, straight = BatchMaker(run)[step], BatchMaker(config(replace(run.stages[0], flip=False)))[step]
        for sample in range(4):
            mirrored += not torch.equal(batch.images[sample], straight.images[sample])
            here, there = reprojected(batch, sample, 0, 1)
            right.append((here - there).abs().mean(1))
            wrong.append((here - there.flip(0)).abs().mean(1))
    assert mirrored == 0 if not flip else 0 < mirrored < 8
    assert torch.cat(right).median() < 0.03
    assert torch.cat(wrong).median() > 0.08


def test_scenes_without_points_have_no_depth(tmp_path: Path) -> None:
    write_scene(tmp_path / "bare", views=6)
    batch = BatchMaker(settings(tmp_path, size=(16, 24)))[0]
    assert batch.depth is None


def test_scenes_with_too_few_photos_are_problems_but_not_broken(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(folder / name)
    write_scene(tmp_path / "short", views=3)
    problems = [p for step in range(3) for p in BatchMaker(settings(tmp_path, size=(16, 24)))[step].problems]
    assert problems
    assert {(p.scene, p.broken) for p in problems} == {("short", False)}
    assert "3 photos is too small for" in problems[0].reason


def test_photos_are_decoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Path] = []

    def counted(path: Path, max_side: int) -> Capture:
        loaded.append(path)
        return load_capture(path, max_side)

    monkeypatch.setattr(module, "load_capture", counted)
    module._load.cache_clear()
    maker = BatchMaker(settings(folder))
    for step in range(6):
        maker[step]
    assert len(loaded) == len({*loaded}) == 3
    assert capture_of(folder).photos.dtype == torch.uint8


def test_noise_reaches_inputs_of_a_batch_and_leaves_targets(folder: Path) -> None:
    run = settings(folder, batch=4, flip=False, noise=InputNoise(share=1.0))
    noisy, clean = BatchMaker(run)[0], BatchMaker(settings(folder, batch=4, flip=False))[0]
    inputs = noisy.inputs
    assert torch.equal(noisy.target_images, clean.target_images)
    assert all(not torch.equal(n, c) for n, c in zip(noisy.images[:, :inputs], clean.images[:, :inputs], strict=True))
    assert 0 < (noisy.c2w - clean.c2w).abs().max() < 0.05
    validation = config(validation=run.stages[0], validation_scenes=2)
    assert torch.equal(
        validation_batches(validation)[0].images,
        validation_batches(config(validation=replace(run.stages[0], noise=None), validation_scenes=2))[0].images,
    )


# --- views ------------------------------------------------------------------------------------------------------------


def ring(views: int) -> Tensor:
    """What views on a ring share: the less the farther apart."""
    place = torch.arange(views)
    apart = (place[:, None] - place).abs()
    return (1 - torch.minimum(apart, views - apart) / 5).clamp_min(0)


def test_runs_are_neighbours_and_targets_are_seen() -> None:
    share, rng = ring(40), np.random.default_rng(0)
    starts = set()
    for _ in range(50):
        inputs, targets = choose_neighbours(share, rng, 4, 2, span=1.5, overlap=0.6)
        chosen = [*inputs, *targets]
        assert len({*chosen}) == 6
        assert list(inputs) == sorted(inputs)
        width = min(max((x - start) % 40 for x in chosen) for start in chosen)
        assert width < 9, "within 1.5 times as many views"
        assert share[list(targets)][:, list(inputs)].amax(1).min() >= 0.6
        among = share[list(inputs)][:, list(inputs)].fill_diagonal_(0)
        assert among.amax(1).min() >= 0.6
        starts.add(min(chosen))
    assert len(starts) > 10


def test_the_best_of_draws_is_taken_where_none_overlaps_enough() -> None:
    inputs, targets = choose_neighbours(torch.eye(5), np.random.default_rng(0), 3, 2, span=9.0, overlap=0.9)
    assert len({*inputs, *targets}) == 5
    with pytest.raises(TooFewFrames, match="5 photos is too small for 4 inputs and 2 targets"):
        choose_neighbours(torch.eye(5), np.random.default_rng(0), 4, 2, span=1.0, overlap=0.9)


def test_one_input_is_enough() -> None:
    inputs, targets = choose_neighbours(ring(9), np.random.default_rng(0), 1, 1, span=1.0, overlap=0.5)
    assert abs(inputs[0] - targets[0]) in (1, 8)


def test_shared_surface_is_counted_in_points() -> None:
    seen = torch.tensor([[1, 1, 1, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]]).bool()
    assert shared_surface(seen).tolist() == [[1.0, 0.5, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_without_points_near_cameras_that_look_alike_are_neighbours() -> None:
    cameras = make_cameras(4, 32, 24)
    c2w = torch.eye(4).repeat(4, 1, 1)
    c2w[:, 0, 3] = torch.tensor([0.0, 1.0, 3.0, 0.0])
    c2w[3, :3, :3] = torch.diag(torch.tensor([-1.0, 1.0, -1.0]))
    share = shared_by_pose(replace(cameras, c2w=c2w))
    assert share[0].argsort(descending=True).tolist() == [0, 1, 2, 3]
    assert share[0, 3] == 0
    assert share.diagonal().tolist() == [1.0] * 4


# --- windows, colours -------------------------------------------------------------------------------------------------


def test_sparse_depth_lies_around_the_points_and_the_nearest_counts() -> None:
    K = torch.tensor([[10.0, 0, 8], [0, 10, 6], [0, 0, 1]])
    cameras = Cameras(torch.eye(4)[None], K[None], 16, 12)
    points = torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 3.0], [1.02, 0.0, 4.0], [0.0, 0.0, -1.0], [9.0, 0.0, 1.0]])
    depth = sparse_depth(points, torch.ones(1, 5, dtype=torch.bool), cameras)[0]
    assert depth[5:7, 7:9].tolist() == [[2.0, 2.0], [2.0, 2.0]]
    assert depth[5:7, 10:12].tolist() == [[4.0, 4.0], [4.0, 4.0]], "around (10.55, 6)"
    assert (depth > 0).sum() == 8
    far = sparse_depth(points, torch.tensor([[False, True, False, False, False]]), cameras)[0]
    assert (far[5, 7], (far > 0).sum()) == (3.0, 4)
    assert (depth[1::2, 1::2] > 0).sum() == 2, "each point has one pixel among every other one"


def test_points_project_into_windows_where_they_should(folder: Path) -> None:
    capture = capture_of(folder)
    window = Window(left=12.5, top=7.0, width=60.0, height=45.0)
    scene = cut(capture, [3, 0], window, (30, 40), torch.ones(3))
    xy, z = project(capture.points, capture.cameras[[3, 0]])
    after, same_z = project(capture.points, scene.cameras)
    torch.testing.assert_close(after, (xy - torch.tensor([12.5, 7.0])) * (40 / 60))
    torch.testing.assert_close(z, same_z)
    pixels = torch.from_numpy(np.indices((30, 40)).transpose(1, 2, 0)[..., ::-1].copy()) + 0.5
    inner = pixels[2:-2, 2:-2].reshape(-1, 2)
    photo = look_up(capture.photos[3].float() / 255, inner * 1.5 + torch.tensor([12.5, 7.0]))
    assert (look_up(scene.images[0], inner) - photo).abs().mean() < 0.02


def test_all_of_a_photo_is_itself(folder: Path) -> None:
    capture = capture_of(folder)
    scene = cut(capture, [1], Window(0, 0, WIDTH, HEIGHT), (HEIGHT, WIDTH), torch.ones(3))
    assert torch.equal((scene.images[0] * 255).round().byte(), capture.photos[1])
    assert torch.equal(scene.cameras.K, capture.cameras.K[[1]])


@pytest.mark.parametrize("size", [(48, 48), (32, 96), (96, 32), (144, 192)])
def test_windows_lie_in_the_photo_and_have_the_shape(size: tuple[int, int]) -> None:
    cameras, rng = make_cameras(1, WIDTH, HEIGHT), np.random.default_rng(0)
    drawn = [draw_window(cameras, size, Captures(Path(), zoom=2.0), rng) for _ in range(100)]
    for window in drawn:
        assert window.left >= 0
        assert window.top >= 0
        assert window.left + window.width <= WIDTH + 1e-9
        assert window.top + window.height <= HEIGHT + 1e-9
        assert window.width / window.height == pytest.approx(size[1] / size[0])
    largest = max(window.width for window in drawn) / min(WIDTH, HEIGHT * size[1] / size[0])
    assert 0.95 < largest <= 1 + 1e-9
    # Nothing is enlarged more than asked for; a photo that is too small is shown whole.
    magnified = max(size[1] / window.width for window in drawn)
    assert magnified <= max(1.25, size[0] / HEIGHT, size[1] / WIDTH) + 1e-9
    middle = draw_window(cameras, size, Captures(Path(), **PLAIN), rng)
    assert middle.left == pytest.approx((WIDTH - middle.width) / 2)


def test_exposure_and_white_balance_are_of_the_whole_sample(folder: Path) -> None:
    plain = BatchMaker(settings(folder, flip=False, source=PLAIN))[0]
    changed = BatchMaker(settings(folder, flip=False, source={**PLAIN, "exposure": 0.5, "white_balance": 0.2}))[0]
    assert torch.equal(plain.c2w, changed.c2w)
    for before, after in zip(plain.images, changed.images, strict=True):
        usable = (before > 0.05) & (after < 0.99)
        ratios = [(after[..., c] / before[..., c])[usable[..., c]] for c in range(3)]
        assert all(ratio.std() < 1e-3 for ratio in ratios)
        assert len({round(ratio.mean().item(), 3) for ratio in ratios}) == 3


# --- in a run ---------------------------------------------------------------------------------------------------------


def held_out(folder: Path, **changes: Any) -> TrainConfig:
    """Trains on procedural scenes and captures, validates on others of both."""
    sources = (STAGE.sources[0], Captures(folder, leave_out=("b",)))
    both = (replace(STAGE.sources[0], first_seed=5), Captures(folder, only=("b",)))
    return tiny(
        stages=(replace(STAGE, sources=sources, shapes=((32, 48),), noise=InputNoise()),),
        validation=replace(STAGE, sources=both, batch=1),
        validation_scenes=2,
        **changes,
    )


def test_validation_captures_are_shown_as_they_are(folder: Path) -> None:
    run = held_out(folder)
    first, second = validation_batches(run)
    assert first.kinds + second.kinds == ("procedural", "captures")
    assert second.names == ("b",)
    assert second.images.shape[2:4] == (32, 32)
    for ours, again in zip(validation_batches(replace(run, seed=9)), (first, second), strict=True):
        same(ours, again)


def test_a_run_on_both_validates_on_both_and_resumes(folder: Path, tmp_path: Path) -> None:
    run = held_out(folder, validate_every=2)
    train(run, tmp_path / "whole")
    train(replace(run, steps=2), tmp_path / "parts")
    train(run, tmp_path / "parts")
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    assert {(row["height"], row["width"]) for row in rows(tmp_path / "whole")} <= {("32", "32"), ("32", "48")}
    for row in rows(tmp_path / "whole", "validation.csv"):
        both = [float(row[f"psnr_{kind}"]) for kind in ("procedural", "captures")]
        assert len({*both}) == 2
    described = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert described["validation"]["sources"][1]["only"] == ["b"]
    assert described["stages"][0]["sources"][1]["leave_out"] == ["b"]


# --- the real ones ----------------------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize("name", ["conch_a", "ochota_b"])
def test_real_captures_tell_one_story(name: str) -> None:
    root = shared_path("real")
    run = settings(root, source={"only": (name,), "span": 1.0, "zoom": 1.3}, size=(128, 128), sampler=Spread((4,), 2))
    right, wrong = [], []
    batch = BatchMaker(run)[0]
    for sample in range(len(batch)):
        here, there = reprojected(batch, sample, 0, 1)
        right.append((here - there).abs().mean(1))
        wrong.append((here - there.flip(0)).abs().mean(1))
    assert torch.cat(right).median() < 0.5 * torch.cat(wrong).median()


@pytest.mark.shared
def test_every_capture_is_named_in_the_notice_and_those_that_validate_are_there() -> None:
    names = sorted(folder.name for folder in shared_path("real").iterdir() if folder.is_dir())
    told = (files("ilrm") / "assets" / "NOTICE.md").read_text("utf-8")
    rows = {row.split("|")[1].strip(): row for row in told.splitlines() if row.startswith("| ")}
    listed = set()
    for first in rows:
        head, *more = first.split(", ")
        stem = head.rsplit("_", 1)[0]
        listed |= {head, *(name if len(name) > 1 else f"{stem}_{name}" for name in more)}
    assert set(names) <= listed
    assert {*HELD_OUT} <= {*names}
