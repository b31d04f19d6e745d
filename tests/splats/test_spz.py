"""SPZ: errors within the quantisation, the same numbers as in other programs, no file fills the memory."""

from __future__ import annotations

import gzip
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from ilrm.core.errors import GaussiansError, MissingExtraError
from ilrm.core.gaussians import Gaussians
from ilrm.splats.axes import OPENGL
from ilrm.splats.spz import load_spz, save_spz
from tests.conftest import make_gaussians
from tests.splats.compare import differences, read_by_splat_transform

HEADER = struct.Struct("<IIIBBBB")
MAGIC = 0x5053474E


def tame(count: int, degree: int = 0) -> Gaussians:
    """Random Gaussians whose colours lie within what the format can hold."""
    g = make_gaussians(count, degree)
    return Gaussians(g.means, g.scales, g.quats, g.opacities, g.sh.clamp(-0.95, 0.95))


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_values_return_within_the_quantisation(tmp_path: Path, degree: int) -> None:
    gaussians = tame(400, degree)
    save_spz(gaussians, tmp_path / "a.spz")
    back = load_spz(tmp_path / "a.spz")
    assert back.sh_degree == degree
    errors = differences(back, gaussians)
    assert errors["means"] <= gaussians.means.abs().max().item() * 2**-22
    assert errors["opacities"] <= 0.5 / 255 + 1e-6
    assert errors["shape"] < 0.08  # scales in steps of 1/16 of a natural logarithm
    assert (back.scales.log() - gaussians.scales.log()).abs().max() <= 1 / 32 + 1e-5
    assert differences(back, gaussians)["sh"] <= 8 / 128 + 1e-6
    assert (back.sh[:, 0] - gaussians.sh[:, 0]).abs().max() <= 0.5 / 255 / 0.15 + 1e-6
    assert (back.sh[:, 1:4] - gaussians.sh[:, 1:4]).abs().flatten().sort().values[-1:].sum() <= 4 / 128 + 1e-6


@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0, 1e5])
def test_positions_are_fine_in_worlds_of_any_size(tmp_path: Path, size: float) -> None:
    g = make_gaussians(100)
    gaussians = Gaussians(g.means * size, g.scales.clamp(1e-3, 100), g.quats, g.opacities, g.sh)
    save_spz(gaussians, tmp_path / "a.spz")
    extent = gaussians.means.abs().max().item()
    step = max(extent * 2**-22, 2**-24)  # no more than 24 bits after the point
    assert (load_spz(tmp_path / "a.spz").means - gaussians.means).abs().max() <= step


def test_axes_in_the_file_are_right_up_back(tmp_path: Path) -> None:
    g = make_gaussians(1)
    one = Gaussians(torch.tensor([[1.0, 2.0, -4.0]]), g.scales, g.quats, g.opacities, g.sh)
    save_spz(one, tmp_path / "a.spz")
    raw = gzip.decompress((tmp_path / "a.spz").read_bytes())
    magic, version, count, degree, bits, flags, reserved = HEADER.unpack_from(raw)
    assert (magic, version, count, degree, flags, reserved) == (MAGIC, 3, 1, 0, 0, 0)
    fixed = [int.from_bytes(raw[16 + 3 * i : 19 + 3 * i], "little", signed=True) / 2**bits for i in range(3)]
    assert fixed == [1.0, -2.0, 4.0]
    assert len(raw) == 16 + 20


def test_the_same_gaussians_give_the_same_file(tmp_path: Path) -> None:
    save_spz(make_gaussians(50), tmp_path / "a.spz")
    save_spz(make_gaussians(50), tmp_path / "b.spz")
    assert (tmp_path / "a.spz").read_bytes() == (tmp_path / "b.spz").read_bytes()


@pytest.mark.parametrize("degree", [0, 3])
def test_gsply_reads_the_same(tmp_path: Path, degree: int) -> None:
    spz = pytest.importorskip("gsply.spz")
    save_spz(tame(200, degree), tmp_path / "a.spz")
    ours, theirs = load_spz(tmp_path / "a.spz").transform(OPENGL), spz.read_spz(tmp_path / "a.spz")
    np.testing.assert_allclose(theirs.means, ours.means, atol=1e-6)
    np.testing.assert_allclose(np.exp(theirs.scales), ours.scales, rtol=1e-5)
    np.testing.assert_allclose(np.abs((theirs.quats * ours.quats.numpy()).sum(-1)), 1, atol=1e-6)
    np.testing.assert_allclose(1 / (1 + np.exp(-theirs.opacities)), ours.opacities, atol=1e-5)
    np.testing.assert_allclose(theirs.sh0, ours.sh[:, 0], atol=1e-5)
    if degree:
        np.testing.assert_allclose(theirs.shN, ours.sh[:, 1:], atol=1e-6)


def test_another_program_reads_the_same_world(tmp_path: Path) -> None:
    """PlayCanvas's program: up to 3.6 it converted what it reads to the axes of a PLY; newer ones do not."""
    save_spz(tame(200, 3), tmp_path / "a.spz")
    theirs, ours = read_by_splat_transform(tmp_path / "a.spz"), load_spz(tmp_path / "a.spz")
    turned, raw = (differences(theirs, expected) for expected in (ours, ours.transform(OPENGL)))
    assert min(max(turned.values()), max(raw.values())) < 1e-5


@pytest.mark.parametrize("version", [3, 4])
def test_files_of_gsply_are_read(tmp_path: Path, version: int) -> None:
    pytest.importorskip("zstandard")
    spz, data = pytest.importorskip("gsply.spz"), pytest.importorskip("gsply.gsdata")
    g = tame(200, 2).transform(OPENGL)
    table = data.GSData.from_arrays(
        means=g.means.numpy(),
        scales=g.scales.log().numpy(),
        quats=g.quats.numpy(),
        opacities=g.opacities.logit().numpy(),
        sh0=g.sh[:, 0].numpy(),
        shN=g.sh[:, 1:].numpy(),
        format="ply",
    )
    spz.write_spz(tmp_path / "theirs.spz", table, version=version)
    assert (tmp_path / "theirs.spz").read_bytes()[:2] == (b"NG" if version == 4 else b"\x1f\x8b")
    errors = differences(load_spz(tmp_path / "theirs.spz"), tame(200, 2))
    assert errors["means"] <= 2**-12
    assert errors["opacities"] <= 0.5 / 255 + 1e-6
    assert errors["shape"] < 0.08
    assert errors["sh"] <= 8 / 128 + 1e-6


def test_version_2_has_rotations_of_three_bytes(tmp_path: Path) -> None:
    body = bytes(range(9)) + bytes([255, 10, 20, 30, 160, 160, 160, 191, 64, 191])
    (tmp_path / "a.spz").write_bytes(gzip.compress(HEADER.pack(MAGIC, 2, 1, 0, 12, 0, 0) + body))
    back = load_spz(tmp_path / "a.spz").transform(OPENGL)
    xyz = np.array([191, 64, 191]) / 127.5 - 1
    expected = np.array([np.sqrt(1 - (xyz**2).sum()), *xyz])
    assert abs((back.quats[0].numpy() * expected).sum()) == pytest.approx(1, abs=1e-6)
    assert back.scales[0].tolist() == pytest.approx([1, 1, 1])
    assert back.opacities.item() == 1


def test_what_follows_the_attributes_is_passed_over(tmp_path: Path) -> None:
    """Extensions of other programs."""
    save_spz(make_gaussians(5), tmp_path / "a.spz")
    raw = gzip.decompress((tmp_path / "a.spz").read_bytes())
    (tmp_path / "b.spz").write_bytes(gzip.compress(raw + bytes(range(40))))
    assert torch.equal(load_spz(tmp_path / "a.spz").means, load_spz(tmp_path / "b.spz").means)


def packed(count: int, version: int = 3, degree: int = 0, bits: int = 12, body: bytes | None = None) -> bytes:
    size = count * (16 + (3 if version == 2 else 4) + 3 * ((degree + 1) ** 2 - 1)) if body is None else 0
    return gzip.compress(HEADER.pack(MAGIC, version, count, degree, bits, 0, 0) + (body or bytes(size)))


WHOLE = packed(50)
BAD_FILES = {
    "empty": (b"", "cut off"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(50), "not an .spz file"),
    "another gzip file": (gzip.compress(b"something else entirely"), "gzip file, but not"),
    "a header alone": (packed(5, body=b"")[:-9], "cut off"),
    "truncated": (WHOLE[: len(WHOLE) * 2 // 3], "cut off"),
    "damaged": (WHOLE[:24] + b"\xff\xff\xff" + WHOLE[27:], "damaged|cut off"),
    "without its checksum": (WHOLE[:-3], "cut off"),
    "another checksum": (WHOLE[:-5] + bytes([WHOLE[-5] ^ 1]) + WHOLE[-4:], "damaged"),
    "fewer than declared": (packed(50, body=bytes(49 * 20)), "cut off"),
    "none": (packed(0), "no Gaussians"),
    "version 1": (packed(1, version=1), "version 1"),
    "version 9": (packed(1, version=9), "version 9"),
    "degree 4": (packed(1, degree=4), "SH degree 4"),
    "impossible bits": (packed(1, bits=60), "60 fractional bits"),
    "four billion": (gzip.compress(HEADER.pack(MAGIC, 3, 2**32 - 1, 3, 12, 0, 0) + bytes(1000)), "would inflate to"),
    "version 4 cut off": (struct.pack("<IIIBBBB", MAGIC, 4, 5, 0, 12, 0, 5), "cut off"),
    "version 4 without streams": (struct.pack("<IIIBBBBI12x", MAGIC, 4, 5, 0, 12, 0, 0, 32), "0 streams"),
    "version 4, contents outside": (struct.pack("<IIIBBBBI12x", MAGIC, 4, 5, 0, 12, 0, 5, 2**31), "cut off"),
    "version 3 in plain": (struct.pack("<IIIBBBBI12x", MAGIC, 3, 5, 0, 12, 0, 5, 32), "not compressed"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named(tmp_path: Path, name: str) -> None:
    content, words = BAD_FILES[name]
    (tmp_path / "bad.spz").write_bytes(content)
    with pytest.raises(GaussiansError, match=words) as caught:
        load_spz(tmp_path / "bad.spz")
    assert "bad.spz" in str(caught.value)


@pytest.mark.parametrize("declared", [6_000_000, 1])
def test_a_bomb_is_not_inflated(tmp_path: Path, declared: int) -> None:
    """Zeros that compress a thousandfold: 120 MB behind a header that declares as much, or a single Gaussian."""
    squeeze = zlib.compressobj(wbits=31)
    with (tmp_path / "bomb.spz").open("wb") as file:
        file.write(squeeze.compress(HEADER.pack(MAGIC, 3, declared, 0, 12, 0, 0)))
        for _ in range(120):
            file.write(squeeze.compress(bytes(1_000_000)))
        file.write(squeeze.flush())
    with traced_peak() as peak:
        if declared == 1:
            assert len(load_spz(tmp_path / "bomb.spz")) == 1
        else:
            with pytest.raises(GaussiansError, match="would inflate"):
                load_spz(tmp_path / "bomb.spz")
    assert peak() < 20e6


def test_a_zstd_bomb_is_not_inflated(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    sizes = (9, 1, 3, 3, 4)
    bomb = zstandard.compress(bytes(100 << 20))
    contents = b"".join(struct.pack("<QQ", len(bomb), size) for size in sizes)
    header = struct.pack("<IIIBBBBI12x", MAGIC, 4, 1, 0, 12, 0, 5, 32)
    (tmp_path / "bomb.spz").write_bytes(header + contents + bomb * 5)
    with traced_peak() as peak:
        assert len(load_spz(tmp_path / "bomb.spz")) == 1
    assert peak() < 20e6


@contextmanager
def traced_peak() -> Iterator[Callable[[], int]]:
    """The most bytes that Python and NumPy held at a time inside the body."""
    most = 0
    tracemalloc.start()
    try:
        yield lambda: most
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_version_4_needs_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    contents = b"".join(struct.pack("<QQ", 0, size) for size in (9, 1, 3, 3, 4))
    header = struct.pack("<IIIBBBBI12x", MAGIC, 4, 1, 0, 12, 0, 5, 32)
    (tmp_path / "a.spz").write_bytes(header + contents)
    with pytest.raises(MissingExtraError, match=r"ilrm\[formats\]"):
        load_spz(tmp_path / "a.spz")


def test_worlds_that_do_not_fit(tmp_path: Path) -> None:
    g = make_gaussians(10)
    for factor, words in ((1e7, "--scale 0.01"), (1e-6, "--scale 100")):
        scaled = Gaussians(g.means * factor, g.scales * factor, g.quats, g.opacities, g.sh)
        with pytest.raises(GaussiansError, match=words):
            save_spz(scaled, tmp_path / "a.spz")
    assert list(tmp_path.iterdir()) == []
