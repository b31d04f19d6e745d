"""What a capture is good for, and what to shoot to make it better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ilrm.core.cameras import Cameras
from ilrm.scenes.capture.diagnosis import groups_that_overlap
from ilrm.scenes.capture.models import SUPPORTED, Model
from ilrm.scenes.capture.photos import Shot

# Each is a limit beyond which something is worth a word.
_WEAK_OVERLAP, _FEW_POINTS = 0.25, 50
_JUMP = 1.4
_NARROW, _FRONT_DEG, _GAP_DEG = 0.15, 40.0, 100.0
_FOCAL_MOVED = 0.3
_GUESSED_FOCAL = 1.2
_MOST_NAMED = 8


@dataclass(frozen=True)
class Weakness:
    """Something that makes the result worse, and what to shoot instead."""

    problem: str
    advice: str


def left_out(shots: Sequence[Shot], model: Model, survey: dict[str, Any]) -> dict[str, str]:
    """Why each photo without a camera has none, by name."""
    partners: dict[str, int] = {}
    for pair in survey["pairs"]:
        for prepared in pair["names"]:
            partners[prepared] = partners.get(prepared, 0) + 1
    groups = groups_that_overlap(survey["pairs"], [shot.prepared for shot in shots])
    main = set(model.w2c)
    reasons = {}
    for shot in shots:
        if shot.prepared in main:
            continue
        mine = next(group for group in groups if shot.prepared in group)
        if shot.prepared in model.contradicted:
            reason = "its camera contradicts what it shares with other photos: something moved, or looks alike"
        elif survey["keypoints"].get(shot.prepared, 0) < _FEW_POINTS:
            reason = "too few details"
        elif not partners.get(shot.prepared):
            reason = "overlaps with no other photo"
        elif not main & set(mine):
            reason = f"belongs to another group of {len(mine)} photos that does not overlap with the rest"
        else:
            reason = "does not fit the others: too little overlap, or something moved"
        reasons[shot.name] = reason
    return reasons


def weaknesses(
    shots: Sequence[Shot], unregistered: dict[str, str], refused: dict[str, str], model: Model, cameras: Cameras
) -> list[Weakness]:
    """What to say about a capture; empty for a good one.

    Args:
        shots: those with cameras, in the order of ``cameras``.
        unregistered, refused: names of the others, with reasons.
        cameras: in the world, with +z up and the middle of the points at the origin.
    """
    found = []
    if unregistered:
        found.append(
            Weakness(
                f"{len(unregistered)} of {len(shots) + len(unregistered)} photos have no camera: "
                f"{_named(list(unregistered))}",
                "take more photos between these and the others, in small steps",
            )
        )
    blurry = [name for name, reason in refused.items() if "blurred" in reason]
    if blurry:
        found.append(
            Weakness(
                f"{len(blurry)} photos are too blurred to use: {_named(blurry)}", "move more slowly, use more light"
            )
        )
    unusable = {name: reason for name, reason in refused.items() if name not in blurry}
    if unusable:
        found.append(
            Weakness(
                f"{len(unusable)} photos cannot be used: "
                + _named([f"{name} ({reason})" for name, reason in unusable.items()]),
                "export them again from the camera or phone, or leave them out",
            )
        )
    found += _about_overlap(shots, model)
    found += _about_exposure(shots, model)
    found += _about_places(cameras, model)
    found += _about_lens(shots, model)
    return found


def _about_overlap(shots: Sequence[Shot], model: Model) -> list[Weakness]:
    share = best_shares(shots, model)
    found = []
    if share and np.median(list(share.values())) < _WEAK_OVERLAP:
        found.append(
            Weakness(
                f"neighbouring photos share only {np.median(list(share.values())):.0%} of their points",
                "take smaller steps: each photo should show two thirds of the one before",
            )
        )
    weak = [shot.name for shot in shots if model.points_of.get(shot.prepared, 0) < _FEW_POINTS]
    if weak:
        found.append(
            Weakness(
                f"{len(weak)} photos hang on few points, so their cameras may be wrong: {_named(weak)}",
                "retake them with more texture in view, or with more overlap",
            )
        )
    return found


def is_doubtful(shots: Sequence[Shot], model: Model) -> bool:
    """Whether most cameras hang on few points, or much of what matches does not fit them."""
    few = float(np.median([model.points_of.get(shot.prepared, 0) for shot in shots])) < _FEW_POINTS
    return few or model.support < SUPPORTED


def best_shares(shots: Sequence[Shot], model: Model) -> dict[str, float]:
    """For each photo, the largest share of its points that another photo sees, too."""
    share = {shot.prepared: 0.0 for shot in shots}
    for a, b, count in model.shared:
        for name in (a, b):
            if name in share:
                share[name] = max(share[name], count / max(model.points_of.get(name, 0), 1))
    return share


def jumps(shots: Sequence[Shot], model: Model) -> list[tuple[str, str, float]]:
    """Pairs of photos of the same points whose brightness differs much: (name, name, factor), largest first."""
    known = {shot.prepared: shot for shot in shots}
    partner: dict[str, tuple[int, str]] = {}
    for a, b, count in model.shared:
        for one, other in ((a, b), (b, a)):
            if one in known and other in known and count > partner.get(one, (0, ""))[0]:
                partner[one] = (count, other)
    found = {}
    for one, (_, other) in partner.items():
        bright = sorted((max(known[one].brightness, 1e-3), max(known[other].brightness, 1e-3)))
        if bright[1] / bright[0] > _JUMP:
            found[tuple(sorted((known[one].name, known[other].name)))] = bright[1] / bright[0]
    return sorted(((a, b, round(factor, 2)) for (a, b), factor in found.items()), key=lambda pair: -pair[2])


def _about_exposure(shots: Sequence[Shot], model: Model) -> list[Weakness]:
    found = jumps(shots, model)
    if not found:
        return []
    a, b, factor = found[0]
    return [
        Weakness(
            f"brightness jumps between {len(found)} pairs of photos, most between {a} and {b} ({factor:.1f} times)",
            "lock exposure and white balance before the first photo; avoid lamps and the sun in the picture",
        )
    ]


def seen_from(cameras: Cameras) -> tuple[float, float]:
    """How much of a turn around the middle the cameras cover, and the widest gap, in degrees, seen from above."""
    centres = cameras.centers.double().cpu().numpy()
    angles = np.sort(np.degrees(np.arctan2(centres[:, 1], centres[:, 0])) % 360)
    gaps = np.diff(np.append(angles, angles[0] + 360))
    return float(360 - gaps.max()), float(gaps.max())


def _about_places(cameras: Cameras, model: Model) -> list[Weakness]:
    centres = cameras.centers.double().cpu().numpy()
    far = float(np.median(np.linalg.norm(centres, axis=1)))
    wide = float(np.linalg.norm(centres - centres.mean(0), axis=1).max())
    covered, gap = seen_from(cameras)
    forward = cameras.forward.double().cpu().numpy()
    inward = float(np.mean((forward * -centres).sum(1) > 0.7 * np.linalg.norm(centres, axis=1))) > 0.7
    found = []
    if wide < _NARROW * far:
        found.append(
            Weakness(
                f"all photos were taken within {wide / max(far, 1e-9):.0%} of the distance to the scene",
                "step further to the sides, and closer: depth is only seen from different places",
            )
        )
    elif inward and covered < _FRONT_DEG:
        found.append(
            Weakness(
                f"the scene is seen from one side only ({covered:.0f} degrees of a turn)",
                "walk further around it, if its sides and back matter",
            )
        )
    elif inward and covered >= 180 and gap > _GAP_DEG:
        found.append(
            Weakness(
                f"a side is missing: no photo for {gap:.0f} degrees of the turn around the scene",
                "close the circle, so that the last photo shows what the first one does",
            )
        )
    return found


def _about_lens(shots: Sequence[Shot], model: Model) -> list[Weakness]:
    known = [shot.data.focal for shot in shots if shot.data.focal]
    prior = float(np.median(known)) if known else _GUESSED_FOCAL
    result = focal_share(model)
    if known and abs(result / prior - 1) > _FOCAL_MOVED:
        return [
            Weakness(
                f"the photos' data give a focal length of {prior:.2f} of the longer side, the photos themselves "
                f"{result:.2f}",
                "check that the photos were not cropped or zoomed after they were taken",
            )
        ]
    return []


def focal_share(model: Model) -> float:
    """Median focal length as a share of the longer side."""
    return float(np.median([camera.params[0] / max(camera.width, camera.height) for camera in model.cameras.values()]))


def _named(names: list[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMED])
    return shown + (f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else "")
