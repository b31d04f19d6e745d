"""Index files of evaluation protocols: the input and target views of each scene."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilrm.core.errors import SceneError
from ilrm.files.reading import read_json

_KMEANS_KEY = re.compile(r"fold_8_kmeans_(\d+)_input")


@dataclass(frozen=True)
class EvaluationViews:
    """Input and target view indices of one scene, in the order of evaluation."""

    context: tuple[int, ...]
    target: tuple[int, ...]


def read_evaluation_index(path: Path | str) -> dict[str, EvaluationViews | None]:
    """Read pixelSplat's index, {scene key: {"context": [...], "target": [...]} or null}; null scenes are not evaluated.

    Raises:
        SceneError: a malformed file; the message names the scene.
    """
    data = read_json(Path(path))
    if not isinstance(data, dict) or not data:
        raise SceneError(
            f"{path} is not an evaluation index.", expected='an object {key: {"context", "target"} or null}'
        )
    return {key: None if entry is None else _views(entry, f"{key} in {path}") for key, entry in data.items()}


def read_kmeans_index(path: Path | str) -> dict[str, Mapping[int, tuple[int, ...]]]:
    """Read Long-LRM's index of input views as {scene name: {number of inputs: sorted view indices}}.

    Raises:
        SceneError: a malformed file; the message names the scene.
    """
    data = read_json(Path(path))
    named = isinstance(data, list) and all(isinstance(e, dict) and isinstance(e.get("scene_name"), str) for e in data)
    if not named or not data:
        raise SceneError(
            f"{path} is not a k-means index.", expected='a list of objects with "scene_name" and view lists'
        )
    return {entry["scene_name"]: _kmeans_lists(entry, f"{entry['scene_name']} in {path}") for entry in data}


def _kmeans_lists(entry: dict[str, Any], label: str) -> dict[int, tuple[int, ...]]:
    lists = {}
    for key, views in entry.items():
        if match := _KMEANS_KEY.fullmatch(key):
            count, views = int(match[1]), sorted(_indices(views, f"{key} of {label}"))
            if len(views) != count or len(set(views)) != count:
                raise SceneError(f"{key} of {label} lists {len(set(views))} views.", expected=f"{count} distinct views")
            lists[count] = tuple(views)
    return lists


def _views(entry: object, label: str) -> EvaluationViews:
    if not isinstance(entry, dict):
        raise SceneError(f"The entry {label} is not an object.", expected='{"context": [...], "target": [...]} or null')
    return EvaluationViews(*(_indices(entry.get(name), f'"{name}" of {label}') for name in ("context", "target")))


def _indices(value: object, label: str) -> tuple[int, ...]:
    indices = value if isinstance(value, list) else []
    if not indices or not all(type(index) is int and index >= 0 for index in indices):
        raise SceneError(f"{label} is not a list of view indices.", expected="at least one whole number, 0 or more")
    return tuple(indices)
