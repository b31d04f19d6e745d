"""``ilrm export``: splat files of other kinds, fewer Gaussians, other axes; projects for other trainers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ilrm.cli.arguments import MaxPixels, read_with, warn_of_browsers
from ilrm.cli.console import Console
from ilrm.core.checks import check_at_least
from ilrm.core.errors import ConfigError, GaussiansError, SceneError
from ilrm.files import paths
from ilrm.files.image_files import MAX_PIXELS

if TYPE_CHECKING:
    from collections.abc import Callable

    from ilrm.core.cameras import Cameras, Similarity
    from ilrm.core.gaussians import Gaussians
    from ilrm.core.scene import Scene

Outputs = Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(aliases=["-o"])]
Corners = tuple[float, float, float, float, float, float]

# Of the cameras' extent: poses that differ by more are not those that the Gaussians were made with.
_SAME_POSE = 1e-3


@dataclass(frozen=True)
class Export:
    """Convert splats; the extension of the output names the format.

    .ply, .compressed.ply, .splat, .spz, .glb (glTF with KHR_gaussian_splatting; a mesh comes from `ilrm mesh`), .sog;
    .html is the page of `ilrm view --html`, which opens by double click.
    Gaussians are filtered first, in the units and axes of the input, then turned and scaled.
    """

    gaussians: tyro.conf.Positional[Path]
    """Splat file of any of these formats, or the folder that `ilrm reconstruct` has written."""
    output: Outputs = ()
    """File to write; may be given several times. With --format colmap, a folder."""
    format: Literal["auto", "colmap"] = "auto"
    """auto goes by the extension; colmap writes photos, cameras and centres as a project that other trainers read."""
    photos: Path | None = None
    """For colmap: the scene that the Gaussians were made from (its folder or camera file)."""
    max_pixels: MaxPixels = MAX_PIXELS
    image_format: Literal["png", "jpg"] = "png"
    """For colmap: how the photos are stored."""
    min_opacity: float | None = None
    """Keep Gaussians of at least this opacity (0 to 1)."""
    crop: Corners | None = None
    """Keep Gaussians whose centre lies in the box X0 Y0 Z0 X1 Y1 Z1."""
    max_scale: float | None = None
    """Keep Gaussians whose standard deviations are at most this long, in world units."""
    top: int | None = None
    """Keep so many Gaussians, those of the largest opacity times area."""
    sh_degree: Literal[0, 1, 2, 3] | None = None
    """Drop spherical harmonics above this degree."""
    frame: Literal["world", "opengl", "y-up", "z-up"] = "world"
    """Axes of the numbers in the file. world: as in the input (.spz and .glb: in the axes that the format prescribes);
    opengl: y and z flipped; y-up, z-up: upright, by the cameras.json beside the input if there is one."""
    scale: float = 1.0
    """Enlarge the world by this factor."""
    overwrite: bool = False
    """Replace files of the same names that this program did not write, too."""
    antialiased: bool = False
    """The splats were trained anti-aliased, which their file does not say: opacity is compensated for the blur."""
    json: bool = False
    """Print one JSON object on stdout and nothing else."""

    def run(self, console: Console) -> dict[str, Any]:
        self._check()
        from ilrm.results.beside import cameras_beside, find_splats
        from ilrm.splats import load_gaussians

        file = find_splats(self.gaussians)
        self._claim(file)
        given = load_gaussians(file, self.antialiased or None)
        kept = self._filter(given)
        beside = cameras_beside(file) if self.frame in ("y-up", "z-up") or self.format == "colmap" else None
        cameras = None if beside is None else beside[0]
        started, written = time.perf_counter(), []
        with console.progress("writing", len(self.output)) as advance:
            for path in self.output:
                written.append(self._write(kept, file, path, cameras, console))
                advance(path.name)
        report = {
            "input": str(file),
            "num_gaussians_before": len(given),
            "num_gaussians": len(kept),
            "sh_degree": kept.sh_degree,
            "antialiased": kept.antialiased,
            "seconds": round(time.perf_counter() - started, 3),
            "outputs": written,
        }
        rows = {str(entry["path"]): f"{int(entry['bytes']) / 1e6:.2f} MB" for entry in written}
        offset = " ".join(map(repr, kept.origin.tolist())) if kept.origin.any() else None
        console.show("", {"Gaussians": f"{len(kept):,} of {len(given):,}", "counted from": offset, **rows})
        return report

    def _check(self) -> None:
        """Refuse impossible arguments before anything is read. Raises ConfigError, GaussiansError."""
        from ilrm.splats.formats import find_format

        if not self.output:
            raise ConfigError("No output was given.", fix="name a file with -o, for instance -o scene.spz")
        if self.format == "colmap" and (self.photos is None or len(self.output) > 1):
            raise ConfigError(
                "--format colmap needs the photos, and one folder to write.",
                fix="ilrm export RESULT -o PROJECT --format colmap --photos SCENE",
            )
        if self.format == "auto":
            for path in self.output:
                if not _is_page(path):
                    find_format(path)
        if self.min_opacity is not None and not 0 <= self.min_opacity <= 1:
            raise ConfigError(f"--min-opacity {self.min_opacity} was given.", expected="0 to 1")
        for flag, value in (("--max-scale", self.max_scale), ("--scale", self.scale)):
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{flag} {value} was given.", expected="a number above 0")
        if self.top is not None:
            check_at_least("--top", self.top, 1)
        if self.crop is not None and not all(self.crop[axis] < self.crop[axis + 3] for axis in range(3)):
            raise ConfigError(
                f"--crop {' '.join(f'{x:g}' for x in self.crop)} is no box.",
                expected="X0 Y0 Z0 X1 Y1 Z1 with X0 < X1, Y0 < Y1, Z0 < Z1",
            )

    def _claim(self, file: Path) -> None:
        """Make sure that all outputs may be written. Raises OutputError."""
        from ilrm.files import check_apart, claim_file

        reads = [file, *read_with(file, self.photos)]
        for place, path in enumerate(self.output):
            if self.format == "colmap":
                check_apart(path, reads)
            else:
                claim_file(path, reads=[*reads, *self.output[:place]], overwrite=self.overwrite)

    def _filter(self, gaussians: Gaussians) -> Gaussians:
        from ilrm.splats import filters

        steps: list[tuple[str, object, Callable[[Gaussians, Any], Gaussians]]] = [
            ("--min-opacity", self.min_opacity, filters.keep_opaque),
            ("--crop", self.crop, lambda g, box: filters.crop(g, box[:3], box[3:])),
            ("--max-scale", self.max_scale, filters.keep_small),
            ("--top", self.top, filters.keep_most_important),
            ("--sh-degree", self.sh_degree, filters.lower_sh_degree),
        ]
        for flag, value, keep in steps:
            if value is None:
                continue
            before, gaussians = len(gaussians), keep(gaussians, value)
            if len(gaussians) == 0:
                raise GaussiansError(f"{flag} leaves none of {before} Gaussians.", fix="choose a wider limit")
        return gaussians

    def _write(
        self, gaussians: Gaussians, source: Path, path: Path, cameras: Cameras | None, console: Console
    ) -> dict[str, object]:
        from ilrm.files import note_written
        from ilrm.splats.formats import find_format, save_gaussians

        if self.format == "colmap":
            return self._write_colmap(gaussians, source, path, cameras)
        if _is_page(path):
            return self._write_page(gaussians, source, path, cameras)
        if path.suffix.lower() == ".splat" and gaussians.sh_degree > 0:
            console.warn(f"{path} holds no view-dependent colour: SH of degree {gaussians.sh_degree} is left out")
        axes = find_format(path).axes
        moved = self._moved(gaussians, self._similarity(cameras, axes))
        save_gaussians(moved, path)
        note_written(path)
        return {"path": str(path), "bytes": path.stat().st_size, "world_offset": moved.origin.tolist()}

    def _write_colmap(
        self, gaussians: Gaussians, source: Path, path: Path, cameras: Cameras | None
    ) -> dict[str, object]:
        from ilrm.scenes import load_scene
        from ilrm.splats.colmap import save_colmap

        assert self.photos is not None
        scene = load_scene(self.photos, max_pixels=self.max_pixels)
        _check_same_world(scene, source, self.photos)
        to_file = self._similarity(cameras or scene.cameras, None)
        moved = scene if to_file is None else scene.transform(to_file)
        save_colmap(
            moved, self._moved(gaussians, to_file), path, image_format=self.image_format, overwrite=self.overwrite
        )
        size = sum(file.stat().st_size for file in paths.files_below(path))
        return {"path": str(path), "bytes": size, "num_images": len(scene)}

    def _write_page(self, gaussians: Gaussians, source: Path, path: Path, cameras: Cameras | None) -> dict[str, object]:
        """With the cameras, photos and numbers of the input, where they lie beside it; cameras move along."""
        from ilrm.files import note_written
        from ilrm.results import result_of
        from ilrm.view import save_page

        to_page, result = self._similarity(cameras, None), result_of(source, gaussians)
        moved, shown = self._moved(gaussians, to_page), result.cameras
        if shown is not None and to_page is not None:
            shown = shown.transform(to_page)
        warn_of_browsers(moved)
        save_page(moved, path, shown, result.photos or None, result.title, result.numbers)
        note_written(path)
        return {"path": str(path), "bytes": path.stat().st_size, "world_offset": moved.origin.tolist()}

    def _similarity(self, cameras: Cameras | None, axes: Similarity | None) -> Similarity | None:
        """From the world of the input to the one that is handed to a writer; None if they are the same.

        A writer whose format prescribes axes applies those itself; they are undone here where others were asked for.
        """
        from ilrm.core.cameras import Similarity
        from ilrm.splats.axes import to_frame

        if self.frame == "world" and self.scale == 1:
            return None
        turn = to_frame(self.frame, cameras)
        if axes is not None and self.frame != "world":
            turn = axes.inverse().compose(turn)
        return Similarity(self.scale, turn.rotation, turn.translation)

    @staticmethod
    def _moved(gaussians: Gaussians, similarity: Similarity | None) -> Gaussians:
        return gaussians if similarity is None else gaussians.transform(similarity)


def _is_page(path: Path) -> bool:
    return path.suffix.lower() == ".html"


def _check_same_world(scene: Scene, gaussians: Path, photos: Path) -> None:
    """Refuse photos whose poses are not those beside the Gaussians, if there are any. Raises SceneError."""
    from ilrm.results.beside import cameras_beside, cameras_file
    from ilrm.splats.cameras import find_names

    beside = cameras_beside(gaussians)
    if beside is None:
        return
    cameras, names = beside
    places = find_names(names, scene.names)
    known = [view for view, place in enumerate(places) if place is not None]
    of_scene = scene.cameras[[place for place in places if place is not None]].c2w.double()
    spread, distance = cameras.centers.std(dim=0, correction=0).norm(), cameras.centers.abs().max()
    extent = max(spread.item(), 1e-9 * distance.item(), 1e-12)  # cameras may all stand at one point
    error = (of_scene - cameras[known].c2w.double()).abs()
    if len(known) < len(names) or error[:, :3, :3].max() > _SAME_POSE or error[:, :3, 3].max() > _SAME_POSE * extent:
        raise SceneError(
            f"The photos {photos} are not those that {gaussians} was made from: "
            f"{cameras_file(gaussians)} lists other names or poses.",
            fix="give the scene that was reconstructed",
        )
