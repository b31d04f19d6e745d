"""The compressed PLY of PlayCanvas and SuperSplat: 16 bytes per Gaussian, plus one per higher SH coefficient.

Gaussians are sorted along a Morton curve. Each 256 of them share a row of the element ``chunk``: minimum and maximum of
position, log scale and colour. ``vertex`` contains four 32-bit words relative to that row: position and scale in 11, 10
and 11 bits (x highest); rotation as the index of the largest component of wxyz and the other three in 10 bits each;
colour and opacity in 8 bits each (red highest). ``sh`` contains f_rest, channel-major, with one byte for [-4, 4].
Coordinates are those of the plain PLY: the scene's own world frame.
Layout: https://developer.playcanvas.com/user-manual/gaussian-splatting/formats/ply/
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ilrm.core.errors import GaussiansError
from ilrm.core.gaussians import Gaussians
from ilrm.core.spherical_harmonics import C0
from ilrm.files import atomic_file
from ilrm.splats import smallest_three
from ilrm.splats.checks import check_writable, keep_possible
from ilrm.splats.containers.ply import PlyContent, Tables, background_comment, mode_comment, offset_comment

FloatArray = NDArray[np.float64]

_CHUNK = 256
_BOUNDS = [
    *(f"{end}_{axis}" for end in ("min", "max") for axis in "xyz"),
    *(f"{end}_scale_{axis}" for end in ("min", "max") for axis in "xyz"),
    *(f"{end}_{colour}" for end in ("min", "max") for colour in "rgb"),
]
_WORDS = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
_XYZ_BITS, _COLOUR_BITS, _QUAT_BITS = (11, 10, 11), (8, 8, 8, 8), (10, 10, 10)
_LARGEST_LOG_SCALE = 20.0  # other writers have the same limit
_SH_RANGE = 8.0
_REST_COUNTS = (0, 9, 24, 45)


def save_compressed_ply(gaussians: Gaussians, path: Path | str) -> None:
    """Write N Gaussians atomically, reordered and quantised (see the module docstring).

    Raises:
        GaussiansError: there are none, they are batched, or some have NaN or infinite values.
        OutputError: the file cannot be written.
    """
    check_writable(gaussians, path)
    g = gaussians.detach().to("cpu", torch.float32)
    g = g[torch.from_numpy(_morton_order(g.means.numpy()))]
    scales = g.scales.numpy().astype(np.float64)
    logs = np.log(scales.clip(np.exp(-_LARGEST_LOG_SCALE), np.exp(_LARGEST_LOG_SCALE)))
    position, position_bounds = _relative(g.means.numpy().astype(np.float64))
    scale, scale_bounds = _relative(logs)
    colour, colour_bounds = _relative(0.5 + C0 * g.sh[:, 0].numpy().astype(np.float64))
    opacity = g.opacities.numpy().astype(np.float64)[:, None]
    words = [
        _pack(position, _XYZ_BITS),
        _pack_rotations(g.quats.numpy().astype(np.float64)),
        _pack(scale, _XYZ_BITS),
        _pack(np.concatenate([colour, opacity], axis=1), _COLOUR_BITS),
    ]
    rest = g.sh[:, 1:].transpose(1, 2).flatten(1).numpy()
    codes = ((rest / _SH_RANGE + 0.5) * 256).clip(0, 255).astype(np.uint8)
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        comments = [*offset_comment(g.origin.numpy()), *mode_comment(g.antialiased), *background_comment(g.background)]
        file.write(_header(len(g), codes.shape[1], comments))
        file.write(np.concatenate([position_bounds, scale_bounds, colour_bounds], axis=1).astype("<f4").tobytes())
        file.write(np.stack(words, axis=1).astype("<u4").tobytes())
        file.write(codes.tobytes())


def is_compressed(tables: Tables) -> bool:
    """Whether the tables of a PLY are those of a compressed one."""
    return "packed_position" in (tables["vertex"].dtype.names or ())


def decode(content: PlyContent, path: Path | str) -> Gaussians:
    """The Gaussians of a compressed PLY. Raises GaussiansError."""
    tables = content.tables
    vertex = tables["vertex"]
    chunk = tables.get("chunk", np.empty(0, np.dtype([])))
    stored = vertex.dtype.names or ()
    bounds = {name: chunk[name].astype(np.float64) for name in chunk.dtype.names or ()}
    if "min_r" not in bounds:  # the first version of the format has no bounds for colours
        bounds |= {f"{end}_{c}": np.full(len(chunk), float(end == "max")) for end in ("min", "max") for c in "rgb"}
    lacking = [*(name for name in _WORDS if name not in stored), *(name for name in _BOUNDS if name not in bounds)]
    if lacking:
        raise GaussiansError(f"{path} is not a complete compressed PLY: it lacks {', '.join(lacking)}.")
    count, chunks = len(vertex), -(-len(vertex) // _CHUNK)
    if len(chunk) < chunks:
        raise GaussiansError(f"{path} has {len(chunk)} chunks.", expected=f"{chunks} for {count} Gaussians")
    position, rotation, scale, colour = (vertex[name].astype(np.uint32) for name in _WORDS)
    rgba = _unpack(colour, _COLOUR_BITS)
    sh0 = (_absolute(rgba[:, :3], bounds, "r", "g", "b") - 0.5) / C0
    values = {
        "means": _absolute(_unpack(position, _XYZ_BITS), bounds, "x", "y", "z"),
        "scales": np.exp(_absolute(_unpack(scale, _XYZ_BITS), bounds, "scale_x", "scale_y", "scale_z")),
        "quats": _unpack_rotations(rotation),
        "opacities": rgba[:, 3],
        "sh": np.concatenate([sh0[:, None], _rest(tables.get("sh"), count, path)], axis=1),
    }
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value, np.float32)) for name, value in values.items()}
    origin = torch.from_numpy(content.world_offset(path))
    gaussians = Gaussians(**tensors, origin=origin, antialiased=content.antialiased, background=content.background)
    return keep_possible(gaussians, path)


def _rest(table: NDArray[np.void] | None, count: int, path: Path | str) -> NDArray[np.float32]:
    """(N, K - 1, 3) higher coefficients; K is 1 without the element "sh"."""
    names = [] if table is None else [name for name in table.dtype.names or () if name.startswith("f_rest_")]
    if table is None or not names:
        return np.zeros((count, 0, 3), np.float32)
    if (
        len(names) not in _REST_COUNTS
        or len(table) != count
        or set(names) != {f"f_rest_{i}" for i in range(len(names))}
    ):
        raise GaussiansError(
            f"{path} has {len(names)} f_rest properties for {len(table)} Gaussians.",
            expected=f"0, 9, 24 or 45 (SH degree 0 to 3) for {count}",
        )
    codes = np.stack([table[f"f_rest_{i}"] for i in range(len(names))], axis=1).astype(np.float32)
    shares = np.where(codes == 0, 0.0, np.where(codes == 255, 1.0, (codes + 0.5) / 256))
    return ((shares - 0.5) * _SH_RANGE).astype(np.float32).reshape(count, 3, -1).transpose(0, 2, 1)


def _header(count: int, rest: int, comments: list[str]) -> bytes:
    lines = ["ply", "format binary_little_endian 1.0", f"element chunk {-(-count // _CHUNK)}"]
    lines += [f"property float {name}" for name in _BOUNDS]
    lines += [f"element vertex {count}", *(f"property uint {name}" for name in _WORDS)]
    if rest:
        lines += [f"element sh {count}", *(f"property uchar f_rest_{i}" for i in range(rest))]
    return "\n".join([*lines, *comments, "end_header", ""]).encode()


def _relative(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Values (N, 3) as shares of the range of their chunk, and the chunks' bounds (C, 6), minima first."""
    starts = np.arange(0, len(values), _CHUNK)
    # Bounds are first rounded to float32, as stored, so that shares refer to the range that a reader uses.
    low = np.minimum.reduceat(values, starts).astype(np.float32).astype(np.float64)
    high = np.maximum.reduceat(values, starts).astype(np.float32).astype(np.float64)
    of_chunk = np.arange(len(values)) // _CHUNK
    span = np.where(high > low, high - low, np.inf)
    return (values - low[of_chunk]) / span[of_chunk], np.concatenate([low, high], axis=1)


def _absolute(shares: FloatArray, bounds: dict[str, FloatArray], *names: str) -> FloatArray:
    of_chunk = np.arange(len(shares)) // _CHUNK
    low = np.stack([bounds[f"min_{name}"] for name in names], axis=1)[of_chunk]
    high = np.stack([bounds[f"max_{name}"] for name in names], axis=1)[of_chunk]
    return low + shares * (high - low)


def _pack(shares: FloatArray, bits: tuple[int, ...]) -> NDArray[np.uint32]:
    """Pack shares (N, len(bits)) in [0, 1] into one word each, the first in the highest bits."""
    word = np.zeros(len(shares), np.uint32)
    for column, width in enumerate(bits):
        most = (1 << width) - 1
        word = (word << np.uint32(width)) | np.rint(shares[:, column] * most).clip(0, most).astype(np.uint32)
    return word


def _unpack(word: NDArray[np.uint32], bits: tuple[int, ...]) -> FloatArray:
    shares = np.empty((len(word), len(bits)))
    shift = sum(bits)
    for column, width in enumerate(bits):
        shift -= width
        most = (1 << width) - 1
        shares[:, column] = ((word >> np.uint32(shift)) & np.uint32(most)) / most
    return shares


def _pack_rotations(quats: FloatArray) -> NDArray[np.uint32]:
    largest, others = smallest_three.split(quats)
    return _pack(others * np.sqrt(0.5) + 0.5, _QUAT_BITS) | (largest.astype(np.uint32) << np.uint32(30))


def _unpack_rotations(word: NDArray[np.uint32]) -> FloatArray:
    return smallest_three.join(word >> np.uint32(30), (_unpack(word, _QUAT_BITS) - 0.5) / np.sqrt(0.5))


def _morton_order(means: NDArray[np.float32]) -> NDArray[np.intp]:
    """Order of points (N, 3) along a Morton curve through their bounding box, with 21 bits per axis."""
    low, high = means.min(axis=0), means.max(axis=0)
    span = np.where(high > low, high.astype(np.float64) - low, 1.0)
    cells = ((means - low) / span * ((1 << 21) - 1)).astype(np.uint64)
    code = np.zeros(len(means), np.uint64)
    for axis in range(3):
        spread = cells[:, axis]
        # Each step splits the runs of adjacent bits in half, until two zeros follow every bit.
        for shift, mask in _SPREAD:
            spread = (spread | (spread << np.uint64(shift))) & np.uint64(mask)
        code |= spread << np.uint64(axis)
    return np.argsort(code, kind="stable")


_SPREAD = (
    (32, 0x001F00000000FFFF),
    (16, 0x001F0000FF0000FF),
    (8, 0x100F00F00F00F00F),
    (4, 0x10C30C30C30C30C3),
    (2, 0x1249249249249249),
)
