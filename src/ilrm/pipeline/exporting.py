"""``export_file``: splats in other formats, filtered and in other axes, as ``ilrm export`` writes them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ilrm.core.cameras import Cameras, Similarity
from ilrm.core.checks import MAX_PIXELS, check_at_least
from ilrm.core.errors import ConfigError, GaussiansError, SceneError, warn
from ilrm.core.gaussians import Gaussians
from ilrm.core.reporting import Reporter, Silent
from ilrm.core.scene import Scene
from ilrm.files import check_apart, claim_file, note_written, paths
from ilrm.pipeline.inputs import paths_read
from ilrm.results import result_of
from ilrm.results.beside import cameras_beside, cameras_file, find_splats
from ilrm.scenes import load_scene
from ilrm.scenes.save import ImageFormat
from ilrm.splats import filters, load_gaussians, save_colmap, save_gaussians
from ilrm.splats.axes import Frame, to_written_axes
from ilrm.splats.cameras import find_names
from ilrm.splats.formats import find_format

Corners = tuple[float, float, float, float, float, float]
# As a share of the cameras' extent. Poses that differ by more are not those that the Gaussians were made with.
_SAME_POSE = 1e-3


@dataclass(frozen=True)
class ExportOptions:
    """The options of an export, the same for Python and ``ilrm export``.

    Attributes:
        format: "auto" chooses the format by the extension (.html is a page); "colmap" writes photos, cameras and
            centres as a project for other trainers.
        photos: for colmap, the scene that the Gaussians were made from.
        max_pixels: see ``load_scene``.
        image_format: of the photos in a COLMAP project.
        min_opacity, crop, max_scale, top, sh_degree: filters in this order, see ``splats.filters``; crop is x0 y0 z0
            x1 y1 z1.
        frame: axes of the numbers in the file, see ``to_written_axes``.
        scale: factor on the world.
        overwrite: also replace files of the same names that this program did not write.
        antialiased: treat the splats as trained anti-aliased, for files that do not say so.
    """

    format: Literal["auto", "colmap"] = "auto"
    photos: Path | None = None
    max_pixels: int = MAX_PIXELS
    image_format: ImageFormat = "png"
    min_opacity: float | None = None
    crop: Corners | None = None
    max_scale: float | None = None
    top: int | None = None
    sh_degree: Literal[0, 1, 2, 3] | None = None
    frame: Frame = "world"
    scale: float = 1.0
    overwrite: bool = False
    antialiased: bool = False

    def check(self, outputs: Sequence[Path]) -> None:
        """Refuse invalid options and outputs before anything is read. Raises ConfigError, GaussiansError."""
        if not outputs:
            raise ConfigError("No output was given.", fix="name a file with -o, for instance -o scene.spz")
        if self.format == "colmap" and (self.photos is None or len(outputs) > 1):
            raise ConfigError(
                "--format colmap needs the photos, and one folder to write.",
                fix="ilrm export RESULT -o PROJECT --format colmap --photos SCENE",
            )
        if self.format == "auto":
            for path in outputs:
                if not _is_page(path):
                    find_format(path)
        if self.min_opacity is not None and not 0 <= self.min_opacity <= 1:
            raise ConfigError(f"--min-opacity {self.min_opacity} was given.", expected="0 to 1")
        for flag, value in (("--max-scale", self.max_scale), ("--scale", self.scale)):
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{flag} {value} was given.", expected="a number above 0")
        if self.top is not None:
            check_at_least("--top", self.top, 1)
        if self.crop is not None and not all(self.crop[axis] < self.crop[axis + 3] for axis in range(3)):
            raise ConfigError(
                f"--crop {' '.join(f'{x:g}' for x in self.crop)} is not a box.",
                expected="X0 Y0 Z0 X1 Y1 Z1 with X0 < X1, Y0 < Y1, Z0 < Z1",
            )


def export_file(
    splats: Path | str,
    outputs: Sequence[Path | str],
    options: ExportOptions | None = None,
    *,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Convert a splat file to one or more other files.

    Gaussians are filtered first, in the units and axes of the input, then rotated and scaled.

    Args:
        splats: a splat file, or the folder of a result.
        outputs: files to write; with the format "colmap", one folder.
        options: ``ExportOptions()`` by default.

    Returns:
        the report that the command prints with --json.

    Raises:
        IlrmError: invalid input, outputs or options; the subclass says which.
    """
    options, reporter = options or ExportOptions(), reporter or Silent()
    targets = tuple(Path(output) for output in outputs)
    options.check(targets)
    file = find_splats(splats)
    _claim(file, targets, options)
    given = load_gaussians(file, options.antialiased or None)
    export = _Export(file, filtered(given, options), options)
    started, written = time.perf_counter(), []
    with reporter.progress("writing", len(targets)) as advance:
        for path in targets:
            written.append(export.write(path))
            advance(path.name)
    return {
        "input": str(file),
        "num_gaussians_before": len(given),
        "num_gaussians": len(export.gaussians),
        "sh_degree": export.gaussians.sh_degree,
        "antialiased": export.gaussians.antialiased,
        "seconds": round(time.perf_counter() - started, 3),
        "outputs": written,
    }


def filtered(gaussians: Gaussians, options: ExportOptions) -> Gaussians:
    """The Gaussians that all filters of the options keep. Raises GaussiansError if a filter leaves none."""
    steps: list[tuple[str, object, Callable[[Gaussians, Any], Gaussians]]] = [
        ("--min-opacity", options.min_opacity, filters.keep_opaque),
        ("--crop", options.crop, lambda g, box: filters.crop(g, box[:3], box[3:])),
        ("--max-scale", options.max_scale, filters.keep_small),
        ("--top", options.top, filters.keep_most_important),
        ("--sh-degree", options.sh_degree, filters.lower_sh_degree),
    ]
    for flag, value, keep in steps:
        if value is None:
            continue
        before, gaussians = len(gaussians), keep(gaussians, value)
        if len(gaussians) == 0:
            raise GaussiansError(f"{flag} leaves none of {before} Gaussians.", fix="choose a wider limit")
    return gaussians


def _claim(file: Path, outputs: Sequence[Path], options: ExportOptions) -> None:
    """Check that all outputs may be written. Raises OutputError."""
    reads = paths_read(file, options.photos)
    for place, path in enumerate(outputs):
        if options.format == "colmap":
            check_apart(path, reads)
        else:
            claim_file(path, reads=[*reads, *outputs[:place]], overwrite=options.overwrite)


class _Export:
    """Filtered Gaussians of a file, to be written in several formats."""

    def __init__(self, source: Path, gaussians: Gaussians, options: ExportOptions) -> None:
        self.source, self.gaussians, self.options = source, gaussians, options
        needed = options.frame in ("y-up", "z-up") or options.format == "colmap"
        beside = cameras_beside(source) if needed else None
        self.cameras = None if beside is None else beside[0]

    def write(self, path: Path) -> dict[str, Any]:
        """Write one file or project; its entry in the report."""
        if self.options.format == "colmap":
            return self._write_colmap(path)
        if _is_page(path):
            return self._write_page(path)
        if path.suffix.lower() == ".splat" and self.gaussians.sh_degree > 0:
            warn(f"{path} has no view-dependent colour: SH of degree {self.gaussians.sh_degree} is left out")
        moved = _moved(self.gaussians, self._similarity(self.cameras, find_format(path).axes))
        save_gaussians(moved, path)
        note_written(path)
        return {"path": str(path), "bytes": path.stat().st_size, "world_offset": moved.origin.tolist()}

    def _write_colmap(self, path: Path) -> dict[str, Any]:
        options = self.options
        assert options.photos is not None
        scene = load_scene(options.photos, max_pixels=options.max_pixels)
        _check_same_world(scene, self.source, options.photos)
        to_file = self._similarity(self.cameras or scene.cameras)
        moved = scene if to_file is None else scene.transform(to_file)
        gaussians = _moved(self.gaussians, to_file)
        save_colmap(moved, gaussians, path, image_format=options.image_format, overwrite=options.overwrite)
        size = sum(file.stat().st_size for file in paths.files_below(path))
        return {"path": str(path), "bytes": size, "num_images": len(scene)}

    def _write_page(self, path: Path) -> dict[str, Any]:
        """A page with the cameras, photos and numbers beside the input; the cameras move with the Gaussians."""
        from ilrm.view.page import save_result_page  # not every export needs it

        result = result_of(self.source, self.gaussians).transform(self._similarity(self.cameras))
        save_result_page(result, path)
        note_written(path)
        return {"path": str(path), "bytes": path.stat().st_size, "world_offset": result.gaussians.origin.tolist()}

    def _similarity(self, cameras: Cameras | None, prescribed: Similarity | None = None) -> Similarity | None:
        return to_written_axes(self.options.frame, self.options.scale, cameras, prescribed)


def _moved(gaussians: Gaussians, similarity: Similarity | None) -> Gaussians:
    return gaussians if similarity is None else gaussians.transform(similarity)


def _is_page(path: Path) -> bool:
    return path.suffix.lower() == ".html"


def _check_same_world(scene: Scene, gaussians: Path, photos: Path) -> None:
    """Refuse photos whose poses differ from those beside the Gaussians, if there are any. Raises SceneError."""
    beside = cameras_beside(gaussians)
    if beside is None:
        return
    cameras, names = beside
    places = find_names(names, scene.names)
    known = [view for view, place in enumerate(places) if place is not None]
    of_scene = scene.cameras[[place for place in places if place is not None]].c2w.double()
    spread, distance = cameras.centers.std(dim=0, correction=0).norm(), cameras.centers.abs().max()
    extent = max(spread.item(), 1e-9 * distance.item(), 1e-12)  # all cameras may be at one point
    error = (of_scene - cameras[known].c2w.double()).abs()
    if len(known) < len(names) or error[:, :3, :3].max() > _SAME_POSE or error[:, :3, 3].max() > _SAME_POSE * extent:
        raise SceneError(
            f"The photos {photos} are not those that {gaussians} was made from: "
            f"{cameras_file(gaussians)} lists other names or poses.",
            fix="give the scene that was reconstructed",
        )
