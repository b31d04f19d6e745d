"""A result folder: files of others stay, and a process may die at any instant."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from ilrm import files
from ilrm.core.errors import OutputError
from ilrm.files.manifest import MANIFEST, read_manifest
from ilrm.files.temporary import PARTIAL, is_temporary, locked, temporary_path
from tests.files.test_atomic import tree

NAMES = ("scene.ply", "metrics.json", "mesh.glb", "renders/")
OLD = {"scene.ply": b"old", "mesh.glb": b"old", "renders/a.png": b"old", "renders/b.png": b"old"}
NEW = {"scene.ply": b"new", "metrics.json": b"new", "renders/a.png": b"new", "renders/deep/c.png": b"new"}
THEIRS = {"notes.txt": b"mine", "photos/x.jpg": b"mine"}


def fill(folder: Path, content: dict[str, bytes]) -> None:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def write(folder: Path, content: dict[str, bytes], **options) -> None:
    with files.atomic_folder(folder, NAMES, **options) as staging:
        fill(staging, content)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder with an earlier result, and other files of its owner."""
    out = tmp_path / "out"
    write(out, OLD)
    fill(out, THEIRS)
    return out


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob("*") if is_temporary(p.name)]


def test_earlier_result_is_replaced_and_the_rest_stays(out: Path) -> None:
    write(out, NEW)
    assert tree(out) == NEW | THEIRS
    assert set(read_manifest(out)) == set(NEW)
    assert leftovers(out) == []


def test_earlier_results_of_other_names_stay(out: Path) -> None:
    with files.atomic_folder(out, ["video.mp4"]) as staging:
        fill(staging, {"video.mp4": b"new"})
    assert tree(out) == OLD | THEIRS | {"video.mp4": b"new"}
    assert set(read_manifest(out)) == {*OLD, "video.mp4"}


def test_former_files_are_removed_if_they_are_ours(tmp_path: Path) -> None:
    with files.atomic_folder(tmp_path) as staging:
        fill(staging, {"frame_0000.png": b"old", "frame_0001.png": b"old", "frame_0002.png": b"old"})
    fill(tmp_path, {"frame_0002.png": b"painted over", "frame_00003.png": b"mine"})
    with files.atomic_folder(tmp_path, ["frame_0000.png"], former=lambda name: name.startswith("frame_")) as staging:
        fill(staging, {"frame_0000.png": b"new"})
    assert tree(tmp_path) == {"frame_0000.png": b"new", "frame_0002.png": b"painted over", "frame_00003.png": b"mine"}


@pytest.mark.parametrize(
    "mine",
    [
        {"metrics.json": b"mine"},
        {"renders/z.png": b"mine"},
        {"renders/deep/z.png": b"mine"},
        {"scene.ply": b"mine"},
        {"scene.ply": b"odl"},
    ],
    ids=["not ours", "in our sub-folder", "below it", "changed", "changed, same size"],
)
def test_files_of_somebody_else_are_refused_before_any_work(out: Path, mine: dict[str, bytes]) -> None:
    fill(out, mine)
    before = tree(out)
    with pytest.raises(OutputError, match=next(iter(mine))), files.atomic_folder(out, NAMES):
        pytest.fail("the body must not run")
    assert tree(out) == before
    write(out, NEW, overwrite=True)
    assert {name: data for name, data in tree(out).items() if name not in mine} == {
        name: data for name, data in (NEW | THEIRS).items() if name not in mine
    }


def test_overwriting_takes_only_the_same_names(out: Path) -> None:
    fill(out, {"renders/z.png": b"mine", "metrics.json": b"mine"})
    write(out, NEW, overwrite=True)
    assert tree(out) == NEW | THEIRS | {"renders/z.png": b"mine"}


def test_files_that_appear_during_the_work_are_kept(out: Path) -> None:
    with pytest.raises(OutputError, match=r"metrics\.json"), files.atomic_folder(out, NAMES) as staging:
        fill(staging, NEW)
        fill(out, {"metrics.json": b"mine"})
    assert tree(out) == OLD | THEIRS | {"metrics.json": b"mine"}


def test_a_folder_in_the_way_of_a_file_is_refused(out: Path) -> None:
    (out / "metrics.json").mkdir()
    with pytest.raises(OutputError, match=r"metrics\.json"), files.atomic_folder(out, NAMES):
        pytest.fail("the body must not run")


def test_links_are_never_ours(out: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name in ("a.png", "b.png"):
        os.rename(out / "renders" / name, tmp_path / "elsewhere" / name)
    (out / "renders").rmdir()
    (out / "renders").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="renders"), files.atomic_folder(out, NAMES):
        pytest.fail("the body must not run")
    assert tree(tmp_path / "elsewhere") == {"a.png": b"old", "b.png": b"old"}


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 1, "files": {"../x": []}}', '{"format": 9}', "[" * 99999])
def test_damaged_list_is_refused(out: Path, content: str) -> None:
    (out / MANIFEST).write_text(content)
    with pytest.raises(OutputError, match="cannot be read"), files.atomic_folder(out, NAMES):
        pytest.fail("the body must not run")
    assert tree(out) == OLD | THEIRS


@pytest.mark.parametrize("failure", [ValueError("ours"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_failure_leaves_the_earlier_result(out: Path, failure: BaseException) -> None:
    expected = OutputError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected), files.atomic_folder(out, NAMES) as staging:
        fill(staging, NEW)
        raise failure
    assert tree(out) == OLD | THEIRS
    assert leftovers(out) == []


def test_plain_write_to_a_full_disk_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="shorter name"), files.atomic_folder(tmp_path / "out") as staging:
        (staging / ("n" * 300)).write_bytes(b"x")
    assert list(tmp_path.iterdir()) == []


def dying(step: int, call: Callable[[], object]) -> bool:
    """Run a function in a process that is killed at its rename number ``step``; False if it has fewer."""
    child = os.fork()
    if child == 0:
        rename, count = os.rename, [0]

        def counted(source: Path, target: Path) -> None:
            if count[0] == step:
                os.kill(os.getpid(), signal.SIGKILL)
            count[0] += 1
            rename(source, target)

        os.rename = counted  # type: ignore[assignment]
        with suppress(BaseException):
            call()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


# Renames: the journal, four retired files and the list, four placed ones and the list.
@pytest.mark.parametrize("step", range(11))
def test_killed_at_any_rename(out: Path, step: int) -> None:
    assert dying(step, lambda: write(out, NEW))
    files.settle(out)
    assert tree(out) == {**(OLD if step == 0 else NEW), **THEIRS} | unfinished(out, step == 0)
    write(out, NEW)
    assert tree(out) == NEW | THEIRS
    assert leftovers(out) == []


def unfinished(out: Path, there: bool) -> dict[str, bytes]:
    """What an abandoned staging folder holds; the next writer removes it."""
    found = {name: data for name, data in tree(out).items() if is_temporary(name.split("/")[0])}
    assert bool(found) == there
    return found


def test_there_are_no_more_renames(out: Path) -> None:
    assert not dying(11, lambda: write(out, NEW))


@pytest.mark.parametrize("step", range(11))
def test_killed_at_any_rename_of_the_recovery(out: Path, step: int) -> None:
    assert dying(3, lambda: write(out, NEW))
    dying(step, lambda: files.settle(out))
    files.settle(out)
    assert tree(out) == NEW | THEIRS


@pytest.mark.parametrize("step", range(2))
def test_killed_while_a_new_folder_is_made(tmp_path: Path, step: int) -> None:
    assert dying(step, lambda: write(tmp_path / "out", NEW)) == (step == 0)
    files.settle(tmp_path / "out")
    assert (tmp_path / "out").exists() == (step == 1)
    write(tmp_path / "out", NEW)
    assert tree(tmp_path / "out") == NEW
    assert leftovers(tmp_path) == []


def test_failed_swap_puts_the_earlier_result_back(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def fails_on_the_last(source: Path, target: Path) -> None:
        if "/new/" in str(source) and Path(source).name == MANIFEST:
            raise OSError(errno.EACCES, "Permission denied")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails_on_the_last)
    with pytest.raises(OutputError, match="permission denied"):
        write(out, NEW)
    assert tree(out) == OLD | THEIRS
    assert leftovers(out) == []


def test_what_was_put_in_the_way_after_the_kill_is_kept(out: Path) -> None:
    assert dying(8, lambda: write(out, NEW))
    missing = next(name for name in NEW if not (out / name).exists())
    fill(out, {missing: b"mine"})
    with pytest.raises(OutputError, match="in the way"):
        files.settle(out)
    assert (out / missing).read_bytes() == b"mine"
    os.rename(out / missing, out / "mine")
    files.settle(out)
    assert tree(out) == NEW | THEIRS | {"mine": b"mine"}


def test_strangers_journal_stays_inside_the_folder(out: Path, tmp_path: Path) -> None:
    staging = temporary_path(out / "out")
    fill(staging, {"new/x": b"evil"})
    (tmp_path / "precious").write_text("precious")
    (staging / "journal.json").write_text(json.dumps({"retire": {"../precious": None}, "place": []}))
    with pytest.raises(OutputError, match="damaged"):
        files.settle(out)
    assert (tmp_path / "precious").read_text() == "precious"


def test_second_writer_is_refused(out: Path, tmp_path: Path) -> None:
    for folder in (out, tmp_path / "fresh"):
        with files.atomic_folder(folder, NAMES) as staging:
            fill(staging, NEW)
            with pytest.raises(OutputError, match="Another process"), files.atomic_folder(folder, NAMES):
                pytest.fail("the body must not run")
        assert {name: tree(folder)[name] for name in NEW} == NEW


def test_writers_that_start_at_the_same_instant_do_not_mix(tmp_path: Path) -> None:
    """Neither sees the other when it begins; each result has two files that must agree."""

    def writer(number: int) -> None:
        until = start + 0.3
        while time.time() < until:
            pass
        for turn in range(30):
            with suppress(OutputError):
                write(tmp_path / "out", {"scene.ply": b"%d %d" % (number, turn), "mesh.glb": b"%d %d" % (number, turn)})

    start = time.time()
    children = []
    for number in range(3):
        if (child := os.fork()) == 0:
            try:
                writer(number)
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    result = tree(tmp_path / "out")
    assert set(result) == {"scene.ply", "mesh.glb"}
    assert result["scene.ply"] == result["mesh.glb"]
    assert leftovers(tmp_path) == []


def test_reader_waits_for_a_swap_that_is_going_on(out: Path) -> None:
    assert dying(3, lambda: write(out, NEW))
    (staging,) = (p for p in out.iterdir() if is_temporary(p.name, kind=PARTIAL))
    receive, send = os.pipe()
    if (child := os.fork()) == 0:
        with locked(staging):
            os.write(send, b"held")
            time.sleep(0.3)
            os._exit(0 if staging.exists() else 1)
    os.read(receive, 4)
    files.settle(out)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert tree(out) == NEW | THEIRS


def test_abandoned_temporaries_are_removed_and_others_kept(out: Path) -> None:
    ours, held_one = temporary_path(out / "out"), temporary_path(out / "out")
    fill(ours, {"new/x": b"1"})
    fill(held_one, {"new/x": b"1"})
    theirs = out / ".out-0123456789abcdef.partial"
    fill(theirs, {"x": b"mine"})
    old_style = out / ".out-01234567.partial"
    fill(old_style, {"x": b"mine"})
    with locked(held_one):
        files.remove_abandoned(out, out)
    assert not ours.exists()
    assert held_one.exists()
    assert tree(theirs) == tree(old_style) == {"x": b"mine"}


def test_finished_parts_of_a_running_process_stay(tmp_path: Path) -> None:
    with files.resumable_folder(tmp_path / "film.mp4", "a" * 8) as theirs:
        fill(theirs, {"frame": b"1"})
        with files.resumable_folder(tmp_path / "film.mp4", "b" * 8) as ours:
            fill(ours, {"frame": b"1"})
        assert theirs.exists()
        assert not ours.exists()
    assert leftovers(tmp_path) == []


def test_errors_name_the_path_that_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, and not a temporary one: the folder above is part of both."""

    def closed(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", closed)
    for target in (tmp_path / "new", tmp_path / "deep" / "new", tmp_path):
        for opened in (files.resumable_folder(target, "0123456789"), files.atomic_folder(target, ("a",))):
            with pytest.raises(OutputError) as told, opened:
                pass
            assert told.value.problem == f"Cannot write {target}: permission denied."
