from __future__ import annotations

import ast
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ilrm.core.errors import AccessError
from ilrm.files import paths

SOURCE = Path(__file__).resolve().parents[2] / "src" / "ilrm"
# ``paths`` asks the system itself; ``files`` is about what may be written, and explains every OSError.
ALLOWED = {"paths.py", "files"}
METHODS = {"exists", "is_file", "is_dir", "is_symlink", "iterdir", "glob", "rglob", "samefile", "resolve", "expanduser"}
FUNCTIONS = {"exists", "isfile", "isdir", "islink", "samefile", "listdir", "scandir", "walk", "expanduser", "realpath"}


def raw_questions(source: str) -> list[str]:
    """Calls that access the disk and may raise any error of the system."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner, name = ast.unparse(node.func.value), node.func.attr
        of_os = owner in ("os", "os.path", "glob") and name in FUNCTIONS | {"glob", "iglob"}
        if of_os or (owner != "paths" and name in METHODS):
            found.append(f"line {node.lineno}: {owner}.{name}")
    return found


def test_every_question_goes_through_the_helper() -> None:
    found = {
        str(path): raw_questions(path.read_text("utf-8"))
        for path in SOURCE.rglob("*.py")
        if path.relative_to(SOURCE).parts[0] not in ALLOWED
        and path.name != "worker.py"  # runs alone, and only in folders of ours
    }
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_the_check_sees_raw_questions() -> None:
    source = "p.is_file()\nos.path.exists(p)\npaths.exists(p)\n(a / b).glob('*')\nmodel.exists_camera(1)\n"
    assert [line.split(":")[0] for line in raw_questions(source)] == ["line 1", "line 2", "line 4"]


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "é" * 200, "loop", "file/below", "lone\ud800", "missing"])
def test_names_that_no_file_has_are_a_plain_no(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_bytes(b"x")
    path = tmp_path / name
    assert not paths.exists(path)
    assert not paths.is_file(path)
    assert not paths.is_dir(path)
    assert paths.entries(path) == []
    paths.absolute(path)


def test_what_is_there_is_seen(tmp_path: Path) -> None:
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    for name in ("b.json", "a.json", "C.JSON"):
        (folder / name).write_bytes(b"")
    (tmp_path / "link").symlink_to(folder)
    assert paths.is_dir(folder)
    assert paths.is_dir(tmp_path / "link")
    assert not paths.is_file(folder)
    assert paths.is_file(folder / "a.json")
    assert [path.name for path in paths.entries(folder, "*.json")] == ["a.json", "b.json"]
    assert sorted(paths.files_below(tmp_path)) == sorted(folder.iterdir())


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "closed"
    folder.mkdir()
    (folder / "a.json").write_bytes(b"{}")
    folder.chmod(0)
    yield folder
    folder.chmod(0o700)


ASK = """
import os, sys
from pathlib import Path
from ilrm.files import paths
from ilrm.core.errors import AccessError
if os.geteuid() == 0:
    os.setuid(65534)  # root is let in everywhere
folder = Path(sys.argv[1])
for ask in (paths.is_file, paths.is_dir, paths.exists, lambda path: paths.entries(path.parent)):
    try:
        print(ask(folder / "a.json"))
    except AccessError as error:
        print(error.problem)
print(paths.is_visible_file(folder / "a.json"), list(paths.files_below(folder.parent)))
"""


@pytest.mark.skipif(os.name == "nt", reason="no such permissions")
def test_a_closed_folder_is_told_as_such(closed: Path) -> None:
    for folder in closed.parents:  # the folders of pytest are closed to others
        if folder.name.startswith("pytest-"):
            folder.chmod(0o755)
    closed.parent.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", ASK, str(closed)], capture_output=True, text=True)
    *answers, rest = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert answers == [f"Cannot access {closed}/a.json: permission denied."] * 3 + [
        f"Cannot access {closed}: permission denied."
    ]
    assert rest == "False []"


def test_a_failing_disk_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "stat", fail)
    with pytest.raises(AccessError, match=r"Cannot access x: input/output error\.\n.*\n.*check the disk"):
        paths.exists("x")


@pytest.mark.parametrize(
    ("name", "shown", "portable"),
    [
        ("café.png", "café.png", "café.png"),
        ("caf\udce9.png", "caf\\xe9.png", "caf%E9.png"),
        ("\ud800", "\ufffd", "%ED%A0%80"),
    ],
)
def test_names_that_are_not_utf8(name: str, shown: str, portable: str) -> None:
    assert paths.shown(name) == shown
    assert paths.portable(name) == portable
    assert (shown + portable).encode().decode() == shown + portable
