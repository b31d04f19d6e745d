"""Files of torch.save whose tensors are read when they are asked for.

torch.load builds every tensor of a file at once, for a chunk of 4,000 photos about half a second, and a training run
opens a chunk for almost every scene. Here the pickled outline is read (with nothing but lists, texts, numbers and
places of tensors allowed in it) and the bytes of a tensor only on demand.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

_DTYPES = {
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "BoolStorage": torch.bool,
}
_LOCAL_HEADER = 30  # bytes of a zip entry before its name and extra field, whose lengths stand at its end


class _Storage(NamedTuple):
    """A run of values in a file: ``size`` bytes behind the zip entry's header at ``header``."""

    path: Path
    header: int
    size: int
    dtype: torch.dtype


class LazyTensor(NamedTuple):
    """A tensor in a file."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def read(self) -> Tensor:
        """The values, in memory of their own.

        Raises:
            OSError, RuntimeError, ValueError: the file has changed, or its outline contradicts its data.
        """
        data = _read(self.storage.path, self.storage.header, self.storage.size)
        if not data:
            return torch.empty(self.shape, dtype=self.storage.dtype)
        values = torch.frombuffer(data, dtype=self.storage.dtype)
        return torch.as_strided(values, self.shape, self.stride, self.offset)

    @property
    def is_byte_string(self) -> bool:
        """Whether it is a whole run of bytes, in order."""
        whole = self.offset == 0 and self.shape == (self.storage.size,) and self.stride == (1,)
        return whole and self.storage.dtype == torch.uint8


class LazyBytes(Sequence[Tensor]):
    """Many byte strings in one file, each a uint8 tensor (n,) when asked for; 16 bytes of memory for each."""

    def __init__(self, strings: Sequence[LazyTensor]) -> None:
        assert all(string.is_byte_string for string in strings)
        self._path = strings[0].storage.path
        self._places = np.array([(string.storage.header, string.storage.size) for string in strings])

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(index, slice):
            return [self[at] for at in range(len(self))[index]]
        header, size = self._places[index].tolist()
        return torch.frombuffer(_read(self._path, header, size), dtype=torch.uint8)


def _read(path: Path, header: int, size: int) -> bytearray:
    with path.open("rb") as file:
        file.seek(header)
        lengths = file.read(_LOCAL_HEADER)[-4:]
        file.seek(sum(int.from_bytes(lengths[at : at + 2], "little") for at in (0, 2)), io.SEEK_CUR)
        data = bytearray(file.read(size))
    if len(data) != size:
        raise OSError(f"{path} ends before its data")
    return data


def load_lazily(path: Path) -> Any:
    """The value saved in a file, with ``LazyTensor`` in place of its tensors.

    Files that hold anything else (or are compressed) are read by torch.load with weights_only, with plain tensors.

    Raises:
        Exception: of many kinds, where the file is damaged or wants to run code.
    """
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries.values())
        outline = next((name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")), None)
        if stored and outline is not None and _little_endian(archive, outline):
            try:
                return _Outline(archive.read(outline), path, outline.removesuffix("data.pkl"), entries).load()
            except pickle.UnpicklingError:
                pass  # not a plain outline: torch.load knows what else is safe
    return torch.load(path, map_location="cpu", weights_only=True, mmap=stored)


def _little_endian(archive: zipfile.ZipFile, outline: str) -> bool:
    try:
        return archive.read(outline.replace("data.pkl", "byteorder")) == b"little"
    except KeyError:  # files of older versions do not say
        return True


class _Outline(pickle.Unpickler):
    """Reads data.pkl; every name in it that is not one of a few harmless ones is refused."""

    def __init__(self, data: bytes, path: Path, prefix: str, entries: dict[str, zipfile.ZipInfo]) -> None:
        super().__init__(io.BytesIO(data))
        self._path, self._prefix, self._entries = path, prefix, entries

    def find_class(self, module_name: str, global_name: str) -> Callable[..., Any] | torch.dtype:
        if (module_name, global_name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _lazy_tensor
        if (module_name, global_name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module_name == "torch" and global_name in _DTYPES:
            return _DTYPES[global_name]
        raise pickle.UnpicklingError(f"{module_name}.{global_name} is not allowed in a file of tensors")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, name, _, count = pid
        entry = self._entries.get(f"{self._prefix}data/{name}")
        if kind != "storage" or entry is None or entry.file_size != count * dtype.itemsize:
            raise ValueError(f"its outline does not fit its data (storage {name!r})")
        return _Storage(self._path, entry.header_offset, entry.file_size, dtype)


def _lazy_tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> LazyTensor:
    return LazyTensor(storage, offset, shape, stride)
