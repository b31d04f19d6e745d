"""Typed and checked access to the JSON of camera files."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ilrm.core.errors import SceneError
from ilrm.files.reading import read_json

# JSON integers have any length; beyond this no float can hold them.
_LARGEST_INTEGER = 10**300
_LARGEST_SIDE = 1 << 20  # pixels


def read_frames(path: Path) -> tuple[dict[str, Any], list[Record]]:
    """The top level of a camera file and its "frames", each with the top-level values as defaults.

    Raises:
        SceneError: not JSON, or no list of frames, or an empty one.
    """
    data = read_json(path)
    frames = data.get("frames") if isinstance(data, dict) else None
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise SceneError(
            f"{path} holds no frames.",
            expected='an object with a list "frames" of at least one object',
            fix="export the cameras again; the file must list every image with its pose",
        )
    top = {key: value for key, value in data.items() if key != "frames"}
    return top, [Record({**top, **frame}, f"frame {i} of {path}") for i, frame in enumerate(frames)]


@dataclass(frozen=True)
class Record:
    """One JSON object, with a label for messages."""

    values: Mapping[str, Any]
    label: str

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def _get(self, key: str, expected: str) -> Any:
        if key not in self:
            raise SceneError(f'{self.label} has no "{key}".', expected=expected)
        return self.values[key]

    def text(self, key: str) -> str:
        """A string that is not empty."""
        value = self._get(key, "a text")
        if not isinstance(value, str) or not value:
            raise SceneError(f'{self.label}: "{key}" is {_shown(value)}.', expected="a text")
        return value

    def flag(self, key: str) -> bool:
        """Whether a key is true, or a number other than zero; other values are refused."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool) and not _is_number(value):
            raise SceneError(f'{self.label}: "{key}" is {_shown(value)}.', expected="true or false")
        return bool(value)

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number; ``default`` if the key is absent."""
        if default is not None and key not in self:
            return default
        value = self._get(key, "a number")
        if not _is_number(value) or not math.isfinite(value):
            raise SceneError(f'{self.label}: "{key}" is {_shown(value)}.', expected="a finite number")
        return float(value)

    def positive(self, key: str) -> float:
        """A finite number above zero."""
        value = self.number(key)
        if value <= 0:
            raise SceneError(f'{self.label}: "{key}" is {value:g}.', expected="a number above zero")
        return value

    def numbers(self, key: str, count: int) -> list[float]:
        """A list of ``count`` finite numbers."""
        value = self._get(key, f"{count} numbers")
        if not isinstance(value, list) or len(value) != count or not all(_is_number(x) for x in value):
            raise SceneError(f'{self.label}: "{key}" is {_shown(value)}.', expected=f"a list of {count} numbers")
        if not all(math.isfinite(x) for x in value):
            raise SceneError(f'{self.label}: "{key}" is {_shown(value)}.', expected="finite numbers")
        return [float(x) for x in value]

    def pose(self, key: str) -> np.ndarray:
        """(4, 4) float64 from a list of 4 or 3 rows; the last row is set to 0 0 0 1.

        NaN and infinite values are accepted here: ``Cameras.check`` refuses them and names the view.
        """
        value = self._get(key, "a 4x4 matrix")
        rows = value if isinstance(value, list) else []
        shaped = len(rows) in (3, 4) and all(isinstance(row, list) and len(row) == 4 for row in rows)
        if not shaped or not all(_is_number(x) for row in rows for x in row):
            raise SceneError(f'{self.label}: "{key}" is {_shown(value)}.', expected="4 rows (or 3) of 4 numbers each")
        matrix = np.eye(4)
        matrix[:3] = np.array(rows[:3], dtype=np.float64)
        return matrix

    def size(self) -> tuple[int, int] | None:
        """The declared image size ("w", "h") in pixels; None where absent."""
        if "w" not in self or "h" not in self:
            return None
        size = round(self.positive("w")), round(self.positive("h"))
        check_size(*size, self.label)
        return size


def check_size(width: int, height: int, label: str) -> None:
    """Refuse impossible image sizes. Raises SceneError, which names ``label``."""
    if not (1 <= width <= _LARGEST_SIDE and 1 <= height <= _LARGEST_SIDE):
        raise SceneError(
            f"{label} declares an image of {_shown(width)}x{_shown(height)}.",
            expected=f"at least 1x1 pixel, and at most {_LARGEST_SIDE} pixels per side",
        )


def unique_names(files: Sequence[str | Path], source: Path) -> list[str]:
    """File names without folders if they are unique, else the paths as given.

    Raises:
        SceneError: a file is listed twice.
    """
    paths = [str(Path(file)) for file in files]
    repeated = sorted(path for path, times in Counter(paths).items() if times > 1)
    if repeated:
        raise SceneError(
            f"{source} lists {listing(repeated)} more than once.",
            expected="every image once",
            fix="remove the repeated frames",
        )
    short = [Path(path).name for path in paths]
    return short if len(set(short)) == len(short) else paths


def listing(items: Sequence[object], most: int = 5) -> str:
    """The first few items as text, with their total number if there are more."""
    shown = ", ".join(str(item) for item in items[:most])
    return shown if len(items) <= most else f"{shown} ... ({len(items)} in total)"


def _is_number(value: object) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= _LARGEST_INTEGER
    return isinstance(value, float)


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
