"""Depth maps are right if they can be read, and left out with one warning if not."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ilrm.core.errors import SceneError
from ilrm.scenes import load_scene
from ilrm.scenes.photos.depth_maps import read_depth
from tests.scenes.files import write_scene, write_transforms

METRES = np.linspace(1.5, 7.5, 24 * 32, dtype=np.float32).reshape(24, 32)


def listed(folder: Path, name: str, count: int = 3):
    """A scene whose first ``count`` views list a depth map."""
    _, data = write_scene(folder)
    for frame in data["frames"][:count]:
        frame["depth_file_path"] = name
    write_transforms(folder, data)
    return folder


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("d.png", lambda p: Image.fromarray((METRES * 1000).round().astype(np.uint16)).save(p)),
        ("d.npy", lambda p: np.save(p, (METRES * 1000).round().astype(np.uint16))),
        ("d.npy", lambda p: np.save(p, (METRES * 1000).round().astype(">i4")[..., None])),
        ("d.npy", lambda p: np.save(p, METRES)),
        ("D.NPY", lambda p: p.write_bytes(npy(METRES.astype(np.float16)))),
        ("d.npy", lambda p: np.save(p, np.asfortranarray(METRES.astype(">f8")))),
        ("d.tiff", lambda p: Image.fromarray(METRES).save(p)),
    ],
)
def test_integers_are_millimetres_and_floats_are_metres(tmp_path, name, save):
    listed(tmp_path, name)
    save(tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scene = load_scene(tmp_path)
    assert scene.depth is not None
    torch.testing.assert_close(scene.depth[1], torch.from_numpy(METRES), atol=4e-3, rtol=0)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, depth=METRES)
    return buffer.getvalue()


def declaring(shape: str, kind: str = "<f4") -> bytes:
    """An .npy file with 64 bytes of data and a header that claims something else."""
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (63 - (10 + len(header)) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(64)


BAD = {
    "npz": zipped(),
    "strings": npy(np.full((24, 32), "far")),
    "bytes": npy(np.full((24, 32), b"far")),
    "structured": npy(np.zeros((24, 32), [("z", "f4"), ("c", "u1")])),
    "void": npy(np.zeros((24, 32), "V4")),
    "complex": npy(METRES.astype(np.complex64)),
    "datetime": npy(np.zeros((24, 32), "datetime64[s]")),
    "timedelta": npy(np.zeros((24, 32), "timedelta64[ms]")),
    "bool": npy(METRES > 3),
    "scalar": npy(np.float32(3)),
    "flat": npy(METRES.ravel()),
    "colours": npy(np.zeros((24, 32, 3), np.float32)),
    "empty": npy(np.zeros((0, 0), np.float32)),
    "no columns": npy(np.zeros((24, 0), np.float32)),
    "other shape": npy(np.ones((24, 24), np.float32)),
    "no bytes": b"",
    "magic alone": b"\x93NUMPY",
    "cut header": npy(METRES)[:40],
    "cut data": npy(METRES)[:-5],
    "unknown version": b"\x93NUMPY\x09\x00" + npy(METRES)[8:],
    "no literal": npy(METRES).replace(b"'descr'", b"'desc\x00'"),
    "unclosed": npy(METRES).replace(b"}", b"("),
    "huge": declaring("(4000000000, 4000000000)"),
    "negative": declaring("(-24, 32)"),
    "odd type": declaring("(4, 4)", "<f3"),
    "text": b"depth, 1, 2, 3",
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD.keys())
def test_arrays_that_are_no_depth_are_left_out_with_one_warning(tmp_path, content):
    listed(tmp_path, "d.npy")
    (tmp_path / "d.npy").write_bytes(content)
    with pytest.warns(UserWarning, match=r"depth of 3 of 3 photos is left out: .*d\.npy") as caught:
        scene = load_scene(tmp_path)
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    assert scene.depth is None
    assert torch.isfinite(scene.images[:]).all()


def test_pickled_arrays_are_never_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path / "trapped").write_text, ("x",)

    np.save(tmp_path / "d.npy", np.array([[Trap()]], dtype=object), allow_pickle=True)
    with pytest.raises(SceneError, match=r"d\.npy"):
        read_depth(tmp_path / "d.npy")
    assert not (tmp_path / "trapped").exists()


def test_absent_exr_8_bit_and_large_maps(tmp_path):
    with pytest.raises(SceneError, match=r"none\.png does not exist"):
        read_depth(tmp_path / "none.png")
    with pytest.raises(SceneError, match=r"none\.npy does not exist"):
        read_depth(tmp_path / "none.npy")
    (tmp_path / "d.exr").write_bytes(b"\x76\x2f\x31\x01\x02\x00\x00\x00" + bytes(64))
    with pytest.raises(SceneError, match=r"d\.exr is an EXR file"):
        read_depth(tmp_path / "d.exr")
    Image.fromarray(np.ones((24, 32), np.uint8)).save(tmp_path / "d.png")
    with pytest.raises(SceneError, match="8-bit image of mode L"):
        read_depth(tmp_path / "d.png")
    np.save(tmp_path / "d.npy", METRES)
    with pytest.raises(SceneError, match="768 values"):
        read_depth(tmp_path / "d.npy", max_pixels=700)


def test_the_other_maps_are_kept(tmp_path):
    _, data = write_scene(tmp_path)
    np.save(tmp_path / "0.npy", METRES)
    for view, frame in enumerate(data["frames"]):
        frame["depth_file_path"] = f"{view}.npy"
    write_transforms(tmp_path, data)
    with pytest.warns(UserWarning, match=r"depth of 2 of 3 photos is left out: .*1\.npy does not exist"):
        scene = load_scene(tmp_path)
    assert scene.depth is not None
    assert scene.depth[0].min() > 1
    assert scene.depth[1:].abs().max() == 0


def test_what_is_no_distance_is_unknown(tmp_path):
    values = METRES.astype(np.float64)
    values[0, :4] = [np.nan, np.inf, -3.0, 1e300]
    np.save(tmp_path / "d.npy", values)
    assert read_depth(tmp_path / "d.npy")[0, :4].tolist() == [0, 0, 0, 0]
    assert read_depth(tmp_path / "d.npy")[0, 4] == METRES[0, 4]
