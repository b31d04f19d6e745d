"""The additional files of a run: a page, a video, a mesh, other splat formats."""

from __future__ import annotations

from pathlib import Path

from ilrm.core.reporting import Reporter
from ilrm.pictures.render_video import render_video
from ilrm.pipeline.forward.plan import VIDEO_FRAMES
from ilrm.pipeline.options import ExportName
from ilrm.results import Result
from ilrm.splats import save_gaussians

EXPORT_FILES: dict[ExportName, str] = {
    "html": "viewer.html",
    "video": "preview.mp4",
    "mesh": "mesh.glb",
    "spz": "scene.spz",
    "splat": "scene.splat",
    "glb": "scene.glb",
    "compressed-ply": "scene.compressed.ply",
}


def save_extras(names: tuple[ExportName, ...], result: Result, folder: Path, near: float, reporter: Reporter) -> None:
    """Write each of the named files into a folder.

    Raises:
        GaussiansError: Gaussians that a format cannot hold, or no surface for a mesh.
        MissingExtraError: a mesh without the packages it needs.
    """
    with reporter.progress("exporting", len(names)) as advance:
        for name in names:
            _save(name, result, folder / EXPORT_FILES[name], near)
            advance(EXPORT_FILES[name])


def _save(name: ExportName, result: Result, path: Path, near: float) -> None:
    assert result.cameras is not None
    if name == "html":
        from ilrm.view.page import save_result_page  # not every run needs it

        save_result_page(result, path)
    elif name == "video":
        render_video(result.gaussians, result.cameras, path, frames=VIDEO_FRAMES, near=near)
    elif name == "mesh":
        from ilrm.mesh.files import save_surface
        from ilrm.mesh.make_mesh import mesh_gaussians  # needs an extra

        save_surface(mesh_gaussians(result.gaussians, result.cameras, near=near), path)
    else:
        save_gaussians(result.gaussians, path)
