"""glTF splats: exact, valid, read by others, in any legal layout; clear errors."""

from __future__ import annotations

import copy
import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ilrm.core.cameras import Similarity
from ilrm.core.errors import GaussiansError, IlrmWarning
from ilrm.core.gaussians import Gaussians, quaternion_to_matrix
from ilrm.core.spherical_harmonics import C0
from ilrm.splats import save_ply
from ilrm.splats.axes import GLTF
from ilrm.splats.glb import load_glb, save_glb
from tests.conftest import make_gaussians
from tests.splats.compare import differences, gltf_issues, splat_transform

Content = dict[str, Any]
PREFIX = "KHR_gaussian_splatting:"


def parts(path: Path) -> tuple[Content, bytes]:
    """JSON and binary chunk, read by separate code."""
    data = path.read_bytes()
    magic, version, total, text, kind = struct.unpack_from("<4sIII4s", data)
    assert (magic, version, total, kind) == (b"glTF", 2, len(data), b"JSON")
    length, kind = struct.unpack_from("<I4s", data, 20 + text)
    assert kind == b"BIN\0"
    assert length == total - 28 - text
    return json.loads(data[20 : 20 + text]), data[28 + text :]


def write(path: Path, content: object, binary: bytes) -> Path:
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 4)
    binary += bytes(-len(binary) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)
    return path


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_values_return(tmp_path: Path, degree: int) -> None:
    gaussians = make_gaussians(300, degree)
    save_glb(gaussians, tmp_path / "a.glb")
    back = load_glb(tmp_path / "a.glb")
    assert torch.equal(back.means, gaussians.means)
    assert torch.equal(back.scales, gaussians.scales)
    assert torch.equal(back.opacities, gaussians.opacities)
    torch.testing.assert_close(back.sh, gaussians.sh, rtol=1e-6, atol=1e-6)
    assert differences(back, gaussians)["shape"] < 1e-5


def test_what_the_extension_prescribes(tmp_path: Path) -> None:
    """Linear scales and opacities, rotations xyzw, SH by degree, axes x left, y up, z forward."""
    gaussians = make_gaussians(10, 1)
    save_glb(gaussians, tmp_path / "a.glb")
    content, binary = parts(tmp_path / "a.glb")
    primitive = content["meshes"][0]["primitives"][0]
    assert content["extensionsUsed"] == ["KHR_gaussian_splatting"]
    assert primitive["mode"] == 0
    assert primitive["extensions"]["KHR_gaussian_splatting"]["colorSpace"] == "srgb_rec709_display"

    def stored(name: str, dtype: str = "<f4") -> np.ndarray:
        accessor = content["accessors"][primitive["attributes"][name]]
        view = content["bufferViews"][accessor["bufferView"]]
        return np.frombuffer(binary, dtype, view["byteLength"] // np.dtype(dtype).itemsize, view["byteOffset"])

    turned = gaussians.transform(GLTF)
    flip = torch.tensor([-1.0, -1, 1])
    np.testing.assert_array_equal(stored("POSITION").reshape(-1, 3), gaussians.means * flip)
    np.testing.assert_array_equal(stored(PREFIX + "SCALE").reshape(-1, 3), gaussians.scales)
    np.testing.assert_array_equal(stored(PREFIX + "OPACITY"), gaussians.opacities)
    np.testing.assert_allclose(stored(PREFIX + "ROTATION").reshape(-1, 4)[:, [3, 0, 1, 2]], turned.quats, atol=1e-6)
    np.testing.assert_allclose(stored(PREFIX + "SH_DEGREE_1_COEF_2").reshape(-1, 3), -gaussians.sh[:, 3], atol=1e-6)
    colour = stored("COLOR_0", "u1").reshape(-1, 4) / 255
    srgb = np.where(colour <= 0.0031308, 12.92 * colour, 1.055 * colour ** (1 / 2.4) - 0.055)[:, :3]
    np.testing.assert_allclose(srgb, (0.5 + C0 * gaussians.sh[:, 0]).clamp(0, 1), atol=0.03)
    np.testing.assert_allclose(colour[:, 3], gaussians.opacities, atol=0.5 / 255 + 1e-6)


def test_the_validator_accepts_it(tmp_path: Path) -> None:
    save_glb(make_gaussians(20, 1), tmp_path / "a.glb")
    # It does not know the extension, so it reports its names as errors. Everything else must be right, and with names
    # for custom attributes everything is.
    for issue in gltf_issues(tmp_path / "a.glb"):
        known = issue["code"] == "MESH_PRIMITIVE_INVALID_ATTRIBUTE" and PREFIX in issue["pointer"]
        assert known or issue["code"] == "UNSUPPORTED_EXTENSION", issue
    content, binary = parts(tmp_path / "a.glb")
    primitive = content["meshes"][0]["primitives"][0]
    del content["extensionsUsed"], primitive["extensions"]
    primitive["attributes"] = {k.replace(PREFIX, "_SPLAT_"): v for k, v in primitive["attributes"].items()}
    assert gltf_issues(write(tmp_path / "b.glb", content, binary)) == []
    content["accessors"][0]["max"][0] += 1
    assert gltf_issues(write(tmp_path / "b.glb", content, binary)), "the validator looks at the data"


def test_trimesh_shows_the_points(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    gaussians = make_gaussians(20)
    save_glb(gaussians, tmp_path / "a.glb")
    (cloud,) = trimesh.load(tmp_path / "a.glb").geometry.values()
    np.testing.assert_allclose(cloud.vertices, gaussians.transform(GLTF).means, atol=1e-6)
    assert len(cloud.colors) == 20


def test_a_file_of_playcanvas_is_in_the_same_world(tmp_path: Path) -> None:
    gaussians = make_gaussians(100, 2)
    save_ply(gaussians, tmp_path / "a.ply")
    made = splat_transform(tmp_path / "a.ply", tmp_path / "theirs.glb")
    assert max(differences(load_glb(made), gaussians).values()) < 1e-5


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Content, bytes, Gaussians]:
    gaussians = make_gaussians(12, 1)
    save_glb(gaussians, tmp_path / "a.glb")
    return tmp_path / "a.glb", *parts(tmp_path / "a.glb"), gaussians


def test_quantised_and_interleaved_attributes(saved: tuple[Path, Content, bytes, Gaussians]) -> None:
    path, content, binary, gaussians = saved
    attributes = content["meshes"][0]["primitives"][0]["attributes"]
    turned = gaussians.transform(GLTF)
    table = np.zeros(12, [("rot", "<i2", 4), ("opacity", "u1"), ("pad", "u1", 3)])
    table["rot"] = np.rint(turned.quats[:, [1, 2, 3, 0]].numpy() * 32767)
    table["opacity"] = np.rint(turned.opacities.numpy() * 255)
    content["bufferViews"].append(
        {"buffer": 0, "byteOffset": len(binary), "byteLength": table.nbytes, "byteStride": table.itemsize}
    )
    shared = {"bufferView": len(content["bufferViews"]) - 1, "count": 12, "normalized": True}
    content["accessors"] += [
        {**shared, "componentType": 5122, "type": "VEC4"},
        {**shared, "componentType": 5121, "type": "SCALAR", "byteOffset": 8},
    ]
    attributes[PREFIX + "ROTATION"] = len(content["accessors"]) - 2
    attributes[PREFIX + "OPACITY"] = len(content["accessors"]) - 1
    errors = differences(load_glb(write(path, content, binary + table.tobytes())), gaussians)
    assert errors["opacities"] <= 0.5 / 255 + 1e-6
    assert errors["shape"] < 1e-3


def test_nodes_place_their_splats(saved: tuple[Path, Content, bytes, Gaussians]) -> None:
    """A parent with a matrix, a child with rotation, scale and translation: as one similarity in glTF's frame."""
    path, content, binary, gaussians = saved
    cos, sin = np.cos(1.0), np.sin(1.0)
    matrix = np.array([[cos, -sin, 0, 1], [sin, cos, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]])
    xyzw = [0.5, 0.5, -0.5, 0.5]
    content["nodes"] = [
        {"mesh": 0, "rotation": xyzw, "scale": [2, 2, 2], "translation": [0, 0, 5]},
        {"children": [0], "matrix": matrix.T.ravel().tolist()},
    ]
    content["scenes"] = [{"nodes": [1]}]
    turn = quaternion_to_matrix(torch.tensor([xyzw[3], *xyzw[:3]], dtype=torch.float64))
    child = Similarity(2.0, turn, torch.tensor([0.0, 0, 5], dtype=torch.float64))
    parent = Similarity(1.0, torch.from_numpy(matrix[:3, :3]), torch.from_numpy(matrix[:3, 3]))
    expected = gaussians.transform(GLTF.compose(parent).compose(child).compose(GLTF))
    errors = differences(load_glb(write(path, content, binary)), expected)
    assert max(errors.values()) < 2e-5


def primitive(content: Content) -> Content:
    return content["meshes"][0]["primitives"][0]


def compressed(content: Content) -> None:
    inner = {"KHR_gaussian_splatting_compression_spz_2": {}}
    primitive(content)["extensions"]["KHR_gaussian_splatting"]["extensions"] = inner


BAD_CONTENTS: dict[str, tuple[Callable[[Content], Any], str]] = {
    "a mesh": (lambda c: primitive(c).pop("extensions"), "contains no Gaussians"),
    "compressed inside": (compressed, "compression_spz_2"),
    "linear colours": (
        lambda c: primitive(c)["extensions"]["KHR_gaussian_splatting"].update(colorSpace="lin_rec709_display"),
        "lin_rec709_display",
    ),
    "no scale": (lambda c: primitive(c)["attributes"].pop(PREFIX + "SCALE"), "lacks.*SCALE"),
    "half a degree": (lambda c: primitive(c)["attributes"].pop(PREFIX + "SH_DEGREE_1_COEF_1"), "lacks.*COEF_1"),
    "no colour": (
        lambda c: [primitive(c)["attributes"].pop(k) for k in list(primitive(c)["attributes"]) if "SH_" in k],
        "SH_DEGREE_0",
    ),
    "accessor beyond its view": (lambda c: c["accessors"][0].update(count=13), "bufferView"),
    "a trillion": (lambda c: [a.update(count=10**12) for a in c["accessors"]], "bufferView"),
    "view beyond the file": (
        lambda c: [c["bufferViews"][0].update(byteLength=10**12), c["accessors"][0].update(count=10**10)],
        "cut off",
    ),
    "negative offset": (lambda c: c["bufferViews"][0].update(byteOffset=-4), "bufferView"),
    "no such accessor": (lambda c: primitive(c)["attributes"].update(POSITION=99), "malformed"),
    "wrong type": (lambda c: c["accessors"][0].update(type="VEC4"), "malformed"),
    "text for a number": (lambda c: c["accessors"][0].update(count="many"), "malformed"),
    "nothing where a list belongs": (lambda c: c.update(nodes=None), "malformed"),
    "its own ancestor": (lambda c: c.update(nodes=[{"mesh": 0, "children": [0]}]), "ancestors"),
    "stretched": (lambda c: c["nodes"][0].update(scale=[1, 2, 1]), "stretches"),
    "mirrored": (lambda c: c["nodes"][0].update(scale=[-1, 1, 1]), "mirrors"),
    "different lengths": (lambda c: c["accessors"][2].update(count=3), "different lengths"),
    "none": (lambda c: [a.update(count=0) for a in c["accessors"]], "empty"),
}


@pytest.mark.parametrize("name", BAD_CONTENTS)
def test_bad_contents_are_named(name: str, saved: tuple[Path, Content, bytes, Gaussians]) -> None:
    path, content, binary, _ = saved
    edit, words = BAD_CONTENTS[name]
    content = copy.deepcopy(content)
    edit(content)
    with pytest.raises(GaussiansError, match=words) as caught:
        load_glb(write(path, content, binary))
    assert "a.glb" in str(caught.value)


def test_nodes_far_away_keep_their_splats_apart(tmp_path: Path) -> None:
    """A node's translation is a double; its splats are single precision near it."""
    gaussians = make_gaussians(12)
    save_glb(gaussians, tmp_path / "a.glb")
    content, binary = parts(tmp_path / "a.glb")
    content["nodes"][0]["translation"] = [512345.0, 250.0, 5432109.0]
    back = load_glb(write(tmp_path / "a.glb", content, binary))
    expected = gaussians.means.double() + GLTF.apply_points(torch.tensor([512345.0, 250.0, 5432109.0]).double())
    torch.testing.assert_close(back.world_means, expected, atol=1e-6, rtol=0)


def test_bad_bytes_are_named(saved: tuple[Path, Content, bytes, Gaussians]) -> None:
    path, content, binary, _ = saved
    whole = path.read_bytes()
    cases = [
        (b"", "not a .glb"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "not a .glb"),
        (whole[:15], "cut off"),
        (whole[: len(whole) // 3], "cut off"),
        (whole[:-1], "cut off"),
        (whole[:4] + struct.pack("<I", 1) + whole[8:], "version 2"),
        (whole[:20] + b"!" + whole[21:], "not valid JSON"),
        (write(path, [1], binary).read_bytes(), "not glTF"),
        (write(path, content, b"").read_bytes(), "cut off"),
    ]
    for data, words in cases:
        path.write_bytes(data)
        with pytest.raises(GaussiansError, match=words):
            load_glb(path)


def test_broken_points_are_left_out_and_counted(saved: tuple[Path, Content, bytes, Gaussians]) -> None:
    path, content, binary, gaussians = saved
    nan = bytearray(binary)
    nan[0:4] = struct.pack("<f", np.nan)
    with pytest.warns(IlrmWarning, match="left out 1 of 12"):
        back = load_glb(write(path, content, bytes(nan)))
    torch.testing.assert_close(back.means, gaussians.means[1:])


@pytest.mark.parametrize("nodes", [2001, 100_000])
def test_one_mesh_in_countless_places_is_refused_at_once(
    nodes: int, saved: tuple[Path, Content, bytes, Gaussians]
) -> None:
    path, content, binary, _ = saved
    content = copy.deepcopy(content)
    # Every hundred nodes hang on a long chain, so that finding their places alone would take minutes.
    content["nodes"] = [{"mesh": 0, "children": [i + 1]} if (i + 1) % 900 else {"mesh": 0} for i in range(nodes - 1)]
    content["nodes"].append({"mesh": 0})
    started = time.process_time()
    with pytest.raises(GaussiansError, match=r"(more than|at) \d+ nodes"):
        load_glb(write(path, content, binary))
    assert time.process_time() - started < 30


def test_a_mesh_in_many_places(saved: tuple[Path, Content, bytes, Gaussians]) -> None:
    path, content, binary, gaussians = saved
    content = copy.deepcopy(content)
    content["nodes"] = [{"mesh": 0, "translation": [i, 0, 0], "children": [i + 1]} for i in range(49)]
    content["nodes"].append({"mesh": 0})
    back = load_glb(write(path, content, binary))
    assert len(back) == 50 * len(gaussians)
    moved = GLTF.apply_points(torch.tensor([float(sum(range(49))), 0.0, 0.0]).double())  # the last one sums all up
    torch.testing.assert_close(back.means[-len(gaussians) :], gaussians.means + moved.float(), atol=1e-3, rtol=0)


def test_extras_of_other_programs_are_no_reason_to_refuse(saved: tuple[Path, Content, bytes, Gaussians]) -> None:
    path, content, binary, _ = saved
    content = copy.deepcopy(content)
    primitive(content)["extras"] = ["antialiased"]
    assert not load_glb(write(path, content, binary)).antialiased
