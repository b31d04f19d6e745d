"""The .spz format of Niantic: quantised attributes, one after the other, in one gzip stream.

A header of 16 bytes (magic, version, count, SH degree, fractional bits, flags, 0; bit 0 of the flags marks anti-aliased
splats) is followed by, for all Gaussians: positions in 24-bit fixed point, opacities in 8 bits, colours (degree 0) in 8
bits, logarithms of scales in 8 bits, rotations (version 2: x y z in 8 bits each, w >= 0; version 3: the three smaller
components in 10 bits each), SH in 8 bits. Axes are x right, y up, z backwards; y and z, and SH accordingly, are flipped
when reading and writing.
Layout: https://github.com/nianticlabs/spz#file-format

Version 3 is written. Versions 2 to 4 are read; version 4 has the same attributes in zstd streams.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ilrm.core.errors import GaussiansError
from ilrm.core.gaussians import Gaussians
from ilrm.splats import smallest_three
from ilrm.splats.axes import OPENGL
from ilrm.splats.checks import check_writable, keep_possible
from ilrm.splats.containers.spz import Attributes, read_attributes, write_attributes

_POSITION_LIMIT = (1 << 23) - 1
# Positions are 24-bit numbers divided by 1 << bits.
_MOST_FRACTIONAL_BITS = 24
_COLOUR_SCALE = 0.15
_LOG_SCALE_STEPS, _LEAST_LOG_SCALE = 16.0, -10.0
_LARGEST_LOG_SCALE = 255 / _LOG_SCALE_STEPS + _LEAST_LOG_SCALE
# Quantisation steps of the SH bytes: the format's usual ones, coarser than necessary, for better compression.
_SH_STEP_DEGREE_1, _SH_STEP_HIGHER = 8, 16
_ROTATION_MAGNITUDE = (1 << 9) - 1


def save_spz(gaussians: Gaussians, path: Path | str) -> None:
    """Write N Gaussians, quantised (see the module docstring).

    The fixed point of positions is chosen for the scene's extent: the step is 2^-23 to 2^-22 of its largest coordinate.
    Scales are clamped to 4.5e-5 .. 379 world units.

    Raises:
        GaussiansError: none, batched, NaN or infinite values; or positions or scales so far outside the format's fixed
            range that clamping them would be visible.
        OutputError: the file cannot be written.
    """
    check_writable(gaussians, path)
    g = gaussians.detach().to("cpu", torch.float32).transform(OPENGL)
    _check_range(g, path)
    bits = _fractional_bits(g.means.abs().max().item())
    logs = np.log(g.scales.numpy().astype(np.float64).clip(math.exp(_LEAST_LOG_SCALE)))
    colours = g.sh[:, 0].numpy() * (_COLOUR_SCALE * 255) + 127.5
    attributes = Attributes(
        version=3,
        degree=g.sh_degree,
        fractional_bits=bits,
        antialiased=g.antialiased,
        positions=_encode_positions(g.means.numpy(), bits),
        alphas=_bytes(g.opacities.numpy() * 255)[:, None],
        colours=_bytes(colours),
        scales=_bytes((logs - _LEAST_LOG_SCALE) * _LOG_SCALE_STEPS),
        rotations=_encode_rotations(g.quats.numpy().astype(np.float64)),
        sh=_encode_sh(g.sh[:, 1:].numpy()),
    )
    write_attributes(attributes, path)


def load_spz(path: Path | str) -> Gaussians:
    """Read N Gaussians of SH degree 0 to 3.

    Raises:
        GaussiansError: no such file, not an .spz, cut off, damaged, a decompression bomb, or empty.
        MissingExtraError: version 4 without the package zstandard.
    """
    a = read_attributes(Path(path))
    values = {
        "means": _decode_positions(a.positions, a.fractional_bits),
        "scales": np.exp(a.scales / _LOG_SCALE_STEPS + _LEAST_LOG_SCALE),
        "quats": _decode_first_three(a.rotations) if a.version == 2 else _decode_rotations(a.rotations),
        "opacities": a.alphas[:, 0] / 255,
        "sh": np.concatenate([(a.colours[:, None] / 255 - 0.5) / _COLOUR_SCALE, (a.sh - 128.0) / 128], axis=1),
    }
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value, np.float32)) for name, value in values.items()}
    return keep_possible(Gaussians(**tensors, antialiased=a.antialiased, background=None), path).transform(OPENGL)


def _check_range(gaussians: Gaussians, path: Path | str) -> None:
    largest, extent = gaussians.scales.amax(dim=1).log(), gaussians.means.abs().max().item()
    if extent > _POSITION_LIMIT or largest.max() > _LARGEST_LOG_SCALE:
        raise GaussiansError(
            f"{path}: an .spz file cannot store positions up to {extent:.4g} with scales up to "
            f"{largest.max().exp():.4g} world units.",
            expected=f"positions within {_POSITION_LIMIT} and scales within {math.exp(_LARGEST_LOG_SCALE):.0f}",
            fix="shrink the world (ilrm export --scale 0.01), or remove distant Gaussians",
        )
    if largest.median() < _LEAST_LOG_SCALE:
        raise GaussiansError(
            f"{path}: most Gaussians are smaller than {math.exp(_LEAST_LOG_SCALE):.2g} world units, the smallest scale "
            "that an .spz file can store.",
            fix="enlarge the world (ilrm export --scale 100)",
        )


def _fractional_bits(extent: float) -> int:
    """The largest number of fractional bits with which coordinates up to ``extent`` fit into 24 bits."""
    bits = math.floor(math.log2(_POSITION_LIMIT / extent)) if extent > 0 else _MOST_FRACTIONAL_BITS
    return min(max(bits, 0), _MOST_FRACTIONAL_BITS)


def _encode_positions(means: NDArray[np.float32], bits: int) -> NDArray[np.uint8]:
    """(N, 9): x y z as little-endian 24-bit integers in two's complement."""
    fixed = np.rint(means.astype(np.float64) * (1 << bits)).astype("<i4")
    return np.ascontiguousarray(fixed[..., None].view(np.uint8)[..., :3].reshape(len(means), 9))


def _decode_positions(data: NDArray[np.uint8], bits: int) -> NDArray[np.float64]:
    wide = np.zeros((len(data), 3, 4), np.uint8)
    wide[..., 1:] = data.reshape(-1, 3, 3)  # in the upper bytes, so that the arithmetic shift keeps the sign
    return (wide.view("<i4")[..., 0] >> 8) / float(1 << bits)


def _encode_rotations(quats: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(N, 4): index of the largest of xyzw in the upper two bits, the others as sign and 9 bits each."""
    largest, others = smallest_three.split(quats[:, [1, 2, 3, 0]])
    word = largest.astype(np.uint32)
    for column in range(3):
        magnitude = np.rint(np.abs(others[:, column]) * (_ROTATION_MAGNITUDE / math.sqrt(0.5)))
        magnitude = magnitude.clip(0, _ROTATION_MAGNITUDE).astype(np.uint32)
        word = (word << np.uint32(10)) | ((others[:, column] < 0).astype(np.uint32) << np.uint32(9)) | magnitude
    return word.astype("<u4").view(np.uint8).reshape(-1, 4)


def _decode_rotations(data: NDArray[np.uint8]) -> NDArray[np.float64]:
    word = np.ascontiguousarray(data).view("<u4")[:, 0]
    others = np.empty((len(word), 3))
    for column, shift in enumerate((20, 10, 0)):
        part = word >> np.uint32(shift)
        magnitude = (part & np.uint32(_ROTATION_MAGNITUDE)) * (math.sqrt(0.5) / _ROTATION_MAGNITUDE)
        others[:, column] = np.where(part & np.uint32(1 << 9), -magnitude, magnitude)
    return smallest_three.join(word >> np.uint32(30), others)[:, [3, 0, 1, 2]]


def _decode_first_three(data: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Version 2: x y z; w >= 0 is recomputed."""
    xyz = data / 127.5 - 1
    w = np.sqrt(np.maximum(0.0, 1 - np.square(xyz).sum(axis=1, keepdims=True)))
    quats = np.concatenate([w, xyz], axis=1)
    return quats / np.linalg.norm(quats, axis=1, keepdims=True).clip(1e-6)


def _encode_sh(sh: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(N, K - 1, 3) coefficients in [-1, 1) as bytes 128 + 128 c, rounded to multiples of the step of their degree."""
    steps = np.full((sh.shape[1], 1), float(_SH_STEP_HIGHER))
    steps[:3] = _SH_STEP_DEGREE_1
    codes = np.rint((sh * 128 + 128) / steps) * steps
    return codes.clip(0, 255).astype(np.uint8)


def _bytes(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.rint(values).clip(0, 255).astype(np.uint8)
