"""Warnings about suspicious cameras in a scene that can still be loaded: one line for each kind of problem."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from math import atan, degrees

import torch

from ilrm.core.scene import Scene
from ilrm.scenes.frames import CaptureSource
from ilrm.scenes.readers.records import listing

# Horizontal fields of view outside this range, in degrees, are probably errors (100 is the limit of the released data).
_WIDEST_VIEW = 100.0
_NARROWEST_VIEW = 5.0
_MOST_OFF_CENTRE = 0.3  # of the principal point, as a share of the photo's side
_TALLEST_PIXEL = 2.0


def camera_warnings(source: CaptureSource, scene: Scene) -> Iterator[str]:
    """Sentences without a full stop; each names the views.

    Args:
        source: the result of a reader.
        scene: the scene assembled from it.
    """
    yield from _sizes(source, scene)
    yield from _distortion(source)
    yield from _positions(scene)
    yield from _intrinsics(scene)


def horizontal_fov(scene: Scene) -> list[float]:
    """Horizontal field of view of each view in degrees."""
    return [degrees(2 * atan(scene.cameras.width / (2 * focal))) for focal in scene.cameras.K[:, 0, 0].tolist()]


def _sizes(source: CaptureSource, scene: Scene) -> Iterator[str]:
    sizes = Counter((frame.photo.width, frame.photo.height) for frame in source.frames)
    if len(sizes) > 1:
        listed = ", ".join(f"{count} of {w}x{h}" for (w, h), count in sizes.most_common(5))
        target = f"{scene.cameras.width}x{scene.cameras.height}"
        yield f"the photos have several sizes ({listed}); all become {target}"


def _distortion(source: CaptureSource) -> Iterator[str]:
    distorted = [frame for frame in source.frames if frame.lens.distorted]
    for lens in dict.fromkeys(frame.lens for frame in distorted if frame.lens.kept_share() < 1):
        names = [frame.name for frame in distorted if frame.lens == lens]
        yield (
            f"the distortion of {lens} folds back inside the photo; cropped to the {lens.kept_share():.0%} of the "
            f"pixels inside the fold: {listing(names)}"
        )
    for lens in dict.fromkeys(frame.lens for frame in distorted if frame.lens.kept_share() == 1):
        straight = lens.undistorted("a photo")
        if 2 * straight.width < lens.width or 2 * straight.height < lens.height:
            yield (
                f"the distortion of {lens} shrinks photos of {lens.width}x{lens.height} "
                f"to {straight.width}x{straight.height}"
            )


def _positions(scene: Scene) -> Iterator[str]:
    if len(scene) > 1 and scene.cameras.coincide():
        yield "all cameras are at the same position; without parallax there is no depth"
        return
    first: dict[tuple[float, ...], str] = {}
    repeated = []
    for name, pose in zip(scene.names, scene.cameras.c2w.flatten(1).tolist(), strict=True):
        other = first.setdefault(tuple(pose), name)
        if other != name:
            repeated.append(f"{name} has exactly the pose of {other}")
    if repeated:
        yield listing(repeated, most=3)


def _intrinsics(scene: Scene) -> Iterator[str]:
    K = scene.cameras.K.double()
    odd = [not _NARROWEST_VIEW <= angle <= _WIDEST_VIEW for angle in horizontal_fov(scene)]
    if any(odd):
        angles = [angle for angle, is_odd in zip(horizontal_fov(scene), odd, strict=True) if is_odd]
        low, high = f"{min(angles):.0f}", f"{max(angles):.0f}"
        yield f"{_have(scene, odd)} a horizontal field of view of {low if low == high else f'{low} to {high}'} degrees"
    tall = K[:, 0, 0] / K[:, 1, 1]
    odd = ((tall > _TALLEST_PIXEL) | (tall < 1 / _TALLEST_PIXEL)).tolist()
    if any(odd):
        yield f"{_have(scene, odd)} focal lengths that differ by more than a factor of {_TALLEST_PIXEL:g} in x and y"
    off = (K[:, :2, 2] / torch.tensor([scene.cameras.width, scene.cameras.height]) - 0.5).abs().amax(1)
    outside = (off >= 0.5).tolist()
    if any(outside):
        yield f"{_have(scene, outside)} the principal point outside the image"
    odd = ((off > _MOST_OFF_CENTRE) & (off < 0.5)).tolist()
    if any(odd):
        yield f"{_have(scene, odd)} the principal point far from the middle of the image"


def _have(scene: Scene, chosen: Sequence[bool]) -> str:
    """The names of the chosen views with their verb: "a.png has", "all 4 photos have"."""
    names = [name for name, is_chosen in zip(scene.names, chosen, strict=True) if is_chosen]
    if len(names) == 1:
        return f"{names[0]} has"
    return f"all {len(names)} photos have" if len(names) == len(scene) else f"{listing(names)} have"
