"""Untrusted files of torch.save: declared sizes cost no memory, and nothing they name is called."""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch

from ilrm.files.torch_files import LazyTensor, load_lazily, share_reasonably
from ilrm.files.torch_outline import Opaque

# Instructions of pickle, as torch.save writes them.
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"


def number(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def storage(name: str = "0", kind: str = "Byte", count: int = 4) -> bytes:
    texts = [b"X" + struct.pack("<I", len(x)) + x.encode() for x in ("storage", name, "cpu")]
    return b"(" + texts[0] + f"ctorch\n{kind}Storage\n".encode() + texts[1] + texts[2] + number(count) + b"tQ"


def tensor(offset: bytes, shape: bytes, stride: bytes, place: bytes | None = None) -> bytes:
    return TENSOR + b"(" + (place or storage()) + offset + shape + stride + b"\x89}tR"


def write(path: Path, outline: bytes, data: bytes = b"abcd", compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + outline + b".")
        archive.writestr("archive/data/0", data)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_values_equal_those_of_torch(tmp_path: Path, zipped: bool) -> None:
    base = torch.arange(24, dtype=torch.float64).reshape(4, 6)
    value = {
        "view": base[1:, ::2].T,
        "again": base[2],
        "half": torch.ones(3, dtype=torch.bfloat16),
        "parameter": torch.nn.Parameter(torch.ones(2, 3)),
        "scalar": torch.tensor(2.5),
        "state": torch.nn.Linear(2, 3).state_dict(),
        "plain": {"nested": [1, -5, 2**40, 0.5, None, True, "ü"], 3: (1, 2, 3, 4)},
    }
    torch.save(value, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    found, expected = load_lazily(tmp_path / "x.pt"), torch.load(tmp_path / "x.pt", weights_only=True)
    assert found["plain"] == expected["plain"]
    assert list(found) == list(expected)
    for name in ("view", "again", "half", "parameter", "scalar"):
        assert isinstance(found[name], LazyTensor)
        assert torch.equal(found[name].read(), expected[name].detach())
    for name, x in found["state"].items():
        assert torch.equal(x.read(), expected["state"][name])


def test_a_tensor_ends_with_its_storage(tmp_path: Path) -> None:
    one, four = number(1), number(4)
    fits = write(tmp_path / "fits.pt", tensor(number(0), four + b"\x85", one + b"\x85"))
    assert bytes(load_lazily(fits).read().tolist()) == b"abcd"
    for i, (offset, shape, stride) in enumerate(
        [
            (number(0), number(2 * 10**10) + b"\x85", number(0) + b"\x85"),  # the same value many times
            (number(1), four + b"\x85", one + b"\x85"),
            (number(0), number(2) + b"\x85", four + b"\x85"),
            (number(0), number(2**62) + number(4) + b"\x86", one + one + b"\x86"),
            (number(-1), four + b"\x85", one + b"\x85"),
            (number(0), number(-4) + b"\x85", one + b"\x85"),
            (number(0), b"N", b"N"),
            (number(0), b"X\x01\x00\x00\x004", one + b"\x85"),
            (b"N", four + b"\x85", one + b"\x85"),
            (number(0), four + b"\x85", one + one + b"\x86"),
            (number(0), b"G@\x10\x00\x00\x00\x00\x00\x00\x85", one + b"\x85"),
            (number(0), b"\x88\x85", one + b"\x85"),
            (number(0), b"(" + one * 20 + b"t", b"(" + one * 20 + b"t"),
        ]
    ):
        with pytest.raises((ValueError, pickle.UnpicklingError), match=r"outline has an? .*tensor"):
            load_lazily(write(tmp_path / f"{i}.pt", tensor(offset, shape, stride)))


@pytest.mark.parametrize(
    "place",
    [
        storage(count=5),
        storage(kind="Double"),
        storage(name="1"),
        storage(name="../../etc/passwd"),
        b"N" + b"Q",
        b"]Q",
        b"(X\x07\x00\x00\x00storageK\x01K\x02K\x03K\x04tQ",
    ],
)
def test_storages_that_are_none_are_refused(tmp_path: Path, place: bytes) -> None:
    with pytest.raises((ValueError, pickle.UnpicklingError), match="outline"):
        load_lazily(write(tmp_path / "x.pt", tensor(number(0), number(1) + b"\x85", number(1) + b"\x85", place)))


@pytest.mark.parametrize(
    "outline",
    [
        b"cbuiltins\nbytearray\n" + number(10**11) + b"\x85R",
        b"ctorch\nFloatTensor\n" + number(10**11) + b"\x85R",
        b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n",
        b"ctorch._utils\n_rebuild_sparse_tensor\n",
        b"N" + b"r" + struct.pack("<I", 2**32 - 2),
        b"\x96" + struct.pack("<Q", 2**40),
        b"X" + struct.pack("<I", 2**32 - 1) + b"abc",
        b"cos\nsystem\nX\x04\x00\x00\x00true\x85R",
        b"cbuiltins\neval\nX\x01\x00\x00\x001\x85R",
        b"ctorch._utils\n_rebuild_tensor_v2\n}b",
        b"ccollections\nOrderedDict\n(]]]tR",
        b"(i" + b"os\nsystem\n",
        b"}" + b")" + b"\x85" * 200_000 + b"Ns",  # its hash would recurse, and end the process
        b"}" + b"Nq\x00" + b"0h\x00h\x00\x86q\x00" * 60 + b"Ns",  # its hash would take forever
        b"}" + b"N" + b"q\x01h\x01\x86" * 60 + b"Ns",
        b"a",
        b"h\x07",
        b"\x87",
        b"t",
        b"NR",
        b"",
    ],
)
def test_what_would_cost_memory_or_time_or_call_is_refused_or_costs_nothing(tmp_path: Path, outline: bytes) -> None:
    file = write(tmp_path / "x.pt", outline)
    tracemalloc.start()
    try:
        found = load_lazily(file)
    except (pickle.UnpicklingError, EOFError) as error:
        found = str(error)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * file.stat().st_size + 2**20
    assert found is None or isinstance(found, Opaque) or "outline" in found or "it holds" in found


def test_zip_files_that_promise_too_much_are_refused(tmp_path: Path) -> None:
    modest = write(tmp_path / "a.pt", tensor(number(0), number(4) + b"\x85", number(1) + b"\x85"), b"abcd", 8)
    assert bytes(load_lazily(modest).read().tolist()) == b"abcd"
    with pytest.raises(ValueError, match="would inflate"):
        load_lazily(write(tmp_path / "b.pt", b"N", bytes(10**6), zipfile.ZIP_DEFLATED))
    stored = bytearray(write(tmp_path / "c.pt", b"N").read_bytes())
    entry = stored.rindex(b"PK\x01\x02")  # the directory's entry of data/0: its sizes are 20 bytes further
    stored[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**31)
    (tmp_path / "c.pt").write_bytes(stored)
    with pytest.raises(ValueError, match="would inflate"):
        load_lazily(tmp_path / "c.pt")


def test_layout_before_zip_files(tmp_path: Path) -> None:
    stream = io.BytesIO()
    torch.save({"a": torch.arange(6.0), "b": torch.ones(2)}, stream, _use_new_zipfile_serialization=False)
    data = stream.getvalue()
    for cut in (0, 1, 20, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "x.pth").write_bytes(data[:cut])
        with pytest.raises((EOFError, ValueError, pickle.UnpicklingError)):
            load_lazily(tmp_path / "x.pth")
    (tmp_path / "x.pth").write_bytes(pickle.dumps({"model": 1}, protocol=2))
    with pytest.raises(ValueError, match=r"not a file of torch\.save"):
        load_lazily(tmp_path / "x.pth")


def test_tensors_that_share_their_data_are_counted(tmp_path: Path) -> None:
    x = torch.zeros(1000)
    torch.save([x] * 8, tmp_path / "few.pt")
    torch.save([x[i:] for i in range(20)], tmp_path / "many.pt")
    assert share_reasonably(load_lazily(tmp_path / "few.pt"))
    assert not share_reasonably(load_lazily(tmp_path / "many.pt"))
