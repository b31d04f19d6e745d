"""``ilrm mesh``: the surface of a splat file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from ilrm.cli.arguments import Output, read_with
from ilrm.cli.console import Console
from ilrm.core.checks import LARGEST_SIDE, check_at_least, find_device
from ilrm.core.errors import ConfigError

if TYPE_CHECKING:
    from ilrm.core.cameras import Cameras
    from ilrm.core.gaussians import Gaussians


@dataclass(frozen=True)
class Mesh:
    """Turn Gaussians into a mesh with colours: .glb, .ply or .obj.

    Depth is rendered at the cameras that the scene was made from and fused. .ply and .obj keep the world frame; .glb is
    y-up, as its standard asks.
    """

    input: tyro.conf.Positional[Path]
    """Folder that `ilrm reconstruct` has written, or a splat file."""
    output: Output
    """File to write; its extension (.glb, .ply, .obj) says which format."""
    cameras: Path | None = None
    """A scene, or a cameras.json, in the world of the Gaussians, to look from. Default: cameras.json beside the splat
    file; without one, cameras all around, which see things but not rooms."""
    voxel: float | None = None
    """Distance between the points of the lattice in world units; by default 1.5 to 4 pixels on the
    surface, the more the worse the views agree."""
    faces: int | None = None
    """Simplify to about so many faces."""
    min_piece: float = 0.001
    """Remove connected pieces that have a smaller share of all faces."""
    texture: int | None = None
    """Side of a texture in texels, instead of colours at the vertices (.glb only; goes with --faces)."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N: where depth is rendered."""
    overwrite: bool = False
    """Replace files of the same names that this program did not write, too."""
    antialiased: bool = False
    """The splats were trained anti-aliased, which their file does not say: opacity is compensated for the blur."""
    json: bool = False
    """Print one JSON object on stdout and nothing else."""

    def run(self, console: Console) -> dict[str, Any]:
        from ilrm.files import output_file
        from ilrm.mesh.files import check_mesh_packages, check_mesh_path, save_surface
        from ilrm.results.beside import find_splats
        from ilrm.splats import load_gaussians

        self._check()
        check_mesh_path(self.output, textured=self.texture is not None)
        check_mesh_packages(simplified=self.faces is not None, textured=self.texture is not None)
        device = find_device(self.device)
        path = find_splats(self.input)
        reads = [path, *read_with(path, self.cameras)]
        # A place that cannot be written is told before the work.
        with output_file(self.output, reads=reads, overwrite=self.overwrite) as temporary:
            gaussians = load_gaussians(path, self.antialiased or None).to(device)
            report, surface, texture = self._make(gaussians, self._cameras(path, gaussians), console)
            save_surface(surface, temporary, texture)
            report["bytes"] = temporary.stat().st_size
        report = {"output": str(self.output), **report}
        console.show("", _rows(report))
        return report

    def _check(self) -> None:
        if self.voxel is not None and not 0 < self.voxel < float("inf"):
            raise ConfigError(f"--voxel {self.voxel} was given.", expected="a length above 0, in world units")
        if not 0 <= self.min_piece < 1:
            raise ConfigError(f"--min-piece {self.min_piece} was given.", expected="a share of all faces, 0 to 1")
        if self.faces is not None:
            check_at_least("--faces", self.faces, 4)
        if self.texture is not None and not 64 <= self.texture <= 8192:
            raise ConfigError(f"--texture {self.texture} was given.", expected="64 to 8192 texels")

    def _cameras(self, path: Path, gaussians: Gaussians) -> Cameras:
        from ilrm.pictures.options import at_most
        from ilrm.pictures.viewpoints import cameras_around
        from ilrm.pipeline.views import given_cameras
        from ilrm.results.beside import cameras_beside

        if self.cameras is not None:
            return at_most(LARGEST_SIDE, given_cameras(self.cameras)[0])
        beside = cameras_beside(path)
        return cameras_around(gaussians) if beside is None else at_most(LARGEST_SIDE, beside[0])

    def _make(self, gaussians: Gaussians, cameras: Cameras, console: Console) -> tuple[dict[str, Any], Any, Any]:
        """The report, the surface and, if one was asked for, the texture."""
        from ilrm.mesh.fusion import fuse_surface, is_watertight, plan, see_surface
        from ilrm.mesh.texture import bake

        with console.progress("rendering depth", len(cameras)) as advance:
            views = see_surface(gaussians, cameras, near=cameras.near_plane(), progress=advance)
        if len(views.depth) < len(cameras):
            console.warn(
                f"{len(cameras)} cameras are more than memory is meant to hold; used {len(views.depth)} of them"
            )
        lattice = plan(views, self.voxel)
        console.say(f"{len(views.depth)} views, voxel {lattice.voxel:.4g}, {len(lattice.chunks)} chunks of 32 cubed")
        with console.progress("fusing", len(lattice.chunks)) as advance:
            surface = fuse_surface(lattice, min_piece=self.min_piece, faces=self.faces, progress=advance)
        texture = None
        if self.texture is not None:
            console.say(f"laying out a texture on {len(surface.faces):,} faces")
            texture = bake(surface, lattice.views, lattice.truncation, self.texture)
        extent = surface.vertices.max(axis=0) - surface.vertices.min(axis=0)
        report = {
            "vertices": len(surface.vertices),
            "faces": len(surface.faces),
            "watertight": is_watertight(surface),
            "extent": extent.tolist(),
            "world_offset": surface.origin.tolist(),
            "voxel": lattice.voxel,
            "views": len(views.depth),
            "num_gaussians": len(gaussians),
        }
        return report, surface, texture


def _rows(report: dict[str, Any]) -> dict[str, object]:
    return {
        "vertices": f"{report['vertices']:,}",
        "faces": f"{report['faces']:,}",
        "watertight": "yes" if report["watertight"] else "no",
        "size": " x ".join(f"{side:.3g}" for side in report["extent"]) + " world units",
        "voxel": f"{report['voxel']:.4g}",
        "world offset": " ".join(map(repr, report["world_offset"])) if any(report["world_offset"]) else None,
        "written": f"{report['output']} ({report['bytes'] / 1e6:.1f} MB)",
    }
