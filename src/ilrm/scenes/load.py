"""One way in for every kind of scene: ``load_scene`` looks at what is there."""

from __future__ import annotations

from pathlib import Path

from ilrm.scene import Scene
from ilrm.scenes.frames import Source, assemble
from ilrm.scenes.nerfstudio import read_nerfstudio


def load_scene(
    path: str | Path, *, key: str | None = None, max_side: int | None = None, size: tuple[int, int] | None = None
) -> Scene:
    return assemble(read_source(Path(path), key), max_side=max_side, size=size)


def declared_holdout(path: str | Path) -> tuple[str, ...]:
    """Names of the scene's views that its own file sets aside for testing; empty where it says nothing."""
    return read_source(Path(path)).holdout


def read_source(path: Path, key: str | None = None) -> Source:
    """What the loader that fits found at ``path``; see ``load_scene``."""
    return read_nerfstudio([path if path.is_file() else path / "transforms.json"])
