"""Compressed PLY: errors within the quantisation, the same numbers as in other programs, clear errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement

from ilrm.core.errors import GaussiansError, IlrmWarning
from ilrm.core.gaussians import Gaussians
from ilrm.splats import load_ply, save_ply
from ilrm.splats.compressed_ply import save_compressed_ply
from tests.conftest import make_gaussians
from tests.splats.compare import differences, in_order_of, read_by_splat_transform, splat_transform


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_values_return_within_the_quantisation(tmp_path: Path, degree: int) -> None:
    gaussians = make_gaussians(600, degree)
    save_compressed_ply(gaussians, tmp_path / "a.compressed.ply")
    back = in_order_of(load_ply(tmp_path / "a.compressed.ply"), gaussians)
    assert back.sh_degree == degree
    extent = (gaussians.means.amax(0) - gaussians.means.amin(0)).max().item()
    errors = differences(back, gaussians)
    assert errors["means"] <= extent / 1023 / 2 + 1e-6
    assert errors["opacities"] <= 0.5 / 255 + 1e-6
    assert errors["sh"] <= 1 / 64 + 1e-6  # the step of the higher coefficients; colours are finer
    assert errors["shape"] < 0.01


def test_size(tmp_path: Path) -> None:
    save_compressed_ply(make_gaussians(10_000), tmp_path / "a.compressed.ply")
    assert (tmp_path / "a.compressed.ply").stat().st_size < 1000 + 10_000 * 16 + 40 * 72


@pytest.mark.parametrize("count", [1, 255, 256, 257])
def test_chunks_that_are_not_full(tmp_path: Path, count: int) -> None:
    gaussians = make_gaussians(count, 1)
    save_compressed_ply(gaussians, tmp_path / "a.ply")
    assert differences(in_order_of(load_ply(tmp_path / "a.ply"), gaussians), gaussians)["means"] < 0.01


def test_equal_gaussians_return_exactly(tmp_path: Path) -> None:
    """A chunk whose least and largest values are the same."""
    one = make_gaussians(1)
    many = Gaussians.cat([one] * 300)
    save_compressed_ply(many, tmp_path / "a.ply")
    errors = differences(load_ply(tmp_path / "a.ply"), many)
    assert errors["means"] == 0
    assert errors["sh"] < 1e-6


def test_extreme_scales_are_clamped(tmp_path: Path) -> None:
    g = make_gaussians(3)
    scales = torch.tensor([[0.0, 1e-30, 1e-9], [1e12, 1, 1], [1, 1, 1]])
    save_compressed_ply(Gaussians(g.means, scales, g.quats, g.opacities, g.sh), tmp_path / "a.ply")
    back = in_order_of(load_ply(tmp_path / "a.ply"), g)
    assert back.scales.log().abs().max() <= 20.001


def test_layout_seen_by_another_reader(tmp_path: Path) -> None:
    save_compressed_ply(make_gaussians(300, 2), tmp_path / "a.ply")
    data = PlyData.read(tmp_path / "a.ply")
    assert [(element.name, element.count) for element in data.elements] == [("chunk", 2), ("vertex", 300), ("sh", 300)]
    assert {p.val_dtype for p in data["chunk"].properties} == {"f4"}
    assert [p.name for p in data["vertex"].properties] == [
        *("packed_position", "packed_rotation", "packed_scale", "packed_color")
    ]
    assert len(data["sh"].properties) == 24
    chunk, word = data["chunk"][0], int(data["vertex"]["packed_position"][0])
    x = chunk["min_x"] + (word >> 21) / 2047 * (chunk["max_x"] - chunk["min_x"])
    assert x == pytest.approx(load_ply(tmp_path / "a.ply").means[0, 0].item(), abs=1e-6)


@pytest.mark.parametrize("degree", [0, 3])
def test_gsply_reads_the_same(tmp_path: Path, degree: int) -> None:
    gsply = pytest.importorskip("gsply")
    save_compressed_ply(make_gaussians(300, degree), tmp_path / "a.ply")
    ours, theirs = load_ply(tmp_path / "a.ply"), gsply.plyread(str(tmp_path / "a.ply"))
    np.testing.assert_allclose(theirs.means, ours.means, atol=1e-6)
    np.testing.assert_allclose(np.exp(theirs.scales), ours.scales, rtol=1e-5)
    np.testing.assert_allclose(np.abs((theirs.quats * ours.quats.numpy()).sum(-1)), 1, atol=1e-6)
    np.testing.assert_allclose(1 / (1 + np.exp(-theirs.opacities)), ours.opacities, atol=1e-4)
    np.testing.assert_allclose(theirs.sh0, ours.sh[:, 0], atol=1e-5)
    if degree:
        np.testing.assert_allclose(theirs.shN, ours.sh[:, 1:], atol=1e-6)


def test_playcanvas_reads_the_same(tmp_path: Path) -> None:
    save_compressed_ply(make_gaussians(300, 3), tmp_path / "a.compressed.ply")
    errors = differences(
        read_by_splat_transform(tmp_path / "a.compressed.ply"), load_ply(tmp_path / "a.compressed.ply")
    )
    assert max(errors.values()) < 1e-5


def test_a_file_of_playcanvas_is_read(tmp_path: Path) -> None:
    gaussians = make_gaussians(600, 1)
    save_ply(gaussians, tmp_path / "plain.ply")
    made = splat_transform(tmp_path / "plain.ply", tmp_path / "theirs.compressed.ply")
    errors = differences(in_order_of(load_ply(made), gaussians), gaussians)
    assert errors["means"] < 0.01
    assert errors["sh"] <= 1 / 64 + 1e-6
    assert errors["shape"] < 0.01


def rewritten(path: Path, **elements: np.ndarray | None) -> Path:
    """The compressed file with some of its tables replaced, or left out (None)."""
    tables = {element.name: element.data for element in PlyData.read(path, mmap=False).elements} | elements
    described = [PlyElement.describe(table, name) for name, table in tables.items() if table is not None]
    PlyData(described, byte_order="<").write(path)
    return path


@pytest.fixture
def compressed(tmp_path: Path) -> Path:
    save_compressed_ply(make_gaussians(300, 1), tmp_path / "a.ply")
    return tmp_path / "a.ply"


def without(table: np.ndarray, *names: str) -> np.ndarray:
    kept = [(name, table.dtype[name]) for name in table.dtype.names or () if name not in names]
    out = np.empty(len(table), kept)
    for name, _ in kept:
        out[name] = table[name]
    return out


def test_the_first_version_had_no_bounds_of_colours(compressed: Path) -> None:
    before, data = load_ply(compressed), PlyData.read(compressed, mmap=False)
    colours = [f"{end}_{c}" for end in ("min", "max") for c in "rgb"]
    back = load_ply(rewritten(compressed, chunk=without(data["chunk"].data, *colours)))
    word = int(data["vertex"]["packed_color"][0])
    assert 0.5 + 0.28209479 * back.sh[0, 0, 0].item() == pytest.approx((word >> 24) / 255, abs=1e-5)
    assert torch.equal(back.means, before.means)


def test_bad_files_are_named(compressed: Path) -> None:
    data, content = PlyData.read(compressed, mmap=False), compressed.read_bytes()
    chunk, sh = data["chunk"].data, data["sh"].data
    cases = [
        ({"chunk": None}, "lacks min_x"),
        ({"chunk": chunk[:1]}, "1 chunks"),
        ({"chunk": without(chunk, "max_scale_z")}, "lacks max_scale_z"),
        ({"vertex": without(data["vertex"].data, "packed_scale")}, "lacks packed_scale"),
        ({"sh": without(sh, "f_rest_3")}, "8 f_rest properties"),
        ({"sh": sh[:299]}, "for 299 Gaussians"),
    ]
    for elements, words in cases:
        compressed.write_bytes(content)
        with pytest.raises(GaussiansError, match=words) as caught:
            load_ply(rewritten(compressed, **elements))
        assert "a.ply" in str(caught.value)
    for bytes_left in (len(content) - 1, len(content) - 300 * 9 - 1, len(content) // 3):
        compressed.write_bytes(content[:bytes_left])
        with pytest.raises(GaussiansError, match="cut off"):
            load_ply(compressed)
    compressed.write_bytes(content.replace(b"element vertex 300", b"element vertex 1000000000000"))
    with pytest.raises(GaussiansError, match="cut off"):
        load_ply(compressed)
    compressed.write_bytes(content.replace(b"element vertex 300", b"element vertex " + b"9" * 5000))
    with pytest.raises(GaussiansError, match="invalid header line"):
        load_ply(compressed)
    swapped = content.replace(b"uint packed_rotation", b"uint min_x").replace(b"float min_x", b"float packed_rotation")
    compressed.write_bytes(swapped)
    with pytest.raises(GaussiansError, match="lacks packed_rotation, min_x"):
        load_ply(compressed)


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    gaussians = make_gaussians(4)
    with pytest.raises(GaussiansError, match="no Gaussians"):
        save_compressed_ply(gaussians[:0], tmp_path / "a.ply")
    gaussians.scales[1, 1] = float("inf")
    with pytest.raises(GaussiansError, match="1 of 4"):
        save_compressed_ply(gaussians, tmp_path / "a.ply")
    assert list(tmp_path.iterdir()) == []


def test_a_broken_chunk_is_left_out_and_counted(compressed: Path) -> None:
    chunk = PlyData.read(compressed, mmap=False)["chunk"].data.copy()
    chunk["max_y"][1] = np.nan
    with pytest.warns(IlrmWarning, match="left out 44 of 300"):
        assert len(load_ply(rewritten(compressed, chunk=chunk))) == 256
