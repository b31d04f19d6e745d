"""The container of an .spz file: headers, gzip (versions 2 and 3), zstd (version 4).

Declared sizes are checked against the file size before decompression, and decompression stops at the declared size.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ilrm.core.errors import GaussiansError, MissingExtraError
from ilrm.files import atomic_file
from ilrm.splats.checks import unreadable

Bytes = NDArray[np.uint8]

_HEADER = struct.Struct("<IIIBBBB")  # magic, version, count, SH degree, fractional bits, flags, reserved
_HEADER_4 = struct.Struct("<IIIBBBBI12x")  # the same with the number of streams, and the offset of their table
_STREAM = struct.Struct("<QQ")  # compressed and inflated bytes
_MAGIC = 0x5053474E
_EXPECTED = "an .spz file of version 2, 3 or 4 with SH degree 0 to 3"
_GZIP_LEVEL = 6
# Quantised scenes compress to a half or a third. A file that declares a larger ratio, and more than a harmless size, is
# a decompression bomb.
_BOMB_RATIO, _HARMLESS_BYTES = 100, 64 << 20
_MOST_FRACTIONAL_BITS = 24
_ANTIALIASED = 1  # bit of the header's flags


@dataclass(frozen=True, eq=False)
class Attributes:
    """Quantised attributes of N Gaussians, as bytes.

    Attributes:
        version: 2, 3 or 4.
        degree: SH degree 0 to 3, K = (degree + 1)^2.
        fractional_bits: of positions.
        antialiased: to be rendered with compensated opacity; a flag of the header.
        positions: (N, 9).
        alphas: (N, 1).
        colours, scales: (N, 3).
        rotations: (N, 3) in version 2, else (N, 4).
        sh: (N, K - 1, 3).
    """

    version: int
    degree: int
    fractional_bits: int
    antialiased: bool
    positions: Bytes
    alphas: Bytes
    colours: Bytes
    scales: Bytes
    rotations: Bytes
    sh: Bytes

    def in_order(self) -> tuple[Bytes, ...]:
        """The arrays in the order of the file."""
        return self.positions, self.alphas, self.colours, self.scales, self.rotations, self.sh


def write_attributes(attributes: Attributes, path: Path | str) -> None:
    """Write version 3, atomically. Raises OutputError."""
    count = len(attributes.positions)
    flags = _ANTIALIASED if attributes.antialiased else 0
    header = _HEADER.pack(_MAGIC, 3, count, attributes.degree, attributes.fractional_bits, flags, 0)
    # No time and no name in the gzip header, so that the same Gaussians give the same bytes.
    with (
        atomic_file(path) as temporary,
        temporary.open("wb") as file,
        gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) as stream,
    ):
        stream.write(header)
        for array in attributes.in_order():
            stream.write(np.ascontiguousarray(array).data if array.size else b"")


def read_attributes(path: Path) -> Attributes:
    """Read versions 2 to 4; see ``load_spz`` for what is refused."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error, _EXPECTED) from error
    if data[:4] == _MAGIC.to_bytes(4, "little"):
        return _read_streams(data, path)
    return _read_gzip(data, path)


def _read_gzip(data: bytes, path: Path) -> Attributes:
    inflate = zlib.decompressobj(wbits=31)
    try:
        start = inflate.decompress(data, _HEADER.size)
        if len(start) < _HEADER.size:
            raise _cut_off(path)
        magic, version, count, degree, bits, flags, _ = _HEADER.unpack(start)
        if magic != _MAGIC:
            raise GaussiansError(f"{path} is a gzip file, but not an .spz file.", expected=_EXPECTED)
        sizes = _sizes(version, count, degree, bits, len(data), path)
        body = bytearray()
        # In pieces, so that a wrong count does not cause a large allocation.
        while (missing := sum(sizes) - len(body)) and (rest := inflate.unconsumed_tail):
            body += inflate.decompress(rest, min(missing, 1 << 24))
        body += inflate.decompress(b"", missing) if missing else b""
        # Reading on either reaches the gzip checksum, which zlib then verifies, or an extension, which is ignored.
        extensions = inflate.decompress(inflate.unconsumed_tail, 1)
    except zlib.error as error:
        raise GaussiansError(
            f"{path} is not an .spz file, or damaged: {error}.", expected=_EXPECTED, fix="copy or export the file again"
        ) from error
    if len(body) < sum(sizes) or not (inflate.eof or extensions):
        raise _cut_off(path)
    return _attributes(version, degree, bits, flags, count, _cut(body, sizes))


def _read_streams(data: bytes, path: Path) -> Attributes:
    """Version 4: an uncompressed header, a table of streams, and one zstd stream per attribute that is not empty."""
    if len(data) < _HEADER_4.size:
        raise _cut_off(path)
    _, version, count, degree, bits, flags, streams, contents = _HEADER_4.unpack_from(data)
    if version < 4:
        raise GaussiansError(f"{path} says it is version {version}, but is not compressed.", expected=_EXPECTED)
    sizes = _sizes(version, count, degree, bits, len(data), path)
    wanted = [size for size in sizes if size]
    offset = contents + _STREAM.size * streams
    if streams != len(wanted) or offset > len(data):
        raise GaussiansError(f"{path} holds {streams} streams, or is cut off.", expected=f"{len(wanted)} whole streams")
    parts = []
    for index, size in enumerate(wanted):
        packed, inflated = _STREAM.unpack_from(data, contents + _STREAM.size * index)
        if inflated != size or offset + packed > len(data):
            raise _cut_off(path)
        parts.append(_zstd(data[offset : offset + packed], size, path))
        offset += packed
    filled = iter(parts)
    return _attributes(version, degree, bits, flags, count, (next(filled) if size else b"" for size in sizes))


def _zstd(data: bytes, size: int, path: Path) -> bytes:
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError("zstandard", "formats", f"Reading {path}, an .spz file of version 4,") from error
    try:
        # Read at most the declared size: the zstd frame has its own size field, which may differ.
        with zstandard.ZstdDecompressor().stream_reader(data) as reader:
            content = reader.read(size)
    except zstandard.ZstdError as error:
        raise GaussiansError(f"{path} is damaged: {error}.", fix="copy or export the file again") from error
    if len(content) < size:
        raise _cut_off(path)
    return content


def _sizes(version: int, count: int, degree: int, bits: int, file_bytes: int, path: Path) -> list[int]:
    """Bytes of each attribute, after checking that the header is plausible for a file of that size."""
    if not 2 <= version <= 4 or degree > 3 or bits > _MOST_FRACTIONAL_BITS:
        raise GaussiansError(
            f"{path} declares version {version}, SH degree {degree} and {bits} fractional bits.", expected=_EXPECTED
        )
    if count == 0:
        raise GaussiansError(f"{path} holds no Gaussians.", expected="at least one")
    higher = 3 * ((degree + 1) ** 2 - 1)
    sizes = [count * each for each in (9, 1, 3, 3, 3 if version == 2 else 4, higher)]
    if sum(sizes) > max(_BOMB_RATIO * file_bytes, _HARMLESS_BYTES):
        raise GaussiansError(
            f"{path} has {file_bytes} bytes but declares {count} Gaussians, which would inflate to {sum(sizes)} bytes.",
            expected=f"at most {_BOMB_RATIO} times the size of the file",
            fix="copy or export the file again",
        )
    return sizes


def _cut(body: bytearray, sizes: list[int]) -> Iterator[memoryview]:
    offset = 0
    for size in sizes:
        yield memoryview(body)[offset : offset + size]
        offset += size


def _attributes(
    version: int, degree: int, bits: int, flags: int, count: int, parts: Iterator[memoryview] | Iterator[bytes]
) -> Attributes:
    positions, alphas, colours, scales, rotations, sh = (np.frombuffer(part, np.uint8) for part in parts)
    return Attributes(
        version=version,
        degree=degree,
        fractional_bits=bits,
        antialiased=bool(flags & _ANTIALIASED),
        positions=positions.reshape(count, 9),
        alphas=alphas.reshape(count, 1),
        colours=colours.reshape(count, 3),
        scales=scales.reshape(count, 3),
        rotations=rotations.reshape(count, -1),
        sh=sh.reshape(count, (degree + 1) ** 2 - 1, 3),
    )


def _cut_off(path: Path) -> GaussiansError:
    return GaussiansError(f"{path} is cut off.", expected=_EXPECTED, fix="copy or export the file again")
