from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from ilrm.core.errors import OutputError, SceneError
from ilrm.core.scene import Scene
from ilrm.datasets.layouts import Form, Item
from ilrm.datasets.make_set import make_set
from ilrm.datasets.parallel import LostWorker, choose_jobs, run_each
from ilrm.datasets.procedural import ProceduralConfig, make_scene
from ilrm.datasets.save_set import Outcome, save_set
from ilrm.files import only_writer
from ilrm.files.temporary import temporary_path
from ilrm.scenes import list_keys, load_scene
from tests.cli.conftest import tree
from tests.conftest import make_cameras, wait_until
from tests.scenes.files import assert_close

CONFIG = ProceduralConfig(views=2, width=16, height=16, points=4, objects=(0, 1), shadows=False)
CHUNK_BYTES = 3000  # two or three scenes
FORMS: tuple[Form, ...] = ("folders", "json", "chunks")
make = partial(make_set, config=CONFIG, chunk_bytes=CHUNK_BYTES, jobs=1)


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Form], Path]:
    """Eight scenes in one go and one process, for each form."""
    made: dict[Form, Path] = {}

    def get(form: Form) -> Path:
        if form not in made:
            made[form] = tmp_path_factory.mktemp(form)
            make(made[form], range(8), form=form)
        return made[form]

    return get


def stop_after(scenes: int) -> Callable[[Outcome], None]:
    seen: list[str] = []

    def on_done(outcome: Outcome) -> None:
        seen.append(outcome.name)
        if len(seen) == scenes:
            raise KeyboardInterrupt

    return on_done


@pytest.mark.parametrize("form", FORMS)
def test_scenes_read_back(form: Form, complete: Callable[[Form], Path]) -> None:
    root = complete(form)
    place = {"path": root / "train", "key": "scene_000006"} if form == "chunks" else {"path": root / "scene_000006"}
    back = load_scene(**place)
    scene = make_scene(6, CONFIG)
    assert torch.equal((back.images[:] * 255).round(), (scene.images[:] * 255).round())
    assert_close(back.cameras.c2w, scene.cameras.c2w, atol=1e-5, rtol=1e-6)
    assert (back.depth is not None) == (form == "folders")


def test_what_lists_the_scenes(complete: Callable[[Form], Path]) -> None:
    names = tuple(f"scene_{seed:06d}" for seed in range(8))
    assert list_keys(complete("chunks") / "train") == names
    chunks = sorted((complete("chunks") / "train").glob("*.torch"))
    assert len(chunks) > 2
    assert [chunk.name for chunk in chunks] == [f"{number:06d}.torch" for number in range(len(chunks))]
    assert tuple(key for chunk in chunks for key in list_keys(chunk)) == names
    lines = (complete("json") / "scenes.txt").read_text().splitlines()
    assert lines == [f"{name}/opencv_cameras.json" for name in names]
    assert sorted(entry.name for entry in complete("folders").iterdir()) == list(names)


def test_chunks_are_filled_but_not_overfilled(complete: Callable[[Form], Path]) -> None:
    chunks = sorted((complete("chunks") / "train").glob("*.torch"))
    held = [torch.load(chunk, weights_only=True) for chunk in chunks]
    sizes = [
        [sum(t.nbytes for t in (e["timestamps"], e["cameras"], *e["images"])) for e in examples] for examples in held
    ]
    assert all(sum(of) <= CHUNK_BYTES for of in sizes)
    assert all(sum(of) + after[0] > CHUNK_BYTES for of, after in pairwise(sizes))


@pytest.mark.parametrize("form", FORMS)
def test_an_interrupted_run_continues_to_the_same_files(
    form: Form, complete: Callable[[Form], Path], tmp_path: Path
) -> None:
    for scenes in (5, 7):
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, range(8), form=form, on_done=stop_after(scenes))
    temporary_path(tmp_path / "scene_000007").mkdir()  # as a killed process leaves it
    outcomes = make(tmp_path, range(8), form=form)
    assert [outcome.kept for outcome in outcomes] == [True] * 7 + [False]
    assert tree(tmp_path) == tree(complete(form))
    assert not list(tmp_path.glob(".*.partial"))


@pytest.mark.slow
def test_jobs_do_not_matter(complete: Callable[[Form], Path], tmp_path: Path) -> None:
    make(tmp_path, range(8), form="chunks", jobs=2)
    assert tree(tmp_path) == tree(complete("chunks"))


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_files(complete: Callable[[Form], Path], tmp_path: Path) -> None:
    """SIGKILL during the work: its processes end with it, and half-written scenes do not count."""
    script = (
        "import sys, multiprocessing\nfrom tests.datasets.test_save_set import make\n"
        "def say(outcome):\n"
        "    print(outcome.name, *(child.pid for child in multiprocessing.active_children()), flush=True)\n"
        "if __name__ == '__main__':\n    make(sys.argv[1], range(8), form='chunks', jobs=2, on_done=say)\n"
    )
    program = tmp_path / "program.py"
    program.write_text(script)
    out = tmp_path / "out"
    root = str(Path(__file__).parents[2])
    command = [sys.executable, str(program), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": root}) as run:
        assert run.stdout is not None
        lines = [run.stdout.readline().split() for _ in range(4)]
        run.send_signal(signal.SIGKILL)
    children = [int(pid) for pid in lines[-1][1:]]
    assert len(children) == 2
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
    assert not (out / "train" / "index.json").exists() or len(list_keys(out / "train")) < 8
    outcomes = make(out, range(8), form="chunks")
    assert 4 <= sum(outcome.kept for outcome in outcomes) < 8
    assert tree(out) == tree(complete("chunks"))


@pytest.mark.parametrize("form", FORMS)
def test_another_config_is_refused(form: Form, complete: Callable[[Form], Path]) -> None:
    before = tree(complete(form))
    other = ProceduralConfig(views=3, width=16, height=16)
    with pytest.raises(OutputError, match=r"in another way: procedural is .*'views': 2.* there"):
        make_set(complete(form), range(9), other, form, jobs=1, chunk_bytes=CHUNK_BYTES)
    assert tree(complete(form)) == before


def test_another_form_beside_and_a_foreign_scene_are_refused(complete: Callable[[Form], Path], tmp_path: Path) -> None:
    (tmp_path / "scene_000000").mkdir()
    (tmp_path / "scene_000000" / "transforms.json").write_text('{"frames": []}')
    with pytest.raises(OutputError, match="not made by this command"):
        make(tmp_path, range(2))
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "000000.torch").write_text("")
    with pytest.raises(OutputError, match="chunks that this command did not make"):
        make(tmp_path, range(2), form="chunks")


def test_a_set_grows(complete: Callable[[Form], Path], tmp_path: Path) -> None:
    make(tmp_path, range(3), form="json")
    outcomes = make(tmp_path, range(8), form="json")
    assert sum(outcome.kept for outcome in outcomes) == 3
    assert tree(tmp_path) == tree(complete("json"))


def test_a_lost_chunk_is_made_again(complete: Callable[[Form], Path], tmp_path: Path) -> None:
    make(tmp_path, range(8), form="chunks")
    first = list_keys(tmp_path / "train" / "000000.torch")
    (tmp_path / "train" / "000000.torch").unlink()
    outcomes = make(tmp_path, range(8), form="chunks")
    assert [outcome.name for outcome in outcomes if not outcome.kept] == list(first)
    assert sorted(list_keys(tmp_path / "train")) == sorted(list_keys(complete("chunks") / "train"))
    assert len(load_scene(tmp_path / "train", key=first[0])) == 2


def test_a_part_that_never_reached_the_disk_is_made_again(complete: Callable[[Form], Path], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, range(8), form="chunks", on_done=stop_after(1))
    part = tmp_path / "train" / ".parts" / "scene_000000.torch"
    part.write_bytes(part.read_bytes()[:500])
    assert not make(tmp_path, range(8), form="chunks")[0].kept
    assert tree(tmp_path) == tree(complete("chunks"))


def fails(seed: int) -> tuple[Scene, tuple[str, ...]]:
    if seed == 1:
        raise SceneError("no such scene")
    return Scene(torch.full((1, 8, 8, 3), seed / 10), make_cameras(1, 8, 8), ("a",)), ("odd",)


def some(seeds: Sequence[int]) -> list[Item]:
    return [Item(str(seed), f"number {seed}", partial(fails, seed)) for seed in seeds]


def test_a_scene_that_fails_is_tried_again_and_added_at_the_end(tmp_path: Path) -> None:
    save = partial(save_set, output=tmp_path, form="chunks", image_format="png", settings={}, jobs=1)
    outcomes = save(some(range(3)))
    assert [bool(outcome.written) for outcome in outcomes] == [True, False, True]
    assert "no such scene" in outcomes[1].reason
    assert outcomes[2].written is not None
    assert outcomes[2].written.warnings == ("odd",)
    mended = [some([0])[0], Item("1", "number 1", partial(fails, 3)), some([2])[0]]
    outcomes = save(mended)
    assert [outcome.kept for outcome in outcomes] == [True, False, True]
    assert outcomes[2].written is not None
    assert outcomes[2].written.warnings == ("odd",), "warnings about kept scenes are repeated"
    index = json.loads((tmp_path / "train" / "index.json").read_text())
    assert index == {"0": "000000.torch", "2": "000000.torch", "1": "000001.torch"}
    with pytest.raises(OutputError, match="origin is number 2 there, elsewhere here"):
        save([Item("2", "elsewhere", partial(fails, 2))])


@pytest.mark.parametrize("name", ["", "a/b", "..", "x" * 121])
def test_names_that_no_file_can_have(name: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written under the name"):
        save_set([Item(name, "", partial(fails, 0))], tmp_path, "json", image_format="png", settings={}, jobs=1)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with only_writer(tmp_path), pytest.raises(OutputError, match="Another process is writing"):
        make(tmp_path, range(1))
    make(tmp_path, range(1))


def test_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    for form in FORMS:
        with pytest.raises(OutputError, match="Cannot write"):
            make(tmp_path / "out", range(1), form=form)
    assert (tmp_path / "out").read_text() == "mine"


def dies(item: int) -> int:
    if item == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if item == 9:
        raise ValueError("our own mistake")
    return torch.get_num_threads() * item


@pytest.mark.slow
def test_a_killed_process_loses_one_item_and_errors_come_back() -> None:
    answers = dict(run_each(dies, range(5), jobs=2))
    assert answers == {0: 0, 1: LostWorker(-9), 2: 2, 3: 3, 4: 4}, "one thread each"
    with pytest.raises(ValueError, match="our own mistake") as caught:
        list(run_each(dies, [9, 9], jobs=2))
    assert "in dies" in str(caught.value.__cause__), "the worker's traceback"


def test_as_many_jobs_as_are_worth_it() -> None:
    assert choose_jobs(None, 1) == 1
    assert choose_jobs(3, 2) == 2
    assert choose_jobs(None, 10**6) == len(os.sched_getaffinity(0))


@pytest.mark.slow
def test_sigterm_still_unwinds_after_pycolmap_is_loaded() -> None:
    """So that temporary files are removed; pycolmap would end the process with a stack trace."""
    code = (
        "import os, signal, sys, time\nfrom ilrm.scenes.lenses.models import Lens\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "Lens('OPENCV', (20, 20, 16, 12, .1, 0, 0, 0), 32, 24).undistorted('')\n"
        "assert 'pycolmap' in sys.modules\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(60)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (7, "")


@pytest.mark.parametrize(
    "record",
    [
        b"\xff\xfe",
        b"[" * 100_000,
        b"null",
        b'{"settings": 3, "scenes": {}}',
        b'{"settings": {}, "scenes": []}',
        b'{"settings": {}, "scenes": {"a": 3}}',
        b'{"settings": {}, "scenes": {"a": {"chunk": 3, "scene": {}}}}',
        b'{"settings": {}, "scenes": {"a": {"chunk": "000000.torch", "scene": {"origin": "x", "views": "2"}}}}',
        b'{"settings": {}, "scenes": {"a": {"chunk": "x.torch", "scene": {}}}}',
    ],
    ids=lambda x: x.decode("latin-1")[:70],
)
def test_records_that_are_none_are_told(tmp_path: Path, record: bytes) -> None:
    (tmp_path / "record.json").write_bytes(record)
    with pytest.raises(OutputError, match=r"record\.json is damaged"):
        make(tmp_path, range(1), form="chunks")
    assert (tmp_path / "record.json").read_bytes() == record


@pytest.mark.parametrize("scene", [3, [], {"origin": "x"}, {"origin": 1, "views": 2, "width": 3, "height": 4}])
@pytest.mark.parametrize("settings", [{}, 3])
def test_notes_that_are_none_are_told(tmp_path: Path, scene: object, settings: object) -> None:
    file = tmp_path / "scene_000000" / "transforms.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"frames": [], "made": {"settings": settings, "scene": scene}}))
    before = file.read_bytes()
    with pytest.raises(OutputError, match="not made by this command"):
        make(tmp_path, range(1), form="folders")
    assert file.read_bytes() == before
