"""What is wrong, or odd, with a scene: everything at once, where loading stops at the first error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import atan, degrees
from pathlib import Path
from typing import Literal

import torch

from ilrm.errors import IlrmError, SceneError
from ilrm.scene import LazyImages, Scene
from ilrm.scenes.frames import Source, assemble
from ilrm.scenes.load import read_source

# Beyond these the photos are more likely mislabelled than real (100 degrees is the released data's own limit).
_WIDEST_VIEW = 100.0
_NARROWEST_VIEW = 5.0


@dataclass(frozen=True)
class Finding:
    """One observation about a scene.

    Attributes:
        level: "error" (the scene or a view cannot be used), "warning" (it can, but look), "info".
        message: a sentence that names the file or view.
    """

    level: Literal["error", "warning", "info"]
    message: str


@dataclass(frozen=True)
class SceneReport:
    """What there is to say about a scene.

    Attributes:
        name: its folder or key.
        findings: all observations.
        views, size: number and (width, height) of its photos as loaded; None if it does not load.
        fov: smallest and largest horizontal field of view in degrees.
    """

    name: str
    findings: tuple[Finding, ...]
    views: int | None = None
    size: tuple[int, int] | None = None
    fov: tuple[float, float] | None = None

    @property
    def error(self) -> str:
        """The first reason why the scene cannot be used whole; empty if it can."""
        return next((finding.message for finding in self.findings if finding.level == "error"), "")


def check_scene(path: str | Path, *, key: str | None = None) -> list[Finding]:
    """Load the scene at ``path``, decode every image and look at sizes, poses and fields of view.

    A scene that does not load gives a single error. There is no error exactly if the scene can be used whole.
    """
    return list(report_scene(str(path), lambda: read_source(Path(path), key)).findings)


def report_scene(name: str, read: Callable[[], Source]) -> SceneReport:
    """The report on a scene that ``read`` opens; see ``check_scene``."""
    try:
        source = read()
        scene = assemble(source)
    except IlrmError as error:
        return SceneReport(name, (Finding("error", str(error)),))
    findings = (*_counts(source, scene), *_poses(scene), *_fields_of_view(scene), *_images(scene))
    angles = _horizontal_fov(scene)
    return SceneReport(
        name, findings, len(scene), (scene.cameras.width, scene.cameras.height), (min(angles), max(angles))
    )


def _counts(source: Source, scene: Scene) -> Iterator[Finding]:
    width, height = scene.cameras.width, scene.cameras.height
    extras = [name for name in ("depth", "points") if getattr(scene, name) is not None]
    with_extras = f", with {' and '.join(extras)}" if extras else ""
    yield Finding("info", f"{len(scene)} views of {width}x{height}{with_extras}")
    if len(scene) < 2:
        yield Finding("warning", "one view alone shows no depth; reconstruction needs at least two")
    sizes = Counter((frame.photo.width, frame.photo.height) for frame in source.frames)
    if len(sizes) > 1:
        listed = ", ".join(f"{count} of {w}x{h}" for (w, h), count in sizes.most_common())
        yield Finding("warning", f"the photos have several sizes ({listed}); all are brought to {width}x{height}")
    models = sorted({frame.lens.model for frame in source.frames if frame.lens.distorted})
    if models:
        yield Finding("info", f"lens distortion ({', '.join(models)}) is removed while loading")


def _poses(scene: Scene) -> Iterator[Finding]:
    if len(scene) > 1 and scene.cameras.coincide():
        yield Finding("warning", "all cameras stand at one place; without parallax there is no depth")
    elif (origin := scene.cameras.local_origin()).any():
        offset = " ".join(repr(x) for x in origin.tolist())
        yield Finding("info", f"the world's origin is far away; Gaussians will be counted from the point {offset}")
    seen: dict[tuple[float, ...], str] = {}
    for name, pose in zip(scene.names, scene.cameras.c2w.flatten(1).tolist(), strict=True):
        if tuple(pose) in seen:
            yield Finding("warning", f"{name} has exactly the pose of {seen[tuple(pose)]}")
        seen.setdefault(tuple(pose), name)


def _fields_of_view(scene: Scene) -> Iterator[Finding]:
    for name, K, angle in zip(scene.names, scene.cameras.K.double(), _horizontal_fov(scene), strict=True):
        if not _NARROWEST_VIEW <= angle <= _WIDEST_VIEW:
            yield Finding("warning", f"{name} has a horizontal field of view of {angle:.0f} degrees")
        centre = K[:2, 2] / torch.tensor([scene.cameras.width, scene.cameras.height], dtype=torch.float64)
        if (centre <= 0).any() or (centre >= 1).any():
            yield Finding("warning", f"{name} has its principal point outside the image")


def _horizontal_fov(scene: Scene) -> list[float]:
    """Of each view, in degrees."""
    return [degrees(2 * atan(scene.cameras.width / (2 * focal))) for focal in scene.cameras.K[:, 0, 0].tolist()]


def _images(scene: Scene) -> Iterator[Finding]:
    assert isinstance(scene.images, LazyImages)
    for name, read in zip(scene.names, scene.images.readers, strict=True):
        try:
            image = read().numpy()
        except SceneError as error:
            yield Finding("error", str(error))
            continue
        if not (image != image[0, 0]).any():
            yield Finding("warning", f"{name} is a single flat colour")
