"""A lazy, safe reader for files of torch.save.

torch.load builds all tensors of a file at once: half a second for a chunk of 4,000 photos, and training opens a chunk
for almost every scene. Here only the pickled outline is read (see ``torch_outline``); the bytes of a tensor are read on
demand. Files are not trusted: nothing in them is run, no tensor is larger than its data, and compressed files may not
inflate without limit.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from ilrm.files.torch_outline import read_outline

_LOCAL_HEADER = 30  # bytes of a zip entry's header; its last 4 are the lengths of the name and extra field that follow
# A zip entry may declare any size. torch.save does not compress, and photos and weights compress by less than 2.
_MAX_INFLATION = 50
_MOST_DIMENSIONS = 16
# How often tensors may share their data on average: weights may be tied, and a photo may be listed twice.
_MOST_SHARED = 8
# The first two values of the layout before torch 1.6, which many published weights still have.
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class Storage(NamedTuple):
    """A contiguous block of values in a file, to which tensors refer.

    Attributes:
        path: the file.
        start: offset of the zip entry's header, or of the values themselves if ``no_header``.
        size: bytes of the values.
        dtype: of the values.
        no_header: the legacy layout, which is not a zip file.
        inflated: the values, if the file stores them compressed.
    """

    path: Path
    start: int
    size: int
    dtype: torch.dtype
    no_header: bool = False
    inflated: bytearray | None = None


class LazyTensor(NamedTuple):
    """A tensor in a file; all of its values have been checked to lie within its storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """Read the values into new memory (a view of the storage if that was compressed).

        Raises:
            OSError: the file has changed.
        """
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        span = 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        start, size = self.offset * self.dtype.itemsize, span * self.dtype.itemsize
        if self.storage.inflated is not None:
            data: Any = memoryview(self.storage.inflated)[start : start + size]
        else:
            data = _read(self.storage.path, self.storage.start, self.storage.no_header, start, size)
        return torch.as_strided(torch.frombuffer(data, dtype=self.dtype), self.shape, self.stride)

    @property
    def is_byte_string(self) -> bool:
        """Whether it is a one-dimensional, contiguous uint8 tensor."""
        return self.dtype == torch.uint8 and self.ndim == 1 and (self.stride == (1,) or self.shape[0] < 2)


class LazyBytes(Sequence[Tensor]):
    """Many byte strings in one file, each read as a uint8 tensor (n,) on access; 32 bytes of memory per string."""

    def __init__(self, strings: Sequence[LazyTensor]) -> None:
        assert all(string.is_byte_string and string.storage.inflated is None for string in strings)
        self._path = strings[0].storage.path
        self._places = np.array([(x.storage.start, x.storage.no_header, x.offset, x.nbytes) for x in strings])

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(index, slice):
            return [self[at] for at in range(len(self))[index]]
        start, no_header, offset, size = self._places[index].tolist()
        if size == 0:
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(_read(self._path, start, bool(no_header), offset, size), dtype=torch.uint8)


def share_reasonably(tensors: Sequence[LazyTensor]) -> bool:
    """Whether the tensors, which may overlap, have no more than a few times the bytes of their storages."""
    held = {(x.storage.path, x.storage.start): x.storage.size for x in tensors}
    return sum(x.nbytes for x in tensors) <= _MOST_SHARED * sum(held.values())


def _read(path: Path, start: int, no_header: bool, offset: int, size: int) -> bytearray:
    with path.open("rb") as file:
        file.seek(start)
        if not no_header:
            lengths = file.read(_LOCAL_HEADER)[-4:]
            offset += sum(int.from_bytes(lengths[at : at + 2], "little") for at in (0, 2))
        file.seek(offset, io.SEEK_CUR)
        data = bytearray(file.read(size))
    if len(data) != size:
        raise OSError(f"{path} ends before its data")
    return data


def load_lazily(path: Path) -> Any:
    """The value saved in a file, with ``LazyTensor`` in place of its tensors and parameters.

    Returns:
        What ``read_outline`` says.

    Raises:
        pickle.UnpicklingError: it contains something else; the message names it.
        Exception: of many kinds, among them ValueError, EOFError and those of zipfile: it is not a file of torch.save,
            damaged or cut short, or declares more data than it has.
    """
    if not zipfile.is_zipfile(path):
        return _load_legacy(path)
    with zipfile.ZipFile(path) as archive:
        return _Archive(archive, path).load()


class _Archive:
    """A zip file as torch.save writes it: NAME/data.pkl, NAME/byteorder and NAME/data/0, 1, ..."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self._zip, self._path = archive, path
        self._entries = {entry.filename: entry for entry in archive.infolist()}
        self._inflated: dict[str, bytearray] = {}
        held, promised = path.stat().st_size, sum(entry.file_size for entry in archive.infolist())
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in self._entries.values())
        if promised > (held if stored else _MAX_INFLATION * held):
            raise ValueError(f"it has {held} bytes but would inflate to {promised}")

    def load(self) -> Any:
        name = next((name for name in self._entries if name.count("/") == 1 and name.endswith("/data.pkl")), None)
        if name is None:
            raise ValueError("it has no outline (data.pkl)")
        self._prefix = name.removesuffix("data.pkl")
        order = f"{self._prefix}byteorder"  # absent in files of older versions
        if order in self._entries and self._zip.read(order) != b"little":
            raise ValueError("its numbers are not little-endian")
        return read_outline(self._zip.read(name), storage=self._storage, tensor=_tensor)[0]

    def _storage(self, place: Any) -> Storage:
        name, dtype, count = _place(place)
        entry = self._entries.get(f"{self._prefix}data/{name}")
        if entry is None or entry.file_size != count * dtype.itemsize:
            raise ValueError(f"its outline does not fit its data (storage {name!r})")
        if entry.compress_type == zipfile.ZIP_STORED:
            return Storage(self._path, entry.header_offset, entry.file_size, dtype)
        if name not in self._inflated:
            self._inflated[name] = bytearray(self._zip.read(entry))
        return Storage(self._path, entry.header_offset, entry.file_size, dtype, inflated=self._inflated[name])


def _load_legacy(path: Path) -> Any:
    """The layout before torch 1.6.

    Four pickles (magic number, protocol, machine, value), a pickled list of storage names, then the storages, each
    after its length.
    """
    with path.open("rb") as file:
        if not file.read(1):
            raise EOFError("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            at = 0
            for expected in (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
                mark, at = read_outline(data, at, storage=_place, tensor=_tensor)
                if mark != expected:
                    raise ValueError("it is not a file of torch.save")
            machine, at = read_outline(data, at, storage=_place, tensor=_tensor)
            if not isinstance(machine, dict) or machine.get("little_endian") is not True:
                raise ValueError("its numbers are not little-endian")
            # The storages follow the outline that refers to them. A first pass finds out where they are, a second one
            # builds the tensors.
            places: dict[str, tuple[str, torch.dtype, int]] = {}
            _, end = read_outline(
                data, at, storage=lambda x: places.setdefault(_place(x)[0], _place(x)), tensor=lambda *_: None
            )
            names, end = read_outline(data, end, storage=_place, tensor=_tensor)
            storages = _legacy_storages(path, data, end, names, places)
            return read_outline(data, at, storage=lambda x: storages[_place(x)[0]], tensor=_tensor)[0]


def _legacy_storages(
    path: Path, data: mmap.mmap, at: int, names: Any, places: dict[str, tuple[str, torch.dtype, int]]
) -> dict[str, Storage]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or {*names} != {*places}:
        raise ValueError("its outline does not fit its data")
    storages = {}
    for name in names:
        _, dtype, count = places[name]
        if int.from_bytes(data[at : at + 8], "little") != count:
            raise ValueError(f"its outline does not fit its data (storage {name!r})")
        storages[name] = Storage(path, at + 8, count * dtype.itemsize, dtype, no_header=True)
        at += 8 + count * dtype.itemsize
    if at > len(data):
        raise EOFError("it ends before its data")
    return storages


def _place(place: Any) -> tuple[str, torch.dtype, int]:
    """Name, dtype and number of values of a storage, checked: the file may contain anything here."""
    if type(place) is tuple and len(place) >= 5 and place[0] == "storage" and place[5:] in ((), (None,)):
        _, dtype, name, _, count = place[:5]
        if isinstance(dtype, torch.dtype) and type(name) is str and type(count) is int and count >= 0:
            return name, dtype, count
    raise pickle.UnpicklingError("its outline has an invalid storage")


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any) -> LazyTensor:
    """A tensor within its storage, checked: offset, shape and stride of the file may be anything."""
    if type(storage) is not Storage or type(shape) is not tuple or type(stride) is not tuple:
        raise pickle.UnpicklingError("its outline has an invalid tensor")
    if len(shape) != len(stride) or len(shape) > _MOST_DIMENSIONS:
        raise pickle.UnpicklingError("its outline has an invalid tensor")
    if not all(type(x) is int and x >= 0 for x in (offset, *shape, *stride)):
        raise pickle.UnpicklingError("its outline has an invalid tensor")
    there, count = storage.size // storage.dtype.itemsize, math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if count > 0 and (count > there or last >= there):
        raise ValueError(f"its outline has a tensor of {count} values in a storage of {there}")
    return LazyTensor(storage, offset, shape, stride)
