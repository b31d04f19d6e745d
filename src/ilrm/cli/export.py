"""``ilrm export``: splat files in other formats, fewer Gaussians, other axes; projects for other trainers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ilrm.cli.arguments import MaxPixels, library_options
from ilrm.cli.console import Console
from ilrm.core.checks import MAX_PIXELS

Outputs = Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(aliases=["-o"])]


@dataclass(frozen=True)
class Export:
    """Convert splats; the extension of the output determines the format.

    Formats: .ply, .compressed.ply, .splat, .spz, .sog and .glb (glTF with KHR_gaussian_splatting; for meshes see
    `ilrm mesh`), and .html, the page of `ilrm view --html`.
    Gaussians are filtered first, in the units and axes of the input, then rotated and scaled.
    """

    gaussians: tyro.conf.Positional[Path]
    """Splat file of any of these formats, or the folder written by `ilrm reconstruct`."""
    output: Outputs = ()
    """File to write; may be given several times. With --format colmap, a folder."""
    format: Literal["auto", "colmap"] = "auto"
    """auto: by the extension; colmap: photos, cameras and centres as a project for other trainers."""
    photos: Path | None = None
    """For colmap: the scene that the Gaussians were made from (its folder or camera file)."""
    max_pixels: MaxPixels = MAX_PIXELS
    image_format: Literal["png", "jpg"] = "png"
    """For colmap: format of the photos."""
    min_opacity: float | None = None
    """Keep Gaussians of at least this opacity (0 to 1)."""
    crop: tuple[float, float, float, float, float, float] | None = None
    """Keep Gaussians whose centre lies in the box X0 Y0 Z0 X1 Y1 Z1."""
    max_scale: float | None = None
    """Keep Gaussians whose standard deviations are at most this long, in world units."""
    top: int | None = None
    """Keep this many Gaussians, those with the largest opacity times area."""
    sh_degree: Literal[0, 1, 2, 3] | None = None
    """Drop spherical harmonics above this degree."""
    frame: Literal["world", "opengl", "y-up", "z-up"] = "world"
    """Axes of the numbers in the file.
    world: as in the input (.spz and .glb: in the axes that the format prescribes);
    opengl: y and z flipped; y-up, z-up: upright, by the cameras.json beside the input if there is one."""
    scale: float = 1.0
    """Enlarge the world by this factor."""
    overwrite: bool = False
    """Also replace files of the same names that this program did not write."""
    antialiased: bool = False
    """Treat the splats as trained anti-aliased, for files that do not say so: opacity is compensated for the blur."""
    json: bool = False
    """Print one JSON object on stdout and nothing else."""

    def run(self, console: Console) -> dict[str, Any]:
        from ilrm.pipeline.exporting import ExportOptions, export_file

        report = export_file(self.gaussians, self.output, ExportOptions(**library_options(self)), reporter=console)
        rows = {entry["path"]: f"{entry['bytes'] / 1e6:.2f} MB" for entry in report["outputs"]}
        kept = f"{report['num_gaussians']:,} of {report['num_gaussians_before']:,}"
        console.show("", {"Gaussians": kept, "world offset": _offset(report["outputs"]), **rows})
        return report


def _offset(outputs: list[dict[str, Any]]) -> str | None:
    """The world offset of the first file, if it is not zero."""
    offset = next((entry["world_offset"] for entry in outputs if "world_offset" in entry), [])
    return " ".join(map(repr, offset)) if any(offset) else None
