"""Gaussians as glTF: a .glb with the extension KHR_gaussian_splatting, uncompressed.

The file has one mesh of points with linear scales and opacities, rotations xyzw, SH as coefficients per degree, and
colours of the points (COLOR_0) for programs that do not support the extension. The axes of glTF are x left, y up, z
forward; x and y, and SH accordingly, are flipped when reading and writing.
Layout: https://github.com/KhronosGroup/glTF/tree/main/extensions/2.0/Khronos/KHR_gaussian_splatting
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from ilrm.core.cameras import Similarity, local_origin_of
from ilrm.core.errors import GaussiansError
from ilrm.core.gaussians import PER_GAUSSIAN, Gaussians
from ilrm.core.spherical_harmonics import C0
from ilrm.files import atomic_file
from ilrm.splats.axes import GLTF
from ilrm.splats.checks import check_writable, keep_possible
from ilrm.splats.containers.glb import FLOAT, UNSIGNED_BYTE, Glb, read_glb

EXTENSION = "KHR_gaussian_splatting"
_EXPECTED = f"a .glb whose points carry {EXTENSION}"
_SCALE, _ROTATION, _OPACITY = (f"{EXTENSION}:{name}" for name in ("SCALE", "ROTATION", "OPACITY"))
_POINTS, _ARRAY_BUFFER = 0, 34962
_LARGEST_FILE = (1 << 32) - 1
_JSON_CHUNK, _BINARY_CHUNK = b"JSON", b"BIN\0"
# Nodes may place one mesh many times. A file that exceeds these limits is meant to exhaust memory.
_BOMB_RATIO, _HARMLESS_BYTES, _MOST_PARTS = 100, 64 << 20, 2000
# In the primitive's extras, because the extension has no such property.
_ANTIALIASED = "antialiased"


def _sh_names(degree: int) -> list[str]:
    """The attributes of all coefficients up to a degree, in our order."""
    return [f"{EXTENSION}:SH_DEGREE_{band}_COEF_{i}" for band in range(degree + 1) for i in range(2 * band + 1)]


def save_glb(gaussians: Gaussians, path: Path | str) -> None:
    """Write N Gaussians as float32; only the axes are changed.

    Raises:
        GaussiansError: none, batched, NaN or infinite values, or more than a .glb can store (4 GiB).
        OutputError: the file cannot be written.
    """
    check_writable(gaussians, path)
    attributes = _attributes(gaussians)
    content = _description(attributes, gaussians.antialiased)
    binary_bytes = content["buffers"][0]["byteLength"]
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    total = 12 + 8 + len(text) + 8 + binary_bytes
    if total > _LARGEST_FILE:
        raise GaussiansError(
            f"{path}: {len(gaussians)} Gaussians of SH degree {gaussians.sh_degree} need {total} bytes.",
            expected=f"at most {_LARGEST_FILE}, the largest size of a .glb",
            fix="lower the SH degree, keep fewer Gaussians, or write a .ply",
        )
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<4sII", b"glTF", 2, total))
        file.write(struct.pack("<I4s", len(text), _JSON_CHUNK) + text)
        file.write(struct.pack("<I4s", binary_bytes, _BINARY_CHUNK))
        for array in attributes.values():
            file.write(array.data)


def _attributes(gaussians: Gaussians) -> dict[str, NDArray[Any]]:
    """The arrays of the file by attribute."""
    g = gaussians.detach().to("cpu", torch.float32).transform(GLTF)
    diffuse = (0.5 + C0 * g.sh[:, 0]).clamp(0, 1)
    # Vertex colours in glTF are linear, but splats are trained on sRGB values.
    linear = torch.where(diffuse <= 0.04045, diffuse / 12.92, ((diffuse + 0.055) / 1.055) ** 2.4)
    opacities = g.opacities.clamp(0, 1)
    rgba = torch.cat([linear, opacities[:, None]], dim=1)
    arrays: dict[str, torch.Tensor] = {
        "POSITION": g.means,
        "COLOR_0": (rgba * 255).round().to(torch.uint8),
        _SCALE: g.scales.clamp_min(0),
        _ROTATION: F.normalize(g.quats.double(), dim=-1).float()[:, [1, 2, 3, 0]],
        _OPACITY: opacities,
        **{name: g.sh[:, i] for i, name in enumerate(_sh_names(g.sh_degree))},
    }
    return {name: np.ascontiguousarray(value.numpy()) for name, value in arrays.items()}


def _description(attributes: dict[str, NDArray[Any]], antialiased: bool) -> dict[str, Any]:
    """The JSON part of the file, with one buffer view and one accessor per attribute."""
    views, accessors, offset = [], [], 0
    for index, array in enumerate(attributes.values()):
        views.append({"buffer": 0, "byteOffset": offset, "byteLength": array.nbytes, "target": _ARRAY_BUFFER})
        width = array.shape[1] if array.ndim == 2 else 1
        accessors.append(
            {
                "bufferView": index,
                "componentType": UNSIGNED_BYTE if array.dtype == np.uint8 else FLOAT,
                "count": len(array),
                "type": "SCALAR" if width == 1 else f"VEC{width}",
                **({"normalized": True} if array.dtype == np.uint8 else {}),
            }
        )
        offset += array.nbytes
    position = attributes["POSITION"]
    accessors[0] |= {"min": position.min(axis=0).tolist(), "max": position.max(axis=0).tolist()}
    primitive = {
        "mode": _POINTS,
        "attributes": {name: index for index, name in enumerate(attributes)},
        "extensions": {EXTENSION: {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}},
        **({"extras": {_ANTIALIASED: True}} if antialiased else {}),
    }
    return {
        "asset": {"version": "2.0", "generator": "ilrm"},
        "extensionsUsed": [EXTENSION],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "gaussians"}],
        "meshes": [{"primitives": [primitive]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": offset}],
    }


def load_glb(path: Path | str) -> Gaussians:
    """Read the Gaussians of all nodes, in the frame of the scene (see the module docstring about axes).

    Raises:
        GaussiansError: no such file, not a .glb, cut off, malformed, without splats or with compressed ones, or with
            invalid values.
    """
    glb = read_glb(Path(path), _EXPECTED)
    parts, placed_bytes = [], 0
    with glb.explained():
        for mesh, matrix in glb.mesh_nodes():
            for primitive in mesh["primitives"]:
                if EXTENSION not in primitive.get("extensions", {}):
                    continue
                part = _read_primitive(glb, primitive)
                placed_bytes += sum(getattr(part, name).nbytes for name in PER_GAUSSIAN)
                if placed_bytes > max(_BOMB_RATIO * len(glb.binary), _HARMLESS_BYTES) or len(parts) == _MOST_PARTS:
                    raise GaussiansError(
                        f"{path} repeats its splats at more than {len(parts)} nodes.",
                        expected=f"at most {_MOST_PARTS} nodes, and {_BOMB_RATIO} times the size of the file",
                        fix="join them in the program that made the file",
                    )
                parts.append(_placed(part, _similarity(matrix, glb.path)))
    if not parts:
        raise GaussiansError(f"{path} contains no Gaussians; it may be a mesh or a point cloud.", expected=_EXPECTED)
    if len({part.sh_degree for part in parts}) > 1:
        raise GaussiansError(f"{path} holds several splats of different SH degrees.", expected="one degree for all")
    return keep_possible(Gaussians.cat(parts).transform(GLTF), path)


def _read_primitive(glb: Glb, primitive: dict[str, Any]) -> Gaussians:
    extension, attributes = primitive["extensions"][EXTENSION], primitive["attributes"]
    kind = extension.get("kernel", "ellipse"), extension.get("colorSpace", "srgb_rec709_display")
    if kind != ("ellipse", "srgb_rec709_display") or extension.get("extensions"):
        inner = ", ".join(extension.get("extensions", {})) or "none"
        raise GaussiansError(
            f"{glb.path} holds splats with kernel {kind[0]!r}, colour space {kind[1]!r} and the extensions {inner}.",
            expected="kernel 'ellipse', colour space 'srgb_rec709_display', not compressed",
            fix="convert the file with the program that made it",
        )
    degree = max((int(name.split("_")[-3]) for name in attributes if name.startswith(f"{EXTENSION}:SH_")), default=-1)
    wanted = ["POSITION", _SCALE, _ROTATION, _OPACITY, *_sh_names(min(max(degree, 0), 3))]
    if missing := [name for name in wanted if name not in attributes]:
        raise GaussiansError(f"{glb.path} lacks the attributes {', '.join(missing)}.", expected=_EXPECTED)
    widths = [3, 3, 4, 1, *(3 for _ in wanted[4:])]
    values = [glb.accessor(attributes[name], width) for name, width in zip(wanted, widths, strict=True)]
    if len({len(value) for value in values}) > 1 or not len(values[0]):
        raise GaussiansError(f"{glb.path} has attributes of different lengths, or empty ones.", expected=_EXPECTED)
    means, scales, xyzw, opacities = (torch.from_numpy(value) for value in values[:4])
    extras = primitive.get("extras")  # any JSON, of any program
    return Gaussians(
        means=means,
        scales=scales,
        quats=F.normalize(xyzw[:, [3, 0, 1, 2]], dim=-1),
        opacities=opacities[:, 0],
        sh=torch.stack([torch.from_numpy(value) for value in values[4:]], dim=1),
        antialiased=isinstance(extras, dict) and extras.get(_ANTIALIASED) is True,
    )


def _placed(gaussians: Gaussians, to_scene: Similarity) -> Gaussians:
    """Gaussians transformed to the scene. The node's translation is float64 and may be too large for float32."""
    origin = local_origin_of(to_scene.apply_points(gaussians.means.double()))
    return gaussians.transform(to_scene, origin=origin)


def _similarity(matrix: NDArray[np.float64], path: Path) -> Similarity:
    scale = float(np.cbrt(np.linalg.det(matrix[:3, :3])))
    rotation = matrix[:3, :3] / scale if scale > 0 else matrix[:3, :3]
    if scale <= 0 or not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-4):
        raise GaussiansError(
            f"{path} places its splats with a transformation that stretches or mirrors them.",
            expected="rotation, translation and one scale for all axes",
            fix="apply the transformation in the program that made the file",
        )
    return Similarity(scale, torch.from_numpy(rotation), torch.from_numpy(matrix[:3, 3]))
