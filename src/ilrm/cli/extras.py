"""What ``ilrm reconstruct`` writes beside the splats: input photos, a page, a video, a mesh, other splat formats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ilrm.files import write_bytes

if TYPE_CHECKING:
    from ilrm.cli.console import Console
    from ilrm.gaussians import Gaussians
    from ilrm.scene import Scene
    from ilrm.view import Result

ExportName = Literal["html", "video", "mesh", "spz", "splat", "glb", "compressed-ply"]
FILES: dict[ExportName, str] = {
    "html": "viewer.html",
    "video": "preview.mp4",
    "mesh": "mesh.glb",
    "spz": "scene.spz",
    "splat": "scene.splat",
    "glb": "scene.glb",
    "compressed-ply": "scene.compressed.ply",
}
INPUTS = "inputs"
_PREVIEW_FRAMES = 90  # three seconds


def save_inputs(inputs: Scene, folder: Path) -> None:
    """Write the input photos, as the network saw them, as JPEG files under the names that the viewer looks for."""
    from ilrm.scenes.save import encode_image, image_names

    for view, name in enumerate(image_names(inputs.names, "jpg")):
        write_bytes(folder / name, encode_image(inputs, view, "jpg"))


def save_extras(names: tuple[ExportName, ...], result: Result, folder: Path, near: float, console: Console) -> None:
    """Write each of the named files into a folder.

    Raises:
        GaussiansError: Gaussians that a format cannot hold, or no surface for a mesh.
        MissingExtraError: a mesh without the packages it needs.
    """
    with console.progress("exporting", len(names)) as advance:
        for name in names:
            _save(name, result, folder / FILES[name], near)
            advance(FILES[name])


def _save(name: ExportName, result: Result, path: Path, near: float) -> None:
    assert result.cameras is not None
    if name == "html":
        from ilrm.view import save_page

        save_page(result.gaussians, path, result.cameras, result.photos, result.title, result.numbers)
    elif name == "video":
        _save_preview(result, path, near)
    elif name == "mesh":
        from ilrm.export.mesh import mesh_gaussians
        from ilrm.export.mesh_files import save_surface

        save_surface(mesh_gaussians(result.gaussians, result.cameras, near=near), path)
    else:
        from ilrm.export import save_gaussians

        save_gaussians(result.gaussians, path)


def _save_preview(result: Result, path: Path, near: float) -> None:
    from ilrm.export.camera_path import make_path
    from ilrm.export.frames import Picture, clear_near_plane, render_path
    from ilrm.export.video import save_video

    assert result.cameras is not None
    cameras = make_path("auto", result.gaussians, result.cameras, _PREVIEW_FRAMES).cameras
    picture = Picture(near=clear_near_plane(result.gaussians, result.cameras, near))
    save_video(render_path(result.gaussians, cameras, picture), path)


def as_result(gaussians: Gaussians, inputs: Scene, metrics: dict[str, Any], path: Path) -> Result:
    """A reconstruction as the viewer takes it."""
    from ilrm.view import Result

    photos = tuple(inputs.images[:].mul(255).round().byte().cpu().numpy())
    return Result(path, gaussians.to("cpu"), inputs.cameras.to("cpu"), inputs.names, photos, metrics)
