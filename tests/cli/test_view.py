"""``ilrm view``: the page it writes, the server it runs, and user mistakes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import ilrm
from ilrm.cli import main
from ilrm.splats import save_ply
from tests.cli.conftest import tree
from tests.conftest import PATIENCE_S, make_gaussians


def test_a_page(result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main(["view", str(result), "--html", str(page), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bytes"] == page.stat().st_size
    assert report["num_gaussians"] > 0
    assert "<title>out</title>" in page.read_text()


def test_photos_come_from_the_scene(result: Path, scene_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(result, bare := tmp_path / "bare", ignore=shutil.ignore_patterns("inputs"))
    plain, with_photos = tmp_path / "plain.html", tmp_path / "photos.html"
    assert main(["view", str(bare), "--html", str(plain)]) == 0
    assert main(["view", str(bare), "--html", str(with_photos), "--photos", str(scene_folder)]) == 0
    assert plain.read_text().count("data:image/jpeg") == 0
    assert with_photos.read_text().count("data:image/jpeg") == 3


def test_python_writes_the_page_that_the_command_writes(result: Path, scene_folder: Path, tmp_path: Path) -> None:
    for photos in (None, scene_folder):
        flags = [] if photos is None else ["--photos", str(photos)]
        command, python = tmp_path / "command.html", tmp_path / "python.html"
        assert main(["view", str(result), "--html", str(command), "--overwrite", *flags]) == 0
        found = ilrm.load_result(result, photos=photos)
        ilrm.save_page(found.gaussians, python, found.cameras, found.photos, found.title, found.numbers)
        assert python.read_bytes() == command.read_bytes()


def test_the_server_runs_until_it_is_interrupted(result: Path) -> None:
    command = [sys.executable, "-m", "ilrm.cli", "view", str(result), "--port", "0", "--no-open", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            report = json.loads(process.stdout.readline())
            assert report["address"].startswith("http://127.0.0.1:")
            with urllib.request.urlopen(report["address"], timeout=PATIENCE_S) as answer:
                assert b"<title>Viser</title>" in answer.read()
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) == 130
        finally:
            process.kill()
        assert process.stdout.read() == ""
        said = process.stderr.read()
        assert "the viewer has ended" in said
        assert "Traceback" not in said


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], *words: str) -> None:
    assert main(["view", *arguments, "--no-open"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    for word in words:
        assert word in captured.err


def test_port_in_use(result: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refused([str(result), "--port", port], capsys, f"port {port}", "in use", "--port")


def test_hosts_that_cannot_be(result: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for host in ("a" * 300, "no.such.host.invalid"):
        refused([str(result), "--host", host, "--port", "0"], capsys, "cannot listen", "--host")


def test_letting_others_in_is_told(
    result: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ilrm.cli.view.time.sleep", stop)
    for host, told in (("0.0.0.0", True), ("127.0.0.1", False), ("localhost", False)):
        assert main(["view", str(result), "--host", host, "--port", "0", "--no-open"]) == 130
        said = capsys.readouterr().err
        assert ("There is no password" in said) == told
        assert ("other machines in" in said) == told


def test_what_is_not_there(result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused([str(tmp_path / "nothing.ply")], capsys, "nothing.ply", "no such file")
    refused([str(tmp_path)], capsys, "holds no scene.ply", "ilrm reconstruct")
    alone = tmp_path / "alone.ply"
    shutil.copy(result / "scene.ply", alone)
    refused([str(alone), "--photos", str(tmp_path)], capsys, "cameras.json", "--photos")
    refused([str(alone), "--iterations"], capsys, "photos", "--photos")


def test_files_without_gaussians(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = tmp_path / "points.ply"
    header = (
        "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
    )
    points.write_text(header.replace("ascii", "binary_little_endian"))
    points.write_bytes(points.read_bytes() + bytes(12))
    refused([str(points)], capsys, "not Gaussians")
    save_ply(make_gaussians(4), tmp_path / "cut.ply")
    content = (tmp_path / "cut.ply").read_bytes()
    (tmp_path / "cut.ply").write_bytes(content[:-10])
    refused([str(tmp_path / "cut.ply")], capsys, "cut off")
    (tmp_path / "zero.ply").write_bytes(content.replace(b"vertex 4", b"vertex 0"))
    refused([str(tmp_path / "zero.ply")], capsys, "0 vertices")


def test_pages_that_cannot_be_written(result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused([str(result), "--html", str(tmp_path / "page.txt")], capsys, ".html")
    refused([str(result), "--html", str(tmp_path / "p.html"), "--iterations"], capsys, "--iterations")
    (tmp_path / "file").write_text("kept")
    refused([str(result), "--html", str(tmp_path / "file" / "p.html")], capsys, "Cannot write")
    assert tree(tmp_path) == {"file": b"kept"}


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder := tmp_path / "closed").mkdir(mode=0o500)
    refused([str(result), "--html", str(folder / "p.html")], capsys, "Cannot write", "permission")


def test_an_earlier_page_survives_a_failure(result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.html").write_text("earlier")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert main(["view", str(result), "--html", str(tmp_path / "p.html")]) == 1
    assert tree(tmp_path) == {"p.html": b"earlier"}
