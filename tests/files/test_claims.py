"""An output is never the input, and never a file that we did not write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ilrm import files
from ilrm.core.errors import OutputError
from ilrm.files.manifest import MANIFEST, read_manifest
from tests.files.test_atomic import tree


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    folder = tmp_path / "capture"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.jpg").write_bytes(b"photo")
    return folder


@pytest.mark.parametrize(
    ("output", "refused"),
    [
        ("capture/images/a.jpg", "is"),
        ("capture/images", "contains|is"),
        ("capture", "contains"),
        (".", "contains"),
        ("capture/images/out", "lies in"),
        ("capture/images/../images/x.ply", "lies in"),
        ("link", "contains"),
        ("link/images/out", "lies in"),
        ("hard.jpg", "is"),
        ("capture/out", None),
        ("capture/images2", None),
        ("out", None),
    ],
)
def test_outputs_that_touch_what_is_read(capture: Path, output: str, refused: str | None) -> None:
    folder = capture.parent
    (folder / "link").symlink_to(capture)
    os.link(capture / "images" / "a.jpg", folder / "hard.jpg")
    reads = [capture / "images" / "a.jpg", capture / "images"]
    if refused is None:
        files.check_apart(folder / output, reads)
        return
    with pytest.raises(OutputError, match=f" ({refused}) .*which this command reads"):
        files.check_apart(folder / output, reads)


def test_a_file_that_exists_is_kept(tmp_path: Path) -> None:
    (tmp_path / "x.ply").write_text("mine")
    with pytest.raises(OutputError, match="exists already"), files.output_file(tmp_path / "x.ply"):
        pytest.fail("the body must not run")
    with files.output_file(tmp_path / "x.ply", overwrite=True) as temporary:
        temporary.write_text("new")
    assert tree(tmp_path) == {"x.ply": b"new"}
    assert not (tmp_path / MANIFEST).exists()


def test_files_in_a_result_folder_are_listed_and_replaced(tmp_path: Path) -> None:
    with files.atomic_folder(tmp_path / "out") as staging:
        (staging / "scene.ply").write_text("scene")
    for content in ("first", "second"):
        with files.output_file(tmp_path / "out" / "film.mp4") as temporary:
            temporary.write_text(content)
    assert (tmp_path / "out" / "film.mp4").read_text() == "second"
    assert set(read_manifest(tmp_path / "out")) == {"scene.ply", "film.mp4"}
    (tmp_path / "out" / "film.mp4").write_text("cut by hand")
    with pytest.raises(OutputError, match="exists already"):
        files.claim_file(tmp_path / "out" / "film.mp4")


def test_growing_files_are_known_whenever_the_process_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_owned(tmp_path, "report.json", "1")
    replace = os.replace

    def dies(source: Path, target: Path) -> None:
        if Path(target).name == "report.json":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "replace", dies)
        files.write_owned(tmp_path, "report.json", "2")
    assert (tmp_path / "report.json").read_text() == "1"
    files.write_owned(tmp_path, "report.json", "3")
    assert (tmp_path / "report.json").read_text() == "3"
    (tmp_path / "report.json").write_text("mine")
    with pytest.raises(OutputError, match="in the way"):
        files.write_owned(tmp_path, "report.json", "4")
    assert (tmp_path / "report.json").read_text() == "mine"
