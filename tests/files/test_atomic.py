"""Nothing is half-written, no earlier file is lost, and the message gives the reason."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ilrm import files
from ilrm.core.errors import OutputError


def tree(folder: Path) -> dict[str, bytes]:
    """All files except the lists of results, including hidden ones."""
    found = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".ilrm.json"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def test_file_is_written_whole(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a" / "b" / "c.json", {"x": [1, 2]})
    assert (tmp_path / "a" / "b" / "c.json").read_text() == '{\n  "x": [\n    1,\n    2\n  ]\n}\n'
    assert list(tree(tmp_path)) == ["a/b/c.json"]


@pytest.mark.parametrize("failure", [ValueError("ours"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_failed_file_leaves_the_earlier_one(tmp_path: Path, failure: BaseException) -> None:
    files.write_text(tmp_path / "x.txt", "before")
    expected = OutputError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected), files.atomic_file(tmp_path / "x.txt") as temporary:
        temporary.write_text("half of the new on")
        raise failure
    assert tree(tmp_path) == {"x.txt": b"before"}


def test_failed_file_leaves_no_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ours"), files.atomic_file(tmp_path / "a" / "b" / "x.txt"):
        raise ValueError("ours")
    assert list(tmp_path.iterdir()) == []


def test_temporary_name_keeps_the_suffix(tmp_path: Path) -> None:
    with files.atomic_file(tmp_path / "x.png") as temporary:
        assert temporary.suffix == ".png"
        assert temporary.parent == tmp_path


def test_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    files.write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "file" / "x.txt", "in this path is a file"),
        (lambda folder: folder, "that is a folder"),
        (lambda folder: folder / ("n" * 300), "shorter name"),
        (lambda folder: Path("/proc/x.txt"), "choose"),
        (lambda folder: Path("/dev/null"), "give a file name"),
    ],
    ids=["under a file", "is a folder", "long name", "not writable", "device"],
)
def test_reason_is_told(tmp_path: Path, make, words: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=words) as caught:
        files.write_text(make(tmp_path), "new")
    assert str(make(tmp_path))[:40] in str(caught.value)
    assert tree(tmp_path) == {"file": b"x"}


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"no space left on device[^\n]*\n.*free some space"):
        files.write_bytes(tmp_path / "x.bin", b"data")
    assert list(tmp_path.iterdir()) == []


def test_new_folder(tmp_path: Path) -> None:
    with files.atomic_folder(tmp_path / "deep" / "out") as staging:
        (staging / "renders").mkdir()
        (staging / "renders" / "a.png").write_text("new")
        assert not (tmp_path / "deep" / "out").exists()
    assert tree(tmp_path) == {"deep/out/renders/a.png": b"new"}


@pytest.mark.parametrize("failure", [ValueError("ours"), KeyboardInterrupt()])
def test_failed_folder_leaves_nothing(tmp_path: Path, failure: BaseException) -> None:
    with pytest.raises(type(failure)), files.atomic_folder(tmp_path / "deep" / "out") as staging:
        (staging / "a").write_text("new")
        raise failure
    assert list(tmp_path.iterdir()) == []


def test_folder_with_a_long_name(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="shorter name"), files.atomic_folder(tmp_path / ("n" * 300)):
        pytest.fail("the body must not run")


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    with pytest.raises(OutputError, match="not a folder"), files.atomic_folder(tmp_path / "out"):
        pytest.fail("the body must not run")
    assert tree(tmp_path) == {"out": b"precious"}


def test_error_inside_a_folder_names_the_final_path(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught, files.atomic_folder(tmp_path / "out") as staging:
        files.write_text(staging / ("n" * 300), "x")
    assert str(tmp_path / "out" / "nnn") in str(caught.value)
    assert "partial" not in str(caught.value)
