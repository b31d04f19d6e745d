"""``ilrm render``: images of a splat file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from ilrm.cli.arguments import Output, check_at_least, check_size, find_device
from ilrm.cli.console import Console
from ilrm.errors import CameraError, OutputError

if TYPE_CHECKING:
    from ilrm.cameras import Cameras
    from ilrm.gaussians import Gaussians


@dataclass(frozen=True)
class Render:
    """Render a splat file along a path or at given poses, as PNG files.

    `--path orbit` circles what the cameras look at; `--path poses` renders at the cameras themselves.
    """

    gaussians: tyro.conf.Positional[Path]
    """Splat file (.ply)."""
    output: Output
    """Folder for the frames, or a .png file if there is only one."""
    path: Literal["orbit", "poses"] = "orbit"
    """Where to render from."""
    cameras: Path | None = None
    """A scene, or a cameras.json, in the world of the Gaussians. Default: cameras.json beside the splat file."""
    frames: int = 60
    """Number of frames of an orbit."""
    size: int | None = None
    """Longer side of the frames in pixels; as the cameras have it by default."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    json: bool = False
    """Print one JSON object on stdout and nothing else."""

    def run(self, console: Console) -> dict[str, Any]:
        check_at_least("--frames", self.frames, 1)
        device = find_device(self.device)
        if self.size is not None:
            check_size(self.size)
        if self.output.suffix.lower() not in ("", ".png"):
            raise OutputError(
                f"{self.output} has the extension {self.output.suffix!r}.",
                expected="a folder, or a name that ends in .png",
            )
        from ilrm.cli.images import file_stems, near_plane
        from ilrm.export import load_ply

        gaussians = load_ply(self.gaussians)
        given, names = self._cameras()
        near = near_plane(given)
        if self.path == "orbit":
            cameras = _orbit(given, gaussians, self.frames)
            stems = [f"frame_{i:04d}" for i in range(self.frames)]
        else:
            cameras, stems = given, file_stems(names)
        if self.size is not None:
            factor = self.size / max(cameras.width, cameras.height)
            cameras = cameras.resize(round(cameras.width * factor), round(cameras.height * factor))
        files = self._write(gaussians.to(device), cameras, stems, near, console)
        console.show("", {"frames": len(files), "size": f"{cameras.width}x{cameras.height}", "written": self.output})
        return {
            "output": str(self.output),
            "files": files,
            "width": cameras.width,
            "height": cameras.height,
            "num_gaussians": len(gaussians),
        }

    def _cameras(self) -> tuple[Cameras, tuple[str, ...]]:
        from ilrm.export.cameras import load_cameras
        from ilrm.scenes import load_scene

        path = self.cameras or self.gaussians.with_name("cameras.json")
        if path.name == "cameras.json" and path.is_file():
            return load_cameras(path)
        if self.cameras is None:
            raise CameraError(
                f"There is no {path} to say where to render from.",
                fix="give a scene or a cameras.json with --cameras",
            )
        scene = load_scene(path)
        return scene.cameras, scene.names

    def _write(
        self, gaussians: Gaussians, cameras: Cameras, stems: list[str], near: float, console: Console
    ) -> list[str]:
        from ilrm.cli.images import render_view, save_png
        from ilrm.files import atomic_folder

        if self.output.suffix:
            if len(cameras) != 1:
                raise OutputError(
                    f"{len(cameras)} frames do not fit into the one file {self.output}.",
                    fix="give a folder, or --path orbit --frames 1",
                )
            save_png(render_view(gaussians, cameras, near), self.output)
            return [self.output.name]
        with atomic_folder(self.output) as folder, console.progress("rendering", len(cameras)) as advance:
            for view, stem in enumerate(stems):
                save_png(render_view(gaussians, cameras[view], near), folder / f"{stem}.png")
                advance("")
        return [f"{stem}.png" for stem in stems]


def _orbit(cameras: Cameras, gaussians: Gaussians, frames: int) -> Cameras:
    """An orbit; where the viewing axes are parallel it looks at the Gaussians' median depth."""
    from ilrm.cameras import mean_pose
    from ilrm.trajectories import focus_point, orbit

    focus = focus_point(cameras)
    if focus is None:
        rotation, centre = mean_pose(cameras.c2w)
        depth = (gaussians.means.double() - centre) @ rotation[:, 2]
        focus = centre + rotation[:, 2] * depth[depth > 0].median() if (depth > 0).any() else None
    return orbit(cameras, frames, focus)
