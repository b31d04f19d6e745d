"""Training configs as plain JSON values, and single fields changed by ``path.to.field=value``.

Driven by the type hints of the config classes: a class needs nothing but its fields, and classes that can stand in
one place are told apart by their ``kind``.
"""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from ilrm.errors import ConfigError
from ilrm.files import write_json
from ilrm.reading import read_json
from ilrm.train.config import TrainConfig

__all__ = ["from_dict", "from_json", "override", "to_dict", "to_json"]


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The config as JSON-ready dictionaries, lists and plain values, understood by ``from_dict``."""
    return _plain(config)


def from_dict(values: Any) -> TrainConfig:
    """The config of a description. Fields that are left out have their defaults.

    Raises:
        ConfigError: an unknown field (names it and those there are), a value of the wrong type, a contradiction.
    """
    return _build(TrainConfig, values, "")


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
            ``stages.0.size=[128,128]``: a path of field names and list positions, and a JSON value; a bare word is
            a string. Contradictions are looked for after the last one.

    Raises:
        ConfigError: no ``=``, an unknown field (lists those there are), a value of the wrong type, a contradiction.
    """
    values = to_dict(config)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"{assignment!r} changes nothing.", expected="path.to.field=value")
        _assign(values, path.strip().split("."), _value(text.strip()), path.strip())
    return from_dict(values)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _assign(values: Any, parts: list[str], value: Any, path: str) -> None:
    """Set ``values[a][b]...`` in place, where each part of the path must be there already."""
    for depth, name in enumerate(parts):
        if isinstance(values, list) and name.isdigit() and int(name) < len(values):
            key: Any = int(name)
        elif isinstance(values, dict) and name in values:
            key = name
        else:
            _unknown(path, name, ".".join(parts[:depth]), values)
        if depth == len(parts) - 1:
            values[key] = value
        else:
            values = values[key]


def _unknown(path: str, name: str, where: str, values: Any) -> NoReturn:
    inside = f"{where} has" if where else "The config has"
    if isinstance(values, dict):
        close = difflib.get_close_matches(name, values, 1)
        raise ConfigError(
            f"{path}: {inside} no field {name!r}.",
            expected=f"one of {', '.join(values)}",
            fix=f"did you mean {close[0]}?" if close else "",
        )
    if isinstance(values, list):
        raise ConfigError(f"{path}: {inside} no entry {name}.", expected=f"0 to {len(values) - 1}")
    raise ConfigError(
        f"{path}: {where} = {json.dumps(values)} has no fields.", fix=f"set {where} itself, to a JSON object"
    )


# --- values to plain ones and back ----------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(x) for x in value]
    return str(value) if isinstance(value, Path) else value


@lru_cache(maxsize=64)
def _hints(cls: type) -> dict[str, Any]:
    """Types of the fields, in their order."""
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}


def _build(kind: Any, value: Any, path: str) -> Any:
    """``value`` as the type ``kind``; ``path`` says where it stands."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _build_choice(get_args(kind), value, path)
    if origin is tuple:
        return _build_tuple(get_args(kind), value, path)
    if origin is Literal:
        if value in get_args(kind) and type(value) in {type(x) for x in get_args(kind)}:
            return value
        raise _wrong(path, value, "one of " + ", ".join(map(str, get_args(kind))))
    if is_dataclass(kind):
        return _build_dataclass(kind, value, path)
    return _build_scalar(kind, value, path)


def _build_dataclass(cls: Any, value: Any, path: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(path, value, f"an object with the fields {', '.join(_hints(cls))}")
    hints = _hints(cls)
    for name in value:
        if name not in hints:
            _unknown(f"{path}.{name}".lstrip("."), name, path, hints)
    made = {name: _build(hints[name], part, f"{path}.{name}".lstrip(".")) for name, part in value.items()}
    try:
        return cls(**made)
    except TypeError as error:
        raise ConfigError(f"{path or 'The config'} is incomplete: {error}.") from error


def _build_choice(choices: tuple[Any, ...], value: Any, path: str) -> Any:
    """One of several types: None by itself, classes by their ``kind``, others by trying."""
    if value is None and type(None) in choices:
        return None
    choices = tuple(choice for choice in choices if choice is not type(None))
    if len(choices) == 1:
        return _build(choices[0], value, path)
    kinds = {get_args(_hints(choice)["kind"])[0]: choice for choice in choices if is_dataclass(choice)}
    chosen = value.get("kind") if isinstance(value, dict) else None
    if chosen not in kinds:
        raise _wrong(path, value, f"an object with a kind of {', '.join(kinds)}")
    return _build(kinds[chosen], value, path)


def _build_tuple(parts: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    endless = len(parts) == 2 and parts[1] is Ellipsis
    if not isinstance(value, list | tuple) or (not endless and len(value) != len(parts)):
        raise _wrong(path, value, "a list" if endless else f"a list of {len(parts)}")
    kinds = [parts[0]] * len(value) if endless else parts
    return tuple(_build(kind, x, f"{path}.{i}") for i, (kind, x) in enumerate(zip(kinds, value, strict=True)))


def _build_scalar(kind: Any, value: Any, path: str) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (bool, int, float, str) and type(value) is kind:
        return value
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}
    assert kind in names, f"{path}: no rule for {kind}"
    raise _wrong(path, value, names[kind])


def _wrong(path: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(f"{path or 'The config'} = {json.dumps(value, default=str)}.", expected=expected)
