"""Splat PLYs as other programs write them: ASCII, filtered, flat, anti-aliased, with broken rows."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ilrm.cli import main
from ilrm.core.errors import GaussiansError, IlrmWarning
from ilrm.core.gaussians import PER_GAUSSIAN, Gaussians
from ilrm.render import render
from ilrm.splats import load_gaussians, load_ply, ply, save_gaussians, save_ply
from ilrm.splats.formats import FORMATS
from tests.conftest import make_cameras, make_gaussians

Columns = dict[str, np.ndarray]


def columns(gaussians: Gaussians) -> Columns:
    fields = ply.PlyFields.from_gaussians(gaussians)
    stored = [fields.xyz, np.zeros_like(fields.xyz), fields.f_dc, fields.f_rest, fields.opacity[:, None]]
    table = np.concatenate([*stored, fields.scale, fields.rot], axis=1)
    return dict(zip(ply._names(fields.f_rest.shape[1]), table.T, strict=True))


def write(path: Path, table: Columns, *comments: str, words: bool = False, before: str = "") -> Path:
    form = "ascii" if words else "binary_little_endian"
    lines = ["ply", f"format {form} 1.0", *(f"comment {c}" for c in comments)]
    lines += [before] if before else []
    lines += [f"element vertex {len(table['x'])}", *(f"property float {name}" for name in table), "end_header", ""]
    data = np.stack(list(table.values()), axis=1).astype("<f4")
    body = "\n".join(" ".join(f"{x:.9g}" for x in row) for row in data).encode() if words else data.tobytes()
    path.write_bytes("\n".join(lines).encode() + body)
    return path


def assert_equal(a: Gaussians, b: Gaussians, tolerance: float = 0.0) -> None:
    for name in PER_GAUSSIAN:
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=tolerance, atol=tolerance)


# --- ASCII ---


@pytest.mark.parametrize("degree", [0, 2])
def test_numbers_in_words(tmp_path: Path, degree: int) -> None:
    gaussians = make_gaussians(5000, degree)  # more than are read at once
    save_ply(gaussians, tmp_path / "binary.ply")
    words = write(tmp_path / "words.ply", columns(gaussians), words=True)
    assert_equal(load_ply(words), load_ply(tmp_path / "binary.ply"))
    words.write_bytes(words.read_bytes().replace(b"\n", b"\r\n"))
    assert_equal(load_ply(words), load_ply(tmp_path / "binary.ply"))


def test_other_elements_and_blank_lines_in_words(tmp_path: Path) -> None:
    gaussians = make_gaussians(3)
    path = write(tmp_path / "a.ply", columns(gaussians), words=True, before="element camera 2\nproperty float f")
    header, body = path.read_bytes().split(b"end_header\n")
    path.write_bytes(header + b"end_header\n1.5\n2\n" + body.replace(b"\n", b"\n\n") + b"\n\n")
    assert_equal(load_ply(path), load_ply(write(tmp_path / "b.ply", columns(gaussians))))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text[: len(text) // 2].rsplit(b"\n", 1)[0], "cut off"),
        (lambda text: text.rsplit(b" ", 1)[0], "16 numbers in row 9"),
        (lambda text: text + b" 3", "18 numbers in row 9"),
        (lambda text: text.rsplit(b" ", 1)[0] + b" 1,5", "not a number, after row 0"),
        (lambda text: text.replace(b"vertex 9", b"vertex 9999999999999"), "cut off"),
        (lambda text: text.replace(b"vertex 9", b"vertex " + b"9" * 5000), "header line"),
    ],
)
def test_damage_in_words_is_named(tmp_path: Path, spoil, message: str) -> None:
    path = write(tmp_path / "bad.ply", columns(make_gaussians(9)), words=True)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(GaussiansError, match=message) as caught:
        load_ply(path)
    assert "bad.ply" in str(caught.value)


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian"])
def test_vertices_without_properties(tmp_path: Path, form: str) -> None:
    (tmp_path / "a.ply").write_bytes(f"ply\nformat {form} 1.0\nelement vertex 3\nend_header\n\n\n\n".encode())
    with pytest.raises(GaussiansError, match="no properties"):
        load_ply(tmp_path / "a.ply")


# --- broken rows ---


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", np.nan),
        ("scale_0", np.nan),
        ("scale_1", np.inf),
        ("rot_1", np.nan),
        ("f_dc_2", -np.inf),
        ("opacity", np.nan),
    ],
)
def test_rows_with_impossible_values_are_left_out_and_counted(tmp_path: Path, name: str, value: float) -> None:
    gaussians = make_gaussians(8)
    table = columns(gaussians)
    table[name] = table[name].copy()
    table[name][[2, 5]] = value
    with pytest.warns(IlrmWarning, match="left out 2 of 8"):
        back = load_ply(write(tmp_path / "a.ply", table))
    assert_equal(back, gaussians[[0, 1, 3, 4, 6, 7]], 1e-6)


def test_rows_without_a_rotation(tmp_path: Path) -> None:
    table = columns(make_gaussians(4))
    for i in range(4):
        table[f"rot_{i}"] = np.where(np.arange(4) == 1, 0, table[f"rot_{i}"])
    with pytest.warns(IlrmWarning, match="left out 1 of 4"):
        assert len(load_ply(write(tmp_path / "a.ply", table))) == 3
    for i in range(4):
        table[f"rot_{i}"] = np.zeros(4)
    with pytest.raises(GaussiansError, match="4 of 4 Gaussians"):
        load_ply(write(tmp_path / "a.ply", table))


# --- 2D Gaussian Splatting ---


def test_two_scales_get_a_third_that_is_next_to_nothing(tmp_path: Path) -> None:
    """In a world of any unit: the flat splat must stay flat where everything is smaller than 1e-6."""
    for unit in (1.0, 1e-6):
        gaussians = replace(make_gaussians(6), scales=unit * make_gaussians(6).scales)
        table = columns(gaussians)
        del table["scale_2"]
        back = load_ply(write(tmp_path / "a.ply", table))
        torch.testing.assert_close(back.scales[:, :2], gaussians.scales[:, :2])
        assert (back.scales[:, 2] <= 1e-6 * (1 + 1e-5)).all()
        assert (back.scales[:, 2] <= 1.001e-3 * back.scales[:, :2].amin(1)).all()


# --- filter_3D ---


def test_the_3d_filter_is_applied(tmp_path: Path) -> None:
    """Against its formula: s'^2 = s^2 + f^2, o' = o sqrt(prod s^2 / prod s'^2), from 1e-9 to 1e3 times the filter."""
    draw = np.random.default_rng(0)
    size = np.exp(draw.uniform(-9, 2, 200)).astype(np.float32)
    gaussians = make_gaussians(200)
    spread = torch.from_numpy(size[:, None] * np.exp(draw.uniform(-20, 7, (200, 3)))).float()
    gaussians = replace(gaussians, scales=spread, opacities=0.02 + 0.97 * gaussians.opacities)
    back = load_ply(write(tmp_path / "a.ply", {**columns(gaussians), "filter_3D": size}))
    s, f = gaussians.scales.double(), torch.from_numpy(size).double()[:, None]
    wider = (s**2 + f**2).sqrt()
    torch.testing.assert_close(back.scales.double(), wider, rtol=3e-6, atol=0)
    opacities = gaussians.opacities.double() * (s / wider).prod(1)
    torch.testing.assert_close(back.opacities.double(), opacities, rtol=3e-5, atol=1e-9)


@pytest.mark.parametrize("logit", [-np.inf, -80.0, 30.0, np.inf])
def test_the_3d_filter_at_its_ends(tmp_path: Path, logit: float) -> None:
    table = columns(make_gaussians(3))
    table["opacity"] = np.full(3, logit)
    table["scale_0"] = np.array([-np.inf, -1.0, -1.0])
    plain = load_ply(write(tmp_path / "plain.ply", table))
    none = load_ply(write(tmp_path / "none.ply", {**table, "filter_3D": np.zeros(3)}))
    assert_equal(none, plain, 1e-6)
    wide = load_ply(write(tmp_path / "wide.ply", {**table, "filter_3D": np.full(3, 0.1)}))
    assert wide.finite().all()
    assert wide.opacities[0] == 0  # a disc of no thickness is spread over a volume
    assert (wide.opacities <= plain.opacities).all()


# --- anti-aliased ---


MARKED = ["SplatRenderMode: mip", "splatrendermode:MIP", "antialiased 1", "postshot.anti_aliasing=1"]
MARKED += ["train_flags antialiasing", "train_flags foo, antialiasing"]
UNMARKED = ["SplatRenderMode: default", "antialiased 0", "made by a program that is antialiased 1", "train_flags other"]


@pytest.mark.parametrize(("comment", "expected"), [*((c, True) for c in MARKED), *((c, False) for c in UNMARKED)])
def test_comments_say_that_splats_are_antialiased(tmp_path: Path, comment: str, expected: bool) -> None:
    path = write(tmp_path / "a.ply", columns(make_gaussians(3)), "made elsewhere", comment)
    assert load_ply(path).antialiased is expected
    assert load_gaussians(path, antialiased=not expected).antialiased is not expected


@pytest.mark.parametrize("extension", [e for e in FORMATS if e != ".sog"])
def test_the_mark_survives_every_format_that_has_one(tmp_path: Path, extension: str) -> None:
    for antialiased in (False, True):
        gaussians = replace(make_gaussians(30, 1), antialiased=antialiased)
        path = tmp_path / f"a{extension}"
        if antialiased and extension in (".splat", ".glb"):
            with pytest.warns(IlrmWarning, match=f"a {re.escape(extension)} file cannot tell"):
                save_gaussians(gaussians, path)
        else:
            save_gaussians(gaussians, path)
        back = load_gaussians(path)
        assert back.antialiased is (antialiased and extension != ".splat")
    if extension.endswith(".ply"):
        assert b"\ncomment SplatRenderMode: mip\nend_header\n" in path.read_bytes()


def test_the_flag_of_spz_is_bit_0_of_byte_14(tmp_path: Path) -> None:
    import gzip

    for antialiased in (False, True):
        save_gaussians(replace(make_gaussians(3), antialiased=antialiased), tmp_path / "a.spz")
        assert gzip.decompress((tmp_path / "a.spz").read_bytes())[14] == antialiased


def test_export_render_and_flag_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--antialiased marks what is written; a picture of it is the one that the renderer draws with compensation."""
    thin = replace(make_gaussians(300, scale=0.004), opacities=torch.full((300,), 0.9))
    save_ply(thin, tmp_path / "plain.ply")
    assert main(["export", str(tmp_path / "plain.ply"), "-o", str(tmp_path / "a.spz"), "--antialiased"]) == 0
    marked = load_gaussians(tmp_path / "a.spz")
    assert marked.antialiased
    camera = make_cameras(1, 48, 48)
    classic, compensated = (render(g, camera).alpha.mean() for g in (replace(marked, antialiased=False), marked))
    assert compensated < 0.5 * classic
    capsys.readouterr()


# --- properties of unknown meaning ---


def test_unknown_properties_are_named_once_and_harmless_ones_are_not(tmp_path: Path) -> None:
    table = columns(make_gaussians(3))
    extra = {name: np.ones(3) for name in ("state", "red", "label", "segment")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_ply(write(tmp_path / "a.ply", {**table, **extra}))
    with pytest.warns(IlrmWarning, match="ignored: beta, lobe_0") as heard:
        load_ply(write(tmp_path / "a.ply", {**table, **extra, "lobe_0": np.ones(3), "beta": np.ones(3)}))
    assert len(heard) == 1
