"""Training configs as plain JSON values, and single fields changed by ``path.to.field=value``."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ilrm.core.errors import ConfigError
from ilrm.core.typed_config import assign, build, plain
from ilrm.files import write_json
from ilrm.files.reading import read_json
from ilrm.train.config import TrainConfig

__all__ = ["from_dict", "from_json", "override", "to_dict", "to_json", "value_of"]

_WORDS = {"True": True, "False": False, "None": None}
_NUMBER = r"[+-]?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?"


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The config as JSON-ready dictionaries, lists and plain values, understood by ``from_dict``."""
    return plain(config)


def from_dict(values: Any) -> TrainConfig:
    """The config of a description. Fields that are left out have their defaults.

    Raises:
        ConfigError: an unknown field (names it and those there are), a value of the wrong type, a contradiction.
    """
    return build(TrainConfig, values)


def to_json(config: TrainConfig, path: Path | str) -> None:
    """Write the config to a file. Raises OutputError."""
    write_json(path, to_dict(config))


def from_json(path: Path | str) -> TrainConfig:
    """Read a config that ``to_json`` wrote, or that was written by hand.

    Raises:
        ConfigError: as ``from_dict``; or the file cannot be read as JSON.
    """
    return from_dict(read_json(path, ConfigError))


def override(config: TrainConfig, assignments: Sequence[str]) -> TrainConfig:
    """The config with some fields changed.

    Args:
        assignments: such as ``optimiser.peak=1e-4``, ``stages.0.batch=8``, ``loss.perceptual=null`` or
            ``stages.0.size=[128,128]``: a path of field names and list positions, and a value (see ``value_of``).
            Contradictions are looked for after the last one.

    Raises:
        ConfigError: no ``=``, an unknown field (lists those there are), a value of the wrong type, a contradiction.
    """
    values = to_dict(config)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"{assignment!r} changes nothing.", expected="path.to.field=value")
        assign(values, path.strip(), value_of(text.strip(), path.strip()))
    return from_dict(values)


def value_of(text: str, path: str = "") -> Any:
    """The value that a text stands for: JSON, or True, False, None and numbers like .5 as in Python, or a text.

    Raises:
        ConfigError: JSON that is nested too deeply.
    """
    if text in _WORDS:
        return _WORDS[text]
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ConfigError(f"The value of {path} is nested too deeply.", expected="a JSON value") from error
    except ValueError:
        return float(text) if re.fullmatch(_NUMBER, text) else text
