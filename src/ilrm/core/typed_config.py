"""Configs from plain JSON values, checked against the type hints of the config classes.

A config class needs only its fields; alternatives in a union are distinguished by their field ``kind``. Untrusted files
are read with it: whatever they contain, the result is a config or a ConfigError, and no value is used unchecked.
"""

from __future__ import annotations

import difflib
import json
import math
import types
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from ilrm.core.errors import ConfigError

Config = TypeVar("Config")
_LONGEST_SHOWN = 200
_LARGEST_INTEGER = 10**300  # JSON integers have any length; beyond this no float can hold them


def build(cls: type[Config], values: Any, name: str = "") -> Config:
    """Build a config from plain values. Missing fields get their defaults.

    Args:
        cls: a dataclass whose fields are plain values, tuples of those, and dataclasses.
        values: a result of ``plain``, or any untrusted value.
        name: name of the config in messages.

    Raises:
        ConfigError: an unknown field (the message lists the known ones), a value of the wrong type, a contradiction.
    """
    return _build(cls, values, name)


def plain(value: Any) -> Any:
    """A config as JSON-ready dictionaries, lists and plain values, understood by ``build``."""
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple | list):
        return [plain(x) for x in value]
    return str(value) if isinstance(value, Path) else value


def check_range(config: Any, least: float, most: float, *names: str) -> None:
    """Refuse fields of a config, or numbers in their tuples, outside a range; NaN always. Raises ConfigError."""
    for name in names:
        value = getattr(config, name)
        if not all(least <= x <= most for x in (value if isinstance(value, tuple) else (value,))):
            raise ConfigError(f"{name} = {value}.", expected=f"{least} to {most}")


def check_finite(config: Any) -> None:
    """Refuse NaN and infinity in any field of a config. Raises ConfigError."""
    for f in fields(config):
        value = getattr(config, f.name)
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(x, float) and not math.isfinite(x) for x in numbers):
            raise ConfigError(f"{f.name} = {value}.", expected="finite numbers")


def assign(values: Any, path: str, value: Any) -> None:
    """Set one value in nested plain values, in place.

    Args:
        path: field names and list positions joined by dots; all of them must exist.

    Raises:
        ConfigError: no such field (the message lists the known ones).
    """
    parts = path.split(".")
    for depth, name in enumerate(parts):
        if isinstance(values, list) and name in map(str, range(len(values))):
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
    raise ConfigError(f"{path}: {where} = {_shown(values)} has no fields.", fix=f"set {where} itself, to a JSON object")


# --- values to their types --------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _hints(cls: type) -> dict[str, Any]:
    """Types of the fields, in their order."""
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}


def _build(kind: Any, value: Any, path: str) -> Any:
    """Convert ``value`` to the type ``kind``; ``path`` is its position, for messages."""
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
            shown = str(name)[:_LONGEST_SHOWN]
            _unknown(f"{path}.{shown}".lstrip("."), shown, path, hints)
    made = {name: _build(hints[name], part, f"{path}.{name}".lstrip(".")) for name, part in value.items()}
    try:
        return cls(**made)
    except TypeError as error:
        raise ConfigError(f"{path or 'The config'} is incomplete: {error}.") from error


def _build_choice(choices: tuple[Any, ...], value: Any, path: str) -> Any:
    """Convert to one type of a union: None, an only other type, or a class chosen by its field ``kind``."""
    if value is None and type(None) in choices:
        return None
    choices = tuple(choice for choice in choices if choice is not type(None))
    if len(choices) == 1:
        return _build(choices[0], value, path)
    kinds = {get_args(_hints(choice)["kind"])[0]: choice for choice in choices if is_dataclass(choice)}
    chosen = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(chosen, str) or chosen not in kinds:
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
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST_INTEGER:
        return float(value)
    fits = type(value) is not int or -(2**63) <= value < 2**63
    if kind in (bool, int, float, str) and type(value) is kind and fits:
        return value
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}
    assert kind in names, f"{path}: no rule for {kind}"
    raise _wrong(path, value, names[kind])


def _wrong(path: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(f"{path or 'The config'} = {_shown(value)}.", expected=expected)


def _shown(value: Any) -> str:
    """A value as JSON, shortened for a message."""
    try:
        text = json.dumps(value, default=str)
    except (RecursionError, ValueError):  # deeply nested, or a number of thousands of digits
        return "a value that is too large to show"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
