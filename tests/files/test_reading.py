from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from ilrm.core.errors import CameraError, ConfigError, IlrmError, SceneError
from ilrm.files import reading
from ilrm.files.reading import parse_json, read_json, read_text
from ilrm.pictures.camera_path import load_path
from ilrm.scenes.readers.records import read_frames
from ilrm.splats.cameras import load_cameras
from ilrm.train.serialise import from_json

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "examples").rglob("*.py")])


def locale_bound(source: str) -> list[int]:
    """Lines that open a text file in whatever encoding the locale has."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        given = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        given += [str(k.value.value) for k in node.keywords if k.arg == "mode" and isinstance(k.value, ast.Constant)]
        named = any(k.arg == "encoding" for k in node.keywords) or any(text.startswith("utf") for text in given)
        binary = any("b" in text and set(text) <= set("rwaxb+") for text in given)
        texts = name in ("read_text", "write_text") and isinstance(node.func, ast.Attribute)
        # An open() with arguments or of a path; layouts, runs and images have methods of that name.
        opens = (name == "open" and owner in ("", "path", "file", "io")) or (name == "open" and owner.endswith("_path"))
        if (texts or opens) and not named and not binary:
            lines.append(node.lineno)
    return lines


def test_no_text_is_read_in_the_locale_s_encoding() -> None:
    found = {str(path): locale_bound(path.read_text("utf-8")) for path in FILES}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_the_check_sees_them() -> None:
    source = """p.read_text()
open(p)
path.open("w")
p.read_text("utf-8")
open(p, "rb")
path.open(mode="wb")
open(p, encoding="utf-8")
write_text(p, "x")
"""
    assert locale_bound(source) == [1, 2, 3]


READERS = {
    "read_json": (read_json, SceneError),
    "read_frames": (read_frames, SceneError),
    "load_cameras": (load_cameras, CameraError),
    "load_path": (load_path, CameraError),
    "from_json": (from_json, ConfigError),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"a": "caf\xe9"}', b"[" * 100_000, b"\xff\xfe{\x00}\x00", b"1" * 5000, None],
    ids=["empty", "cut", "latin-1", "deep", "utf-16", "digits", "missing"],
)
def test_what_is_no_json_is_refused_with_the_reader_s_own_error(
    reader: str, content: bytes | None, tmp_path: Path
) -> None:
    read, kind = READERS[reader]
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(IlrmError, match=r"x\.json") as caught:
        read(path)
    assert type(caught.value) is kind


@pytest.mark.parametrize("path", ["a" * 300, "a\0b", "lone\ud800", "."])
def test_odd_paths_are_refused(path: str) -> None:
    with pytest.raises(SceneError, match="cannot be read"):
        read_json(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_text(path, ConfigError)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"é": 1}', encoding="utf-8-sig")
    assert read_json(path) == {"é": 1}
    assert read_text(path) == '{"é": 1}'
    assert parse_json(path.read_bytes(), "x") == {"é": 1}


def test_files_without_an_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_BYTES", 3 << 20)
    with pytest.raises(SceneError, match="/dev/zero is larger than 3 MiB"):
        read_json("/dev/zero")


def test_repeated_keys_are_seen_by_those_who_ask(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": 1, "a": 2}', encoding="utf-8")
    assert read_json(path) == {"a": 2}
    assert read_json(path, objects=lambda pairs: pairs) == [("a", 1), ("a", 2)]


def test_names_of_any_bytes_come_back(tmp_path: Path) -> None:
    """Python's form of a file name that is not UTF-8 goes through JSON unchanged."""
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"file_path": "caf\udce9.png"}), encoding="utf-8")
    assert read_json(path) == {"file_path": "caf\udce9.png"}
