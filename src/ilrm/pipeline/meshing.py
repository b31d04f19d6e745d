"""``mesh_file``: a mesh of a splat file, as ``ilrm mesh`` makes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ilrm.core.checks import find_device
from ilrm.core.reporting import Reporter
from ilrm.files import output_file
from ilrm.mesh.files import check_mesh_packages, check_mesh_path, save_surface
from ilrm.mesh.fusion import is_watertight
from ilrm.mesh.make_mesh import MeshOptions, make_mesh
from ilrm.pipeline.inputs import given_cameras, paths_read
from ilrm.results.beside import cameras_beside, find_splats
from ilrm.splats import load_gaussians


def mesh_file(
    splats: Path | str,
    output: Path | str,
    *,
    cameras: Path | None = None,
    voxel: float | None = None,
    faces: int | None = None,
    min_piece: float = 0.001,
    texture: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    antialiased: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Make a mesh of a splat file and write it as .glb, .ply or .obj.

    Args:
        splats: a splat file, or the folder of a result.
        cameras: a scene or a cameras.json; by default the cameras beside the splat file, else see ``make_mesh``.
        voxel, faces, min_piece, texture: see ``MeshOptions``.
        device: auto, cpu, cuda or cuda:N: where depth is rendered.
        overwrite: also replace a file that this program did not write.
        antialiased: treat the splats as trained anti-aliased, for files that do not say so.

    Returns:
        the report that the command prints with --json.

    Raises:
        IlrmError: invalid input, output or options; the subclass says which.
    """
    output, options = Path(output), MeshOptions(voxel, min_piece, faces, texture)
    options.check()
    check_mesh_path(output, textured=texture is not None)
    check_mesh_packages(simplified=faces is not None, textured=texture is not None)
    target, file = find_device(device), find_splats(splats)
    with output_file(output, reads=paths_read(file, cameras), overwrite=overwrite) as temporary:
        gaussians = load_gaussians(file, antialiased or None).to(target)
        seen_by = cameras_beside(file) if cameras is None else given_cameras(cameras)
        made = make_mesh(gaussians, seen_by and seen_by[0], options, reporter=reporter)
        save_surface(made.surface, temporary, made.texture)
        size = temporary.stat().st_size
    vertices = made.surface.vertices
    return {
        "output": str(output),
        "vertices": len(vertices),
        "faces": len(made.surface.faces),
        "watertight": is_watertight(made.surface),
        "extent": (vertices.max(axis=0) - vertices.min(axis=0)).tolist(),
        "world_offset": made.surface.origin.tolist(),
        "voxel": made.voxel,
        "views": made.views,
        "num_gaussians": len(gaussians),
        "bytes": size,
    }
