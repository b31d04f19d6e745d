"""Checking a scene: reports all problems, whereas loading stops at the first error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ilrm.core.errors import IlrmError, SceneError, redirect_warnings
from ilrm.core.scene import LazyImages, Scene
from ilrm.files.image_files import MAX_PIXELS
from ilrm.scenes.camera_findings import camera_warnings, horizontal_fov
from ilrm.scenes.frames import CaptureSource, assemble
from ilrm.scenes.load import read_source


@dataclass(frozen=True)
class Finding:
    """One observation about a scene.

    Attributes:
        level: "error" (the scene or a view cannot be used), "warning" (it can, but something looks wrong), "info".
        message: a sentence that names the file or view.
    """

    level: Literal["error", "warning", "info"]
    message: str


@dataclass(frozen=True)
class SceneReport:
    """All findings about a scene.

    Attributes:
        name: its folder or key.
        findings: all observations.
        views, size: number and (width, height) of the photos as loaded; None if the scene does not load.
        fov: smallest and largest horizontal field of view in degrees.
    """

    name: str
    findings: tuple[Finding, ...]
    views: int | None = None
    size: tuple[int, int] | None = None
    fov: tuple[float, float] | None = None

    @property
    def error(self) -> str:
        """The first reason why the scene cannot be used completely; empty if it can."""
        return next((finding.message for finding in self.findings if finding.level == "error"), "")


def check_scene(path: str | Path, *, key: str | None = None, max_pixels: int | None = MAX_PIXELS) -> list[Finding]:
    """Load the scene at ``path``, decode every image, and check sizes, poses and fields of view.

    A scene that does not load gives a single error, as do photos above ``max_pixels`` (see ``load_scene``). There are
    no errors if and only if the whole scene can be used.
    """
    return list(report_scene(str(path), lambda: read_source(Path(path), key), max_pixels).findings)


def report_scene(name: str, read: Callable[[], CaptureSource], max_pixels: int | None = MAX_PIXELS) -> SceneReport:
    """The report on the scene that ``read`` returns; see ``check_scene``."""
    messages: list[str] = []
    try:
        with redirect_warnings(messages.append):
            source = read()
            scene = assemble(source, max_pixels=max_pixels)
            messages.extend(camera_warnings(source, scene))
    except IlrmError as error:
        return SceneReport(name, (Finding("error", str(error)),))
    warned = tuple(Finding("warning", message) for message in dict.fromkeys(messages))
    findings = (*_counts(source, scene), *warned, *_images(scene))
    angles = horizontal_fov(scene)
    return SceneReport(
        name, findings, len(scene), (scene.cameras.width, scene.cameras.height), (min(angles), max(angles))
    )


def _counts(source: CaptureSource, scene: Scene) -> Iterator[Finding]:
    width, height = scene.cameras.width, scene.cameras.height
    known = {"depth": scene.depth, "points": scene.points, "masks": scene.mask}
    extras = [name for name, value in known.items() if value is not None]
    with_extras = f", with {' and '.join(extras)}" if extras else ""
    yield Finding("info", f"{len(scene)} views of {width}x{height}{with_extras}")
    if len(scene) < 2:
        yield Finding("warning", "one view alone shows no depth; reconstruction needs at least two")
    if not scene.cameras.coincide() and (origin := scene.cameras.local_origin()).any():
        offset = " ".join(repr(x) for x in origin.tolist())
        yield Finding("info", f"the world's origin is far away; Gaussians will be relative to the point {offset}")
    models = sorted({frame.lens.model for frame in source.frames if frame.lens.distorted})
    if models:
        yield Finding("info", f"lens distortion ({', '.join(models)}) is removed while loading")


def _images(scene: Scene) -> Iterator[Finding]:
    assert isinstance(scene.images, LazyImages)
    for view, name in enumerate(scene.names):
        try:
            image = scene.images.readers[view]().numpy()
            mask = scene.mask_of([view])
        except SceneError as error:
            yield Finding("error", str(error))
            continue
        if not (image != image[0, 0]).any():
            yield Finding("warning", f"{name} is a single flat colour")
        if mask is not None and not mask.any():
            yield Finding("warning", f"the mask of {name} excludes every pixel")
