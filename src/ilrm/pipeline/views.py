"""Choosing which photos are inputs, which are held out, and which are left over."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ilrm.core.checks import check_at_least
from ilrm.core.errors import ConfigError, SceneError

if TYPE_CHECKING:
    from ilrm.core.scene import Scene

_HOLD_OUT_FROM = 10  # with fewer photos than this, none is held out by default
_HOLD_OUT_EVERY = 8


@dataclass(frozen=True)
class ViewSplit:
    """Indices of a scene's views by their use."""

    inputs: list[int]
    held_out: list[int]
    spare: list[int]


def split_views(
    scene: Scene, path: Path, views: int | None, holdout: int | None, *, most: int | None = None, seed: int = 0
) -> ViewSplit:
    """Decide the use of every view.

    Args:
        path: the scene's path, from which its own list of test photos is read if ``holdout`` is None.
        views: number of inputs; by default all that are not held out, up to ``most``.
        holdout: hold out every N-th view; 0 holds out none.
        most: default limit on the number of inputs; no limit by default.

    Raises:
        ConfigError: invalid numbers.
        SceneError: fewer than two views remain as inputs.
    """
    from ilrm.scenes.views import choose_inputs

    held_out = _held_out(scene, path, holdout)
    kept_out = set(held_out)
    rest = [i for i in range(len(scene)) if i not in kept_out]
    if len(rest) < 2:
        raise SceneError(
            f"{path} has {len(scene)} photo(s), of which {len(rest)} may be inputs.",
            expected="at least 2 posed photos as inputs",
            fix="add photos" + (", or use them all with --holdout 0" if len(scene) >= 2 else ""),
        )
    if views is None:
        views = min(len(rest), most or len(rest))
    check_at_least("--views", views, 2)
    if views > len(rest):
        raise ConfigError(
            f"--views {views} was given, but {path} has {len(rest)} photos that may be inputs "
            f"({len(held_out)} are held out).",
            expected=f"2 to {len(rest)}",
        )
    inputs = rest if views == len(rest) else choose_inputs(scene, views, rest, seed)
    chosen = set(inputs)
    return ViewSplit(inputs, held_out, [i for i in rest if i not in chosen])


def _held_out(scene: Scene, path: Path, holdout: int | None) -> list[int]:
    from ilrm.scenes import declared_holdout, split_holdout

    if holdout is None:
        declared = set(declared_holdout(path))
        if found := [i for i, name in enumerate(scene.names) if name in declared]:
            return found
        holdout = _HOLD_OUT_EVERY if len(scene) >= _HOLD_OUT_FROM else 0
    if holdout == 0:
        return []
    check_at_least("--holdout", holdout, 0)
    return split_holdout(len(scene), holdout)[1]
