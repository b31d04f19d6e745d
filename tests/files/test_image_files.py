"""The only entry for image files: only the listed formats, nothing above the budget, no exceptions from decoders."""

from __future__ import annotations

import ast
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ilrm.core.checks import MAX_PIXELS
from ilrm.core.errors import SceneError
from ilrm.files.image_files import FORMATS, open_image, read_header

SOURCE = Path(__file__).resolve().parents[2] / "src" / "ilrm"
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 24\n%%EndComments\nshowpage\n%%EOF\n"


def png(width: int, height: int, colour: int = 2, depth: int = 8, behind: bytes = b"", data: bytes = b"") -> bytes:
    """A PNG file that declares any size, with further chunks behind its pixels."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + behind + chunk(b"IEND", b"")


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def test_images_are_opened_nowhere_else() -> None:
    """Every other call of Image.open would try all formats that Pillow knows."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Image.open"):
                assert path.name == "image_files.py", f"{path}:{node.lineno}"
                assert "formats" in [keyword.arg for keyword in node.keywords]
            if isinstance(node, ast.ImportFrom) and node.module == "PIL.Image":
                assert "open" not in [alias.name for alias in node.names], path


def test_an_eps_file_never_starts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its name is. A program with the name that Pillow would start leaves a mark here."""
    programs, mark = tmp_path / "bin", tmp_path / "started"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch {mark}\nexit 1\n")
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    file = tmp_path / "view_002.png"
    file.write_bytes(EPS)
    with pytest.raises(SceneError, match=r"view_002\.png cannot be opened as an image"), open_image(file) as image:
        image.load()
    assert not mark.exists()


@pytest.mark.parametrize("name", ["PPM", "TGA", "PCX", "ICO", "SGI", "DDS", "JPEG2000"])
def test_other_formats_are_refused(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png", name)
    with pytest.raises(SceneError, match=r"a\.png cannot be opened"):
        read_header(tmp_path / "a.png")


@pytest.mark.parametrize("name", FORMATS)
def test_listed_formats_are_read(tmp_path: Path, name: str) -> None:
    if name not in Image.registered_extensions().values():
        pytest.skip(f"this Pillow has no {name}")
    Image.new("RGB", (16, 8), "red").save(tmp_path / "a", name)
    header = read_header(tmp_path / "a")
    assert (header.size, header.orientation, header.transparent) == ((16, 8), 1, False)
    with open_image((tmp_path / "a").read_bytes(), "content") as image:
        assert image.convert("RGB").getextrema()[0][0] > 200


@pytest.mark.parametrize(("width", "height", "colour", "depth"), [(11400, 11100, 6, 8), (12000, 11000, 0, 16)])
def test_small_files_of_many_pixels_are_refused_before_decoding(
    tmp_path: Path, width: int, height: int, colour: int, depth: int
) -> None:
    (tmp_path / "a.png").write_bytes(png(width, height, colour, depth))
    message = rf"a\.png would take(.|\n)*--max-pixels {width * height} .in Python max_pixels={width * height}"
    with pytest.raises(SceneError, match=message), open_image(tmp_path / "a.png"):
        pass
    with open_image(tmp_path / "a.png", max_pixels=width * height) as image:
        assert image.size == (width, height)


def test_cameras_of_100_megapixels_fit_and_heavy_formats_count_twice() -> None:
    baseline, progressive = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (64, 64)).save(baseline, "JPEG")
    Image.new("RGB", (64, 64)).save(progressive, "JPEG", progressive=True)
    assert read_header(baseline.getvalue()).cost == 64 * 64
    assert read_header(progressive.getvalue()).cost == 2 * 64 * 64
    assert 11648 * 8736 <= MAX_PIXELS < 126_000_000


def test_pillow_s_own_limit_is_left_as_it_was(tmp_path: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS
    (tmp_path / "a.png").write_bytes(png(20000, 20000))
    assert read_header(tmp_path / "a.png").size == (20000, 20000)
    assert before == Image.MAX_IMAGE_PIXELS


def test_exif_behind_the_pixels_of_a_png_counts() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = exif.tobytes().removeprefix(b"Exif\0\0")
    assert read_header(png(4, 2, behind=chunk(b"eXIf", content))).orientation == 6
    assert read_header(png(4, 2, behind=chunk(b"eXIf", content[:9]))).orientation == 1
    assert read_header(png(4, 2, behind=struct.pack(">I", 1 << 31) + b"eXIf")).orientation == 1


@pytest.mark.parametrize("value", ["6", b"\x06", (6, 6), 0, 9, 65535, -1.5])
def test_an_orientation_that_is_none_turns_nothing(monkeypatch: pytest.MonkeyPatch, value: object) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 2)).save(buffer, "PNG")
    exif = Image.Exif()
    exif[0x0112] = value
    monkeypatch.setattr(Image.Image, "getexif", lambda self: exif)
    assert read_header(buffer.getvalue()).orientation == 1


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_files_raise_no_foreign_exception() -> None:
    """A seeded sample of single changed bytes and cuts of every format."""
    g = np.random.default_rng(0)
    pixels = g.integers(0, 255, (24, 16, 3), dtype=np.uint8)
    refused = 0
    for name in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"):
        buffer, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(pixels).save(buffer, name, exif=exif)
        for _ in range(60):
            damaged = bytearray(buffer.getvalue())
            damaged[g.integers(len(damaged) if g.random() < 0.3 else min(len(damaged), 120))] = g.integers(256)
            try:
                with open_image(bytes(damaged[: g.integers(len(damaged) // 2, len(damaged) + 1)]), "x") as image:
                    image.load()
            except SceneError:
                refused += 1
    assert 60 < refused < 360
