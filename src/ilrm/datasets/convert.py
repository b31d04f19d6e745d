"""Converting captures of any format to a data set for training: undistorted, resized, as chunks or camera files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from ilrm.core.checks import MAX_PIXELS
from ilrm.core.errors import ConfigError, SceneError, redirect_warnings
from ilrm.core.scene import Scene
from ilrm.datasets.dataset import NameRule, SceneRef, find_scenes
from ilrm.datasets.layouts import Item
from ilrm.datasets.save_set import CHUNK_BYTES, Outcome, save_set
from ilrm.files import as_json, check_apart, claim_names, write_owned
from ilrm.files.paths import is_dir, portable
from ilrm.scenes.camera_findings import camera_warnings
from ilrm.scenes.frames import CaptureSource, assemble
from ilrm.scenes.load import read_source
from ilrm.scenes.photos.images import Size
from ilrm.scenes.readers.photo_files import REDUCED_FOLDERS
from ilrm.scenes.readers.records import listing
from ilrm.scenes.save import ImageFormat

REPORT_FILE = "report.json"


@dataclass(frozen=True)
class Fit:
    """The size of converted photos. By default each scene keeps the most common size of its photos.

    Attributes:
        max_side: largest longer side in pixels.
        size: (width, height) of all photos: they are scaled to cover it, then centre-cropped.
        max_pixels: refuse photos of more pixels, see ``load_scene``.
    """

    max_side: int | None = None
    size: Size | None = None
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if self.max_side is not None and self.size is not None:
            raise ConfigError("A longer side and a size were given.", expected="one of them", fix="leave out one")
        sides = [side for side in (self.max_side, *(self.size or ())) if side is not None]
        if any(side < 1 for side in sides):
            raise ConfigError(f"Photos cannot have a side of {min(sides)} pixels.", expected="at least 1")

    def enlarges(self, size: Size) -> bool:
        """Whether photos of this (width, height) are smaller than the requested size."""
        if self.size is not None:
            return size[0] < self.size[0] or size[1] < self.size[1]
        return self.max_side is not None and max(size) < self.max_side


def find_inputs(paths: Sequence[Path], names: NameRule = "folder") -> list[SceneRef]:
    """The scenes of several data sets, see ``find_scenes``.

    Raises:
        ConfigError: two scenes would have the same name.
        SceneError: a path without scenes.
    """
    refs = [replace(ref, name=portable(ref.name)) for path in paths for ref in find_scenes(path, names)]
    times = Counter(ref.name for ref in refs)
    if repeated := [name for name, count in times.items() if count > 1]:
        examples = listing([_origin(ref) for ref in refs if ref.name == repeated[0]])
        raise ConfigError(
            f"Several scenes would be named {listing(repeated)}: {examples}.",
            expected="a different name for each scene",
            fix="name them by another part of their path (--key-from parent or path), or convert one input at a time",
        )
    return refs


def convert_scenes(
    refs: Sequence[SceneRef],
    output: Path | str,
    form: Literal["chunks", "json"],
    fit: Fit,
    *,
    image_format: ImageFormat = "jpg",
    jobs: int | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    on_done: Callable[[Outcome], object] = lambda outcome: None,
) -> list[Outcome]:
    """Write all scenes that are not in ``output`` yet, and report.json with the outcome of each.

    If a scene cannot be converted, its outcome gives the reason and the others are still converted. Depth and points
    are left out. If a capture has reduced copies of its photos (images_2, images_4, images_8), the smallest ones that
    are large enough are used, with scaled intrinsics.

    Args:
        refs: a result of ``find_inputs``.
        output, form, image_format, jobs, chunk_bytes, on_done: see ``save_set``.
        fit: size of the photos.

    Raises:
        OutputError: the folder cannot be written, overlaps with one of the scenes, or contains scenes that were
            converted in another way or files of somebody else.
    """
    check_apart(output, [ref.path for ref in refs])
    claim_names(Path(output), [REPORT_FILE])
    items = [Item(ref.name, _origin(ref), partial(_load, ref, fit, form)) for ref in refs]
    settings = {"max_side": fit.max_side, "size": fit.size}
    outcomes = save_set(
        items,
        output,
        form,
        image_format=image_format,
        settings=settings,
        jobs=jobs,
        chunk_bytes=chunk_bytes,
        on_done=on_done,
    )
    write_owned(Path(output), REPORT_FILE, as_json(_report(outcomes)))
    return outcomes


def _origin(ref: SceneRef) -> str:
    path = os.path.abspath(ref.path)
    return path if ref.key is None else f"{path}#{ref.key}"


def _load(ref: SceneRef, fit: Fit, form: Literal["chunks", "json"]) -> tuple[Scene, tuple[str, ...]]:
    messages: list[str] = []
    with redirect_warnings(messages.append):
        source = _open(ref, fit)
        scene = assemble(source, max_side=fit.max_side, size=fit.size, max_pixels=fit.max_pixels)
    messages += [*camera_warnings(source, scene), *_enlarged(source, scene, fit)]
    if form == "chunks" and (origin := scene.cameras.local_origin()).any():
        offset = " ".join(repr(x) for x in origin.tolist())
        messages.append(f"chunks are single precision, too little for this world: poses are relative to {offset}")
    if form == "chunks" and scene.mask is not None:
        messages.append("masks are left out: chunks cannot store them")
    return scene, tuple(dict.fromkeys(messages))


def _open(ref: SceneRef, fit: Fit) -> CaptureSource:
    """Open a scene with the smallest copies of its photos that are large enough, else with the listed photos."""
    folder = ref.path if is_dir(ref.path) else ref.path.parent
    if fit.max_side is not None or fit.size is not None:
        for images in sorted(REDUCED_FOLDERS, reverse=True):
            if not is_dir(folder / images):
                continue
            try:
                source = read_source(ref.path, ref.key, images=images)
                if not fit.enlarges(_common_size(source)):
                    return source
            except SceneError:  # copies that do not match the cameras; the listed photos may still do
                continue
    return read_source(ref.path, ref.key)


def _common_size(source: CaptureSource) -> Size:
    """The most common size of the undistorted photos."""
    sizes = Counter(frame.lens.undistorted(frame.photo.label).size for frame in source.frames)
    return sizes.most_common(1)[0][0]


def _enlarged(source: CaptureSource, scene: Scene, fit: Fit) -> Iterator[str]:
    width, height = _common_size(source)
    if fit.size is not None and fit.enlarges((width, height)):
        target = f"{scene.cameras.width}x{scene.cameras.height}"
        yield f"photos of {width}x{height} (undistorted) were enlarged to {target}"


def _report(outcomes: Sequence[Outcome]) -> dict[str, object]:
    scenes = {outcome.name: _entry(outcome) for outcome in outcomes}
    converted = sum(outcome.written is not None for outcome in outcomes)
    return {"converted": converted, "broken": len(outcomes) - converted, "scenes": scenes}


def _entry(outcome: Outcome) -> dict[str, object]:
    if outcome.written is None:
        return {"status": "broken", "origin": outcome.origin, "reason": outcome.reason}
    written = outcome.written
    return {
        "status": "converted",
        "origin": outcome.origin,
        "views": written.views,
        "width": written.width,
        "height": written.height,
        "warnings": list(written.warnings),
    }
