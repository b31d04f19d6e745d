"""Why photos cannot become a scene, in words that say what to shoot instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ilrm.core.errors import SceneError

# Pixels of the prepared copies. A camera that only turns explains such pairs, if they moved more than the second.
_TURN_PX, _MOVED_PX = 1.5, 6.0
# Below this the picture did not move at all.
_STILL_PX = 0.75
# Shares of the pairs that must agree before the whole capture is judged.
_NEARLY_ALL = 0.9
_FEW_FEATURES = 60

FOOTAGE = "walk around the subject with small steps, so that each photo shares two thirds of its view with the next"


def refuse_few(usable: int, root: str, because: str = "") -> None:
    """Refuse fewer than three photos."""
    if usable < 3:
        count = {0: "no photo", 1: "one photo"}.get(usable, f"{usable} photos")
        raise SceneError(
            f"{root} has {count} that can be used{because}.",
            expected="at least 3 photos of one scene from different places; 10 to 50 are better",
            fix=FOOTAGE,
        )


def refuse_blurred(root: str, photos: int) -> SceneError:
    """The error for a capture without a sharp photo."""
    return SceneError(
        f"All {photos} photos of {root} are blurred.",
        expected="photos with sharp details",
        fix="hold the camera still for each photo, use more light, and let it focus; or film more slowly",
    )


def groups_that_overlap(pairs: Sequence[dict[str, Any]], names: Sequence[str]) -> list[list[str]]:
    """Photos that matching connects, the largest group first; photos without any match are groups of their own."""
    owner = {name: name for name in names}

    def root(name: str) -> str:
        while owner[name] != name:
            owner[name] = owner[owner[name]]
            name = owner[name]
        return name

    for pair in pairs:
        a, b = (root(name) for name in pair["names"])
        owner[max(a, b)] = min(a, b)
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(root(name), []).append(name)
    return sorted(groups.values(), key=lambda group: (-len(group), group[0]))


def before_mapping(survey: dict[str, Any], photos: int, root: str) -> SceneError | None:
    """The error for a capture whose matches already show that it cannot work; None if it may."""
    pairs, features = survey["pairs"], survey["keypoints"]
    if features and np.median(list(features.values())) < _FEW_FEATURES:
        return SceneError(
            f"The photos of {root} show too few details: about {np.median(list(features.values())):.0f} each.",
            expected="surfaces with texture",
            fix="include more of the surroundings, put patterned things into the scene, or use more light",
        )
    largest = len(groups_that_overlap(pairs, list(features))[0]) if features else 0
    if largest < 3:
        return SceneError(
            f"The {photos} photos of {root} do not overlap: no three of them show the same surfaces.",
            expected="photos of one scene that share at least half of their view with others",
            fix=FOOTAGE,
        )
    moved = np.array([pair["moved_px"] for pair in pairs])
    if (moved < _STILL_PX).mean() >= _NEARLY_ALL:
        return SceneError(
            f"The camera of {root} stands still: the photos show the same view.",
            expected="photos from different places",
            fix=FOOTAGE + "; things that move by themselves cannot be reconstructed from one place",
        )
    if one_place(survey):
        return SceneError(
            f"The photos of {root} were all taken from one place: the camera turns but does not move.",
            expected="photos from different places, because depth is only seen from the side",
            fix="step sideways between photos instead of turning on the spot; " + FOOTAGE,
        )
    return None


def one_place(survey: dict[str, Any]) -> bool:
    """Whether nearly all pairs that move are explained by a camera that only turns."""
    turned = [pair for pair in survey["pairs"] if "turn_px" in pair and pair["moved_px"] > _MOVED_PX]
    if len(turned) < 2:
        return False
    return float(np.mean([pair["turn_px"] < _TURN_PX for pair in turned])) >= _NEARLY_ALL


def not_solved(registered: int, photos: int, root: str) -> SceneError:
    """The error for a capture that overlaps but whose cameras could not be found."""
    found = f"cameras of only {registered} of {photos} photos" if registered else "no cameras"
    return SceneError(
        f"Structure from motion found {found} for {root}: the photos overlap, but no camera positions explain them.",
        expected="a scene that stands still, seen from places that differ",
        fix="leave out photos in which the subject itself moves or turns, and mirrors, glass and plain walls; "
        + FOOTAGE,
    )
