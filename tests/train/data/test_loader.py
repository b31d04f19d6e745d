from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from ilrm.core.errors import ConfigError, SceneError, WorkerError
from ilrm.datasets.procedural import ProceduralConfig
from ilrm.train.config import Bounded, Chunks, Folders, Procedural, Spread, TrainConfig
from ilrm.train.data.batch import Batch
from ilrm.train.data.loader import BatchMaker, batches, validation_batches, worker_deaths_explained
from tests.conftest import PATIENCE_S
from tests.scenes.files import write_scene
from tests.scenes.test_chunks import example
from tests.train.data.sets import PROCEDURAL, config, stage, write_chunk_set

FIELDS = ("images", "c2w", "K", "depth")


@pytest.fixture(scope="module")
def chunks(tmp_path_factory) -> Chunks:
    return Chunks(write_chunk_set(tmp_path_factory.mktemp("chunks")))


def mixed(chunks: Chunks, **changes) -> TrainConfig:
    return config(stage(chunks, replace(PROCEDURAL, weight=3.0)), **changes)


def same(a: Batch, b: Batch) -> None:
    assert (a.names, a.inputs, a.problems) == (b.names, b.inputs, b.problems)
    for field in FIELDS:
        mine, other = getattr(a, field), getattr(b, field)
        assert mine is other is None or torch.equal(mine, other), field


def joined(parts: list[Batch]) -> Batch:
    """Batches one after the other; where only some know depth, it is 0 in the others."""
    parts = [
        replace(part, depth=torch.zeros_like(part.images[..., 0])) if part.depth is None else part for part in parts
    ]
    tensors = {field: torch.cat([getattr(part, field) for part in parts]) for field in FIELDS}
    names = tuple(name for part in parts for name in part.names)
    return replace(parts[0], **tensors, names=names, problems=tuple(p for part in parts for p in part.problems))


def drawn(settings: TrainConfig, steps: int) -> list[str]:
    maker = BatchMaker(settings)
    return [name for step in range(steps) for name in maker[step].names]


def test_a_batch_is_what_it_says(chunks):
    batch = BatchMaker(mixed(chunks))[0]
    views = batch.inputs + 1
    assert batch.images.shape == (4, views, 16, 24, 3)
    assert batch.c2w.shape == (4, views, 4, 4)
    assert batch.K.shape == (4, views, 3, 3)
    assert batch.depth is not None
    assert {x.dtype for x in (batch.images, batch.c2w, batch.K, batch.depth)} == {torch.float32}
    assert 0 <= batch.images.min() <= batch.images.max() <= 1
    known = [name.startswith("procedural") for name in batch.names]
    assert sorted(known) == [False, True, True, True]
    assert [(depth > 0).all().item() for depth in batch.depth] == known
    assert batch.c2w[:, : batch.inputs, :3, 3].abs().amax((1, 2)) == pytest.approx(torch.ones(4), abs=1e-5)


def test_depth_is_true_in_the_normalised_frame():
    """Each view's depth, lifted to the world and projected into the others, agrees with their depth."""
    batch = BatchMaker(config(stage(sampler=Spread(inputs=(2,), targets=1), size=(64, 64), batch=2)))[0]
    assert batch.depth is not None
    y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    rays = torch.linalg.inv(batch.K) @ torch.stack([x, y, torch.ones_like(x)]).flatten(1)
    local = rays * batch.depth.flatten(2)[:, :, None]
    world = batch.c2w[..., :3, :3] @ local + batch.c2w[..., :3, 3:]
    for sample in range(2):
        pose = batch.c2w[sample, 2]
        seen = pose[:3, :3].T @ (world[sample, 0] - pose[:3, 3:])
        place = (batch.K[sample, 2] @ seen / seen[2]).round().long()[:2]
        inside = ((place >= 0) & (place < 64)).all(0) & (seen[2] > 0)
        error = (batch.depth[sample, 2][place[1, inside], place[0, inside]] / seen[2, inside] - 1).abs()
        assert inside.sum() > 500
        assert error.median() < 0.02


@pytest.mark.parametrize("accumulate", [1, 2])
def test_ranks_and_parts_join_to_the_whole(chunks, accumulate):
    whole = BatchMaker(mixed(chunks))
    parts = [
        BatchMaker(mixed(chunks, accumulate=accumulate), rank=rank, world_size=2)[step * accumulate + part]
        for step in (0, 3)
        for rank in range(2)
        for part in range(accumulate)
    ]
    per_step = 2 * accumulate
    assert all(len(part) == 4 // per_step for part in parts)
    same(joined(parts[:per_step]), whole[0])
    same(joined(parts[per_step:]), whole[3])


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_is_going_on(chunks, workers):
    settings = mixed(chunks, accumulate=2)
    straight = [BatchMaker(settings)[index] for index in range(8)]
    for start in (0, 3):
        resumed = list(batches(replace(settings, workers=workers), start_step=start, steps=4 - start))
        assert len(resumed) == 2 * (4 - start)
        for ours, expected in zip(resumed, straight[2 * start :], strict=True):
            same(ours, expected)


def test_workers_leave_the_training_random_numbers_alone():
    settings = config(stage(batch=1))
    states = []
    for workers in (0, 1):
        torch.manual_seed(0)
        list(batches(replace(settings, workers=workers), steps=1))
        states.append(torch.rand(3))
    assert torch.equal(*states)


def test_steps_draw_their_number_of_inputs_and_seeds_differ(chunks):
    maker = BatchMaker(mixed(chunks))
    assert {maker[step].inputs for step in range(8)} == {2, 3}
    assert drawn(config(stage(chunks)), 3) != drawn(config(stage(chunks), seed=1), 3)


def test_every_scene_once_an_epoch(chunks):
    settings = config(stage(chunks, batch=4))
    names = drawn(settings, 6)  # 24 samples: 4 epochs of 6 scenes
    epochs = [names[first : first + 6] for first in range(0, 24, 6)]
    assert all(sorted(epoch) == ["s0", "s1", "s2", "s3", "s4", "s5"] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1, "in another order each time"


def test_mixtures_hit_their_weights_evenly(chunks):
    light = [replace(PROCEDURAL, first_seed=seed, weight=weight) for seed, weight in ((100, 5.0), (900, 2.0))]
    settings = config(stage(replace(chunks, weight=1.0), *light, batch=16))
    names = drawn(settings, 4)
    kinds = ["files" if name.startswith("s") else name[: len("procedural-9")] for name in names]
    assert Counter(kinds) == {"files": 8, "procedural-1": 40, "procedural-9": 16}
    for first in range(0, 64, 8):
        assert kinds[first : first + 8].count("files") == 1


def test_no_procedural_seed_twice_and_counters_go_on_across_stages(chunks):
    near = replace(PROCEDURAL, scenes=replace(PROCEDURAL.scenes, baseline=(0.1, 0.2)), weight=2.0)
    settings = config(
        stage(chunks, PROCEDURAL),
        stage(near, PROCEDURAL, chunks, start=3, batch=2),
        stage(PROCEDURAL, start=5, batch=2),
    )
    names = drawn(settings, 7)
    seeds = [int(name.split("-")[1]) - PROCEDURAL.first_seed for name in names if "-" in name]
    assert seeds == list(range(len(seeds)))
    files = [name for name in names if "-" not in name]
    assert sorted(files[:6]) == ["s0", "s1", "s2", "s3", "s4", "s5"]
    assert len(names) == 3 * 4 + 2 * 2 + 2 * 2


def test_the_schedule_follows_the_step(tmp_path):
    scene = example("s", views=40)
    scene["cameras"][:, 0] = 0.8 + 0.01 * torch.arange(40)  # the focal length identifies the frame
    torch.save([scene], tmp_path / "0.torch")
    sampler = Bounded(targets=1, min_gap=(3, 30), max_gap=(3, 30), warm_up=100)
    maker = BatchMaker(config(stage(Chunks(tmp_path), sampler=sampler, batch=2, size=(24, 32))))
    for step, gap in ((0, 3), (50, 16), (100, 30), (1000, 30)):
        frames = ((maker[step].K[:, :, 0, 0] / 32 - 0.8) / 0.01).round()
        assert (frames[:, 1] - frames[:, 0] == gap).all()
        assert ((frames[:, 2] >= frames[:, 0]) & (frames[:, 2] <= frames[:, 1])).all()


def test_a_broken_chunk_is_counted_and_named(tmp_path):
    folder = write_chunk_set(tmp_path)
    (folder / "000001.torch").write_bytes(b"broken")
    made = [BatchMaker(config(stage(Chunks(folder))))[step] for step in range(6)]
    problems = [problem for batch in made for problem in batch.problems]
    assert {problem.scene for problem in problems} == {"s2", "s3"}
    assert all(problem.broken and problem.source == str(folder) for problem in problems)
    assert all("000001.torch cannot be read as a chunk" in problem.reason for problem in problems)
    assert all("\n" not in problem.reason for problem in problems)
    assert not {name for batch in made for name in batch.names} & {"s2", "s3"}
    assert all(len(batch) == 4 for batch in made)


def test_short_sequences_are_problems_but_not_broken(tmp_path):
    write_chunk_set(tmp_path, scenes=4)
    torch.save([example("s2", views=3), example("s3", views=8)], tmp_path / "000001.torch")
    settings = config(stage(Chunks(tmp_path), sampler=Spread(inputs=(3,), targets=1)))
    problems = [problem for step in range(4) for problem in BatchMaker(settings)[step].problems]
    assert problems
    assert all(problem.scene == "s2" and not problem.broken for problem in problems)
    assert "3 frames is too short for 3 inputs and 1 targets" in problems[0].reason


def test_a_photo_that_cannot_be_decoded_is_a_problem(tmp_path):
    write_scene(tmp_path / "whole", views=4)
    write_scene(tmp_path / "cut", views=4)
    for file in (tmp_path / "cut" / "images").iterdir():
        file.write_bytes(file.read_bytes()[:-300])
    made = [BatchMaker(config(stage(Folders(tmp_path))))[step] for step in range(3)]
    problems = [problem for batch in made for problem in batch.problems]
    assert {problem.scene for problem in problems} == {"cut"}
    assert all(problem.broken and "cannot be decoded" in problem.reason for problem in problems)


@pytest.mark.parametrize("workers", [0, 1])
def test_sources_without_usable_scenes_give_up_with_reasons(tmp_path, workers):
    write_chunk_set(tmp_path, views=3)
    settings = config(stage(Chunks(tmp_path), sampler=Spread(inputs=(3,), targets=1)), workers=workers)
    with pytest.raises(SceneError, match=r"21 scenes of .* in a row could not be used; the last ones: s") as refusal:
        next(batches(settings))
    assert "too short" in refusal.value.problem
    assert refusal.value.fix


def test_substitutes_do_not_depend_on_ranks(tmp_path):
    folder = write_chunk_set(tmp_path)
    (folder / "000001.torch").write_bytes(b"broken")
    settings = config(stage(Chunks(folder), replace(PROCEDURAL, weight=1.0)))
    parts = [BatchMaker(settings, rank=rank, world_size=4)[1] for rank in range(4)]
    same(joined(parts), BatchMaker(settings)[1])


def test_wrong_paths_fail_before_the_first_batch(tmp_path):
    late = stage(Chunks(tmp_path / "nowhere"), start=50)
    with pytest.raises(SceneError, match="nowhere does not exist"):
        batches(config(stage(), late))


def test_world_sizes_that_do_not_divide_are_refused():
    settings = config(stage(batch=4), stage(batch=6, start=10), accumulate=2)
    with pytest.raises(
        ConfigError, match=r"batch of 6 \(stage from step 10\) does not divide into 2 ranks times 2"
    ) as e:
        batches(settings, world_size=2)
    assert "multiple of 4" in e.value.expected
    assert "devices" in e.value.fix


# --- batches for a GPU, on the CPU ------------------------------------------------------------------------------------


def test_begun_batches_travel_and_are_finished_to_the_bit(chunks):
    maker = BatchMaker(mixed(chunks))
    for index in range(3):
        sent = pickle.dumps(maker.begin(index))
        same(BatchMaker(mixed(chunks)).finish(pickle.loads(sent)), maker[index])


def test_described_worlds_are_small_and_nothing_is_cast(monkeypatch):
    """What a worker does for procedural scenes of a GPU."""
    monkeypatch.setattr("ilrm.datasets.procedural.views.cast_rays", None)
    begun = BatchMaker(config(stage(Procedural(ProceduralConfig(objects=(24, 24)))))).begin(0)
    assert not begun.made
    assert len(begun.described) == 4
    assert len(pickle.dumps(begun)) < 4 * 30_000


@pytest.mark.parametrize("workers", [0, 1])
def test_rays_are_cast_here_with_the_same_result(chunks, workers):
    settings = mixed(chunks, workers=workers)
    iterator = batches(settings, steps=3, cast_here=True)
    for index, batch in enumerate(iterator):
        same(batch, BatchMaker(settings)[index])
    assert index == 2
    assert not torch.multiprocessing.active_children()


def test_closing_stops_what_casts_here():
    iterator = batches(config(stage(batch=1), workers=1), cast_here=True)
    next(iterator)
    assert any(thread.name == "batches" for thread in threading.enumerate())
    iterator.close()  # type: ignore[attr-defined]
    assert not any(thread.name == "batches" for thread in threading.enumerate())
    assert not torch.multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1])
def test_refusals_arrive_where_rays_are_cast(tmp_path, workers):
    write_chunk_set(tmp_path, views=3)
    settings = config(stage(Chunks(tmp_path), sampler=Spread(inputs=(3,), targets=1)), workers=workers)
    with pytest.raises(SceneError, match=r"21 scenes of .* in a row could not be used"):
        next(batches(settings, cast_here=True))


def test_photos_travel_in_bytes(chunks):
    """Photos are rounded to 8 bits, the images of procedural scenes are not."""
    exact, rounded = BatchMaker(mixed(chunks)), BatchMaker(mixed(chunks), in_bytes=True)
    assert {made.sample.images.dtype for made in rounded.begin(0).made.values()} == {torch.uint8}
    ours, theirs = rounded[0], exact[0]
    assert ours.images.dtype == torch.float32
    for name, mine, other in zip(ours.names, ours.images, theirs.images, strict=True):
        if name.startswith("procedural"):
            assert torch.equal(mine, other)
        else:
            assert (mine - other).abs().max() <= 0.501 / 255
            torch.testing.assert_close(mine * 255, (mine * 255).round(), atol=1e-4, rtol=0)
    assert BatchMaker(mixed(chunks), device="meta")._in_bytes


def test_validation_samples_are_fixed(chunks):
    held_out = stage(chunks, replace(PROCEDURAL, first_seed=10), sampler=Spread(inputs=(2,), targets=1), batch=4)
    settings = config(validation=held_out, validation_scenes=6)
    first = validation_batches(settings)
    assert [len(batch) for batch in first] == [4, 2]
    assert len({name for batch in first for name in batch.names}) == 6
    for ours, again in zip(first, validation_batches(replace(settings, seed=7, accumulate=2, steps=3)), strict=True):
        same(ours, again)
    for ours, flipped in zip(
        first, validation_batches(replace(settings, validation=replace(held_out, flip=False))), strict=True
    ):
        same(ours, flipped)
    assert validation_batches(config()) == []


def test_validation_windows_are_those_of_the_end(tmp_path):
    folder = write_chunk_set(tmp_path, scenes=2, views=12)
    sampler = Bounded(targets=1, min_gap=(3, 11), max_gap=(3, 11), warm_up=10**6)
    batch = validation_batches(config(validation=stage(Chunks(folder), sampler=sampler, batch=2), validation_scenes=2))
    short = validation_batches(
        config(validation=stage(Chunks(folder), sampler=replace(sampler, warm_up=0), batch=2), validation_scenes=2)
    )
    same(batch[0], short[0])


# --- running ahead --------------------------------------------------------------------------------------------------


def test_closing_stops_the_thread():
    iterator = batches(config(stage(batch=1)))
    next(iterator)
    assert any(thread.name == "batches" for thread in threading.enumerate())
    iterator.close()  # type: ignore[attr-defined]
    assert not any(thread.name == "batches" for thread in threading.enumerate())


@pytest.mark.parametrize("cast_here", [False, True])
def test_a_worker_that_dies_is_a_clear_error(cast_here):
    iterator = batches(config(stage(batch=1), workers=1), cast_here=cast_here)
    next(iterator)
    for worker in torch.multiprocessing.active_children():
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match="process that prepares batches died"):
        for _ in range(10):
            next(iterator)


def test_a_worker_that_dies_during_the_step_is_the_same_error():
    """torch reports it from a signal handler, which interrupts the training process anywhere."""
    iterator = batches(config(stage(batch=1), workers=1))
    next(iterator)
    worker = torch.multiprocessing.active_children()[0]
    assert worker.pid is not None
    with pytest.raises(WorkerError, match="process that prepares batches died"), worker_deaths_explained():
        os.kill(worker.pid, signal.SIGKILL)
        time.sleep(PATIENCE_S)  # interrupted


@pytest.mark.parametrize("workers", [0, 1])
def test_our_own_mistakes_keep_their_words(monkeypatch, workers):
    def fail(*_: object) -> Batch:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(BatchMaker, "__getitem__", fail)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        next(batches(config(workers=workers)))


def test_makers_travel_to_other_processes(chunks):
    maker = BatchMaker(mixed(chunks), rank=1, world_size=2)
    same(pickle.loads(pickle.dumps(maker))[2], maker[2])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupt_ends_everything(workers):
    program = """if True:
        from dataclasses import replace
        from ilrm.train.data.loader import batches
        from tests.train.data.sets import config, stage
        for number, _ in enumerate(batches(config(stage(batch=1), workers=%d))):
            if number == 1:
                print("ready", flush=True)
        """
    process = subprocess.Popen(
        [sys.executable, "-c", program % workers],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of its own, which gets the interrupt as from a terminal
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode in (-signal.SIGINT, 1)
    # An interrupt while another error is handled is printed with that error, as one report.
    reports = errors.count("Traceback") - errors.count("another exception occurred") - errors.count("direct cause")
    assert reports == 1, "the workers keep silent"


def test_workers_end_with_the_iterator():
    iterator = batches(config(stage(batch=1), workers=1))
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    assert not torch.multiprocessing.active_children()


@pytest.mark.slow
def test_a_worker_that_does_not_end_is_killed(monkeypatch):
    make = BatchMaker.__getitem__
    monkeypatch.setattr(
        BatchMaker, "__getitem__", lambda maker, index: (index and time.sleep(10 * PATIENCE_S)) or make(maker, index)
    )
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.5)  # how long torch waits for them
    iterator = batches(config(stage(batch=1), workers=1))
    next(iterator)
    (worker,) = torch.multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGTERM)  # as a scheduler sends it to all processes: workers ignore it
    time.sleep(0.5)
    assert worker.is_alive()
    iterator.close()  # type: ignore[attr-defined]
    assert worker.exitcode == -signal.SIGKILL


def test_endless_by_default():
    assert len(list(islice(batches(config(stage(batch=1)), start_step=10**6), 3))) == 3
