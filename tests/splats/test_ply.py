"""PLY files: exact in the stored numbers, close in the values, clear errors."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement

from ilrm.core.errors import GaussiansError
from ilrm.core.gaussians import Gaussians
from ilrm.core.spherical_harmonics import C0
from ilrm.splats import load_ply, ply, save_ply
from tests.conftest import make_gaussians

ATTRIBUTES = ("means", "scales", "quats", "opacities", "sh")


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_values_return(tmp_path: Path, degree: int) -> None:
    gaussians = make_gaussians(500, degree)
    save_ply(gaussians, tmp_path / "a.ply")
    back = load_ply(tmp_path / "a.ply")
    for name in ATTRIBUTES:
        torch.testing.assert_close(getattr(back, name), getattr(gaussians, name), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("degree", [0, 3])
def test_stored_numbers_return_bit_by_bit(tmp_path: Path, degree: int) -> None:
    save_ply(make_gaussians(200, degree), tmp_path / "a.ply")
    ply.write_fields(ply.read_fields(tmp_path / "a.ply"), tmp_path / "b.ply")
    assert (tmp_path / "a.ply").read_bytes() == (tmp_path / "b.ply").read_bytes()


def test_small_and_large_values_return(tmp_path: Path) -> None:
    count = 400
    gaussians = make_gaussians(count)
    wide = Gaussians(
        means=gaussians.means * 1e6,
        scales=torch.logspace(-8, 4, count)[:, None].repeat(1, 3),
        quats=gaussians.quats,
        opacities=torch.logspace(-9, 0, count),
        sh=gaussians.sh,
    )
    save_ply(wide, tmp_path / "a.ply")
    back = load_ply(tmp_path / "a.ply")
    for name in ATTRIBUTES:
        torch.testing.assert_close(getattr(back, name), getattr(wide, name), rtol=1e-6, atol=1e-7)


FAR = torch.tensor([512345.5, 5432109.3, 250.0], dtype=torch.float64)


def with_doubles(gaussians: Gaussians, path: Path, offset: torch.Tensor) -> Path:
    """A PLY of another program: x y z in double precision, in the world."""
    save_ply(gaussians, path)
    table = PlyData.read(path)["vertex"].data
    wide = np.empty(len(table), [(name, "<f8" if name in "xyz" else "<f4") for name in table.dtype.names])
    for name in table.dtype.names:
        wide[name] = table[name].astype(np.float64) + (offset["xyz".index(name)].item() if name in "xyz" else 0)
    PlyData([PlyElement.describe(wide, "vertex")]).write(str(path))
    return path


def test_far_from_the_origin_a_comment_says_where(tmp_path: Path) -> None:
    gaussians = make_gaussians(50, 1).at(FAR)
    save_ply(gaussians, tmp_path / "a.ply")
    back = load_ply(tmp_path / "a.ply")
    assert back.origin.tolist() == FAR.tolist()
    assert torch.equal(back.means, gaussians.means)
    ply.write_fields(ply.read_fields(tmp_path / "a.ply"), tmp_path / "b.ply")
    assert (tmp_path / "a.ply").read_bytes() == (tmp_path / "b.ply").read_bytes()
    # Other readers get a scene near its origin; some find the number of vertices in the third line.
    assert (tmp_path / "a.ply").read_bytes().split(b"\n")[2] == b"element vertex 50"
    data = PlyData.read(tmp_path / "a.ply")
    assert data["vertex"].comments + data.comments == ["world_offset 512345.5 5432109.3 250.0"]
    np.testing.assert_array_equal(data["vertex"]["x"], gaussians.means[:, 0])


@pytest.mark.parametrize("offset", [FAR, FAR * 20])
def test_doubles_far_from_the_origin_lose_nothing(tmp_path: Path, offset: torch.Tensor) -> None:
    gaussians = make_gaussians(60)
    back = load_ply(with_doubles(gaussians, tmp_path / "a.ply", offset))
    assert back.means.abs().max() < 10
    torch.testing.assert_close(back.world_means, gaussians.means.double() + offset, atol=2e-7, rtol=0)


def test_doubles_near_the_origin_stay_as_they_are(tmp_path: Path) -> None:
    gaussians = make_gaussians(60)
    back = load_ply(with_doubles(gaussians, tmp_path / "a.ply", torch.zeros(3)))
    assert not back.origin.any()
    assert torch.equal(back.means, gaussians.means)


def test_positions_that_a_file_has_rounded_are_told(tmp_path: Path) -> None:
    far = make_gaussians(50)
    save_ply(Gaussians(far.means + FAR.float(), far.scales, far.quats, far.opacities, far.sh), tmp_path / "a.ply")
    with pytest.warns(UserWarning, match=r"a\.ply has single-precision positions .* with steps of about 0\.6"):
        load_ply(tmp_path / "a.ply")


@pytest.mark.parametrize("words", ["1 2", "1 2 three", "nan 0 0"])
def test_an_offset_that_is_none_is_refused(tmp_path: Path, words: str) -> None:
    save_ply(make_gaussians(3).at(FAR), tmp_path / "a.ply")
    data = (tmp_path / "a.ply").read_bytes()
    (tmp_path / "a.ply").write_bytes(data.replace(b"512345.5 5432109.3 250.0", words.encode()))
    with pytest.raises(GaussiansError, match="world_offset"):
        load_ply(tmp_path / "a.ply")


def test_opacities_of_exactly_zero_and_one(tmp_path: Path) -> None:
    g = make_gaussians(2)
    save_ply(Gaussians(g.means, g.scales, g.quats, torch.tensor([0.0, 1.0]), g.sh), tmp_path / "a.ply")
    assert np.isfinite(ply.read_fields(tmp_path / "a.ply").opacity).all()
    opacities = load_ply(tmp_path / "a.ply").opacities
    assert opacities[1] == 1.0
    assert 0 < opacities[0] < 1e-11


def test_layout_seen_by_another_reader(tmp_path: Path) -> None:
    gaussians = make_gaussians(50, sh_degree=2)
    save_ply(gaussians, tmp_path / "a.ply")
    data = PlyData.read(tmp_path / "a.ply")
    assert data.byte_order == "<"
    vertex = data["vertex"]
    rest = [f"f_rest_{i}" for i in range(24)]
    order = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *rest, "opacity"]
    order += ["scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    assert [p.name for p in vertex.properties] == order
    assert {p.val_dtype for p in vertex.properties} == {"f4"}
    np.testing.assert_array_equal(vertex["y"], gaussians.means[:, 1])
    np.testing.assert_allclose(0.5 + C0 * vertex["f_dc_2"], 0.5 + C0 * gaussians.sh[:, 0, 2], rtol=1e-6)
    np.testing.assert_array_equal(vertex["f_rest_7"], gaussians.sh[:, 8, 0])  # the last red coefficient
    np.testing.assert_array_equal(vertex["f_rest_8"], gaussians.sh[:, 1, 1])  # the first green one
    np.testing.assert_allclose(1 / (1 + np.exp(-vertex["opacity"])), gaussians.opacities, rtol=1e-5)
    np.testing.assert_allclose(np.exp(vertex["scale_1"]), gaussians.scales[:, 1], rtol=1e-6)
    np.testing.assert_array_equal(vertex["rot_0"], gaussians.quats[:, 0])


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_foreign_files_are_read(tmp_path: Path, byte_order: str) -> None:
    """Properties in reverse, doubles, an extra property, another element in front, quaternions of any length."""
    gaussians = make_gaussians(20, sh_degree=1)
    save_ply(gaussians, tmp_path / "a.ply")
    table = PlyData.read(tmp_path / "a.ply")["vertex"].data
    names = [name for name in reversed(table.dtype.names) if name[0] != "n"]
    foreign = np.zeros(20, [(name, "f8") for name in names] + [("label", "u1")])
    for name in names:
        foreign[name] = table[name] * (3.0 if name.startswith("rot") else 1.0)
    elements = [PlyElement.describe(np.zeros(3, [("near", "f4")]), "meta"), PlyElement.describe(foreign, "vertex")]
    PlyData(elements, byte_order=byte_order, comments=["made elsewhere"]).write(tmp_path / "b.ply")
    back = load_ply(tmp_path / "b.ply")
    for name in ATTRIBUTES:
        torch.testing.assert_close(getattr(back, name), getattr(gaussians, name), rtol=1e-6, atol=1e-7)


def test_infinite_logits_are_plain_opacities(tmp_path: Path) -> None:
    save_ply(make_gaussians(2), tmp_path / "a.ply")
    fields = ply.read_fields(tmp_path / "a.ply")
    fields.opacity[:] = [np.inf, -np.inf]
    ply.write_fields(fields, tmp_path / "a.ply")
    assert load_ply(tmp_path / "a.ply").opacities.tolist() == [1.0, 0.0]


def header(count: int, names: list[str], form: str = "binary_little_endian") -> bytes:
    lines = ["ply", f"format {form} 1.0", f"element vertex {count}", *(f"property float {n}" for n in names)]
    return "\n".join([*lines, "end_header", ""]).encode()


ALL = ply._names(0)
ONE = np.ones(len(ALL), "<f4").tobytes()
BAD_FILES = {
    "empty file": (b"", "not a PLY"),
    "not a PLY": (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a PLY"),
    "header without end": (header(1, ALL)[:60], "end_header"),
    "endless header line": (b"ply\nformat binary_little_endian 1.0\ncomment " + b"x" * (2 << 20), "end_header"),
    "unknown format": (header(1, ALL, "xml") + ONE, "'xml'"),
    "no format": (header(1, ALL).replace(b"format binary_little_endian 1.0\n", b"") + ONE, "'format'"),
    "negative count": (header(-1, ALL) + ONE, "element vertex -1"),
    "nonsense line": (header(1, ALL).replace(b"property float nx", b"property thing nx") + ONE, "property thing nx"),
    "two properties of one name": (header(1, [*ALL, "x"]) + ONE + b"0000", "twice"),
    "no vertices": (header(1, ALL).replace(b"vertex", b"splat") + ONE, "no element 'vertex'"),
    "zero vertices": (header(0, ALL), "no Gaussians"),
    "truncated": (header(2, ALL) + ONE + ONE[:-1], "cut off"),
    "gigantic count": (header(10**18, ALL) + ONE, "cut off"),
    "point cloud": (header(1, ["x", "y", "z", "red", "green", "blue"]) + bytes(24), "point cloud.*opacity"),
    "no rotation": (header(1, ALL[:-4]) + ONE[:-16], "lacks rot_0, rot_1, rot_2, rot_3"),
    "odd SH": (header(1, [*ALL, "f_rest_0"]) + ONE + bytes(4), "1 f_rest"),
    "NaN": (header(1, ALL) + np.full(len(ALL), np.nan, "<f4").tobytes(), "1 of 1 Gaussians have NaN"),
    "zero rotation": (header(1, ALL) + ONE[:-16] + bytes(16), "1 of 1 Gaussians have.*rotation 0 0 0 0"),
    "list property": (header(1, ALL).replace(b"property float nx", b"property list uchar int nx") + ONE, "lists"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named(tmp_path: Path, name: str) -> None:
    content, words = BAD_FILES[name]
    (tmp_path / "bad.ply").write_bytes(content)
    with pytest.raises(GaussiansError, match=words) as caught:
        load_ply(tmp_path / "bad.ply")
    assert "bad.ply" in str(caught.value)


def test_declared_count_allocates_nothing(tmp_path: Path) -> None:
    (tmp_path / "bad.ply").write_bytes(header(2 * 10**9, ALL) + ONE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(GaussiansError, match="cut off"):
        load_ply(tmp_path / "bad.ply")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB; the count would take 136 GB


@pytest.mark.parametrize("path", ["absent.ply", "."])
def test_unreadable_paths(tmp_path: Path, path: str) -> None:
    with pytest.raises(GaussiansError, match="Cannot read"):
        load_ply(tmp_path / path)


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    gaussians = make_gaussians(4)
    with pytest.raises(GaussiansError, match="no Gaussians"):
        save_ply(gaussians[:0], tmp_path / "a.ply")
    with pytest.raises(GaussiansError, match="flatten"):
        save_ply(Gaussians.cat([gaussians]).map(lambda x: x[None]), tmp_path / "a.ply")
    gaussians.means[2, 1] = float("nan")
    with pytest.raises(GaussiansError, match="1 of 4"):
        save_ply(gaussians, tmp_path / "a.ply")
    assert list(tmp_path.iterdir()) == []


def test_viewer_takes_the_file(tmp_path: Path) -> None:
    viser = pytest.importorskip("viser")
    save_ply(make_gaussians(100), tmp_path / "a.ply")
    gaussians = load_ply(tmp_path / "a.ply")
    server = viser.ViserServer(host="127.0.0.1", port=0, verbose=False)
    try:
        splats = server.scene.add_gaussian_splats(
            "/scene",
            centers=gaussians.means.numpy(),
            covariances=gaussians.covariances().numpy(),
            rgbs=(0.5 + C0 * gaussians.sh[:, 0]).clamp(0, 1).numpy(),
            opacities=gaussians.opacities[:, None].numpy(),
        )
        assert splats.name == "/scene"
    finally:
        server.stop()
