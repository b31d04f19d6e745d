"""Writing coloured meshes as .glb, .ply or .obj with trimesh.

PLY and OBJ keep the world frame (see ``save_surface`` for worlds far from their origin) and store sRGB colours. glTF
requires y up, z forward and linear colours, so a GLB is rotated by half a turn about z from OpenCV's y down, and its
colours are converted. It is marked as unlit, because the colours already include the light of the photos.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ilrm.core.errors import MissingExtraError, OutputError
from ilrm.files import atomic_file
from ilrm.mesh.tsdf import FloatArray, Surface
from ilrm.splats.axes import GLTF
from ilrm.splats.checks import warn_of_origin

if TYPE_CHECKING:
    from ilrm.mesh.texture import Texture

MESH_SUFFIXES = (".glb", ".obj", ".ply")
# The same rotation as for splats in .glb files, so that both coincide.
_TO_GLTF = GLTF.rotation.numpy()
_UNLIT = "KHR_materials_unlit"
_LINEAR = "_linear_colours"  # name of our vertex attribute in trimesh


def check_mesh_path(path: Path, *, textured: bool = False) -> None:
    """Refuse a mesh file with an unsupported extension. Raises OutputError."""
    suffixes = (".glb",) if textured else MESH_SUFFIXES
    if path.suffix.lower() not in suffixes:
        raise OutputError(
            f"{path} has the extension {path.suffix!r}" + (", which is written without textures." if textured else "."),
            expected=f"a name that ends in {' or '.join(suffixes)}",
        )


def check_mesh_packages(*, simplified: bool = False, textured: bool = False) -> None:
    """Check before any work that all required packages are installed. Raises MissingExtraError."""
    needed = {"trimesh": "trimesh", "skimage": "scikit-image"}
    needed |= {"fast_simplification": "fast-simplification"} if simplified else {}
    needed |= {"xatlas": "xatlas"} if textured else {}
    for module, package in needed.items():
        if find_spec(module) is None:
            raise MissingExtraError(package, "mesh", "Making this mesh")


def save_surface(surface: Surface, path: Path | str, texture: Texture | None = None) -> None:
    """Write a surface in the format of the extension.

    Far from the world's origin, a PLY stores world coordinates in double precision. In the other formats coordinates
    are then relative to ``surface.origin``, with a warning.

    Args:
        texture: replaces the colours of the vertices; only for .glb.

    Raises:
        OutputError: an unknown extension, or a file that cannot be written.
        MissingExtraError: without trimesh.
    """
    path = Path(path)
    check_mesh_path(path, textured=texture is not None)
    try:
        import trimesh
    except ImportError as error:
        raise MissingExtraError("trimesh", "mesh", "Writing a mesh") from error
    if texture is not None:
        content: Any = _textured_glb(trimesh, texture)
    elif path.suffix.lower() == ".glb":
        content = _glb(trimesh, surface)
    else:
        content = _with_vertex_colours(trimesh, surface, path.suffix.lower()[1:])
    if surface.origin.any() and path.suffix.lower() != ".ply":
        warn_of_origin(path, torch.from_numpy(surface.origin))
    with atomic_file(path) as temporary:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode())


def linear_from_srgb(colours: FloatArray) -> FloatArray:
    """Convert sRGB colours in [0, 1] to linear ones (IEC 61966-2-1)."""
    return np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)


def _with_vertex_colours(trimesh: Any, surface: Surface, kind: str) -> Any:
    """The content of a .ply or .obj."""
    colours = (surface.colours.clip(0, 1) * 255).round().astype(np.uint8)
    mesh = trimesh.Trimesh(surface.vertices, surface.faces, vertex_colors=colours, process=False)
    if not surface.origin.any():
        return mesh.export(file_type=kind)
    if kind == "obj":  # the text could store more digits, but programs that read it compute in single precision
        return mesh.export(file_type=kind, header="world_offset " + " ".join(repr(x) for x in surface.origin.tolist()))
    return _double_ply(surface, colours)


def _double_ply(surface: Surface, colours: NDArray[np.uint8]) -> bytes:
    """A binary PLY with double-precision world coordinates, which trimesh cannot write."""
    vertices = np.empty(len(surface.vertices), [("xyz", "<f8", 3), ("rgb", "u1", 3)])
    vertices["xyz"], vertices["rgb"] = surface.world_vertices, colours
    faces = np.empty(len(surface.faces), [("count", "u1"), ("corners", "<i4", 3)])
    faces["count"], faces["corners"] = 3, surface.faces
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    header += [f"property double {axis}" for axis in "xyz"]
    header += [f"property uchar {colour}" for colour in ("red", "green", "blue")]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    return "\n".join(header).encode() + vertices.tobytes() + faces.tobytes()


def _glb(trimesh: Any, surface: Surface) -> bytes:
    """A GLB with vertex colours as floats: 8-bit linear colours show banding in the dark, and some programs misread
    16-bit ones."""
    mesh = trimesh.Trimesh(surface.vertices @ _TO_GLTF.T, surface.faces, process=False)
    mesh.vertex_attributes[_LINEAR] = linear_from_srgb(surface.colours.clip(0, 1)).astype(np.float32)

    def as_colours(tree: dict[str, Any]) -> None:
        primitive = tree["meshes"][0]["primitives"][0]
        primitive["attributes"]["COLOR_0"] = primitive["attributes"].pop(_LINEAR)
        primitive["material"] = 0
        tree["materials"] = [{"pbrMetallicRoughness": {"metallicFactor": 0.0}}]
        _make_unlit(tree)

    return trimesh.exchange.gltf.export_glb(mesh, tree_postprocessor=as_colours)


def _textured_glb(trimesh: Any, texture: Texture) -> bytes:
    from PIL import Image

    image = Image.fromarray(texture.image)
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=image, metallicFactor=0.0, roughnessFactor=1.0)
    visual = trimesh.visual.TextureVisuals(uv=texture.uv, material=material)
    mesh = trimesh.Trimesh(texture.vertices @ _TO_GLTF.T, texture.faces, visual=visual, process=False)
    return trimesh.exchange.gltf.export_glb(mesh, tree_postprocessor=_make_unlit)


def _make_unlit(tree: dict[str, Any]) -> None:
    for material in tree["materials"]:
        material["extensions"] = {_UNLIT: {}}
        material["doubleSided"] = True
    tree["extensionsUsed"] = sorted({*tree.get("extensionsUsed", []), _UNLIT})
