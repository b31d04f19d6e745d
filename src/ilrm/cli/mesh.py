"""``ilrm mesh``: the surface of a splat file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from ilrm.cli.arguments import Output, library_options
from ilrm.cli.console import Console


@dataclass(frozen=True)
class Mesh:
    """Turn Gaussians into a coloured mesh: .glb, .ply or .obj.

    Depth is rendered at the cameras of the photos and fused. .ply and .obj keep the world frame; .glb is y-up, as its
    standard requires.
    """

    input: tyro.conf.Positional[Path]
    """Folder written by `ilrm reconstruct`, or a splat file."""
    output: Output
    """File to write; its extension (.glb, .ply, .obj) determines the format."""
    cameras: Path | None = None
    """A scene or a cameras.json, in the world of the Gaussians, for rendering depth.
    Default: cameras.json beside the splat file; without one, cameras on a sphere (for objects, not for rooms)."""
    voxel: float | None = None
    """Distance between lattice points in world units.
    Default: 1.5 to 4 pixels on the surface, depending on how well the views agree."""
    faces: int | None = None
    """Simplify to about this many faces."""
    min_piece: float = 0.001
    """Remove connected components with a smaller share of all faces."""
    texture: int | None = None
    """Side of a texture in texels, instead of colours at the vertices (.glb only; best with --faces)."""
    device: str = "auto"
    """Where depth is rendered: auto, cpu, cuda or cuda:N."""
    overwrite: bool = False
    """Also replace a file of the same name that this program did not write."""
    antialiased: bool = False
    """Treat the splats as trained anti-aliased, for files that do not say so: opacity is compensated for the blur."""
    json: bool = False
    """Print one JSON object on stdout and nothing else."""

    def run(self, console: Console) -> dict[str, Any]:
        from ilrm.pipeline.meshing import mesh_file

        report = mesh_file(self.input, self.output, **library_options(self), reporter=console)
        console.show("", _rows(report))
        return report


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
