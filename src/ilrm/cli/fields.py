"""Fields of the training config as flags: ``ilrm train PRESET --optimiser.peak 1e-4``.

tyro lists them with the preset's values. What is given becomes an assignment like those of ``--config``, so that one
road checks it, from the command line, a file or Python.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from ilrm.core.errors import ConfigError

if TYPE_CHECKING:
    from ilrm.train.config import TrainConfig

_HELP = {"-h", "--help"}


def split_fields(arguments: Sequence[str], own: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take the flags of config fields out of a command line.

    Args:
        arguments: of ``ilrm train``.
        own: names of the command's own options, which win where both have a name.

    Returns:
        The other arguments, and an assignment ``path=[value, ...]`` for each field.

    Raises:
        ConfigError: a field without a value.
    """
    rest: list[str] = []
    found: list[tuple[str, list[str]]] = []
    values = rest
    for argument in arguments:
        if not _is_flag(argument):
            values.append(argument)
            continue
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or name in own or not _is_field(name):
            rest.append(argument)
            values = rest
            continue
        values = [value] if equals else []
        found.append((name, values))
    for name, values in found:
        if not values:
            raise ConfigError(f"--{name} was given no value.", expected="a value, or several for a list")
    return rest, [f"{name}={json.dumps(values)}" for name, values in found]


def _is_flag(argument: str) -> bool:
    return argument.startswith("-") and not re.match(r"-[\d.]", argument)


def _is_field(name: str) -> bool:
    if "." in name:  # the command has no such option; a mistyped one gets the message of the config
        return True
    if f"--{name}" in _HELP:
        return False
    from ilrm.train.config import TrainConfig

    return name in {field.name for field in fields(TrainConfig)}


def assign_fields(config: TrainConfig, assignments: Sequence[str]) -> TrainConfig:
    """The config with the fields that ``split_fields`` found.

    Raises:
        ConfigError: as ``ilrm.train.serialise.override``.
    """
    from ilrm.train.serialise import override, to_dict, value_of

    before = to_dict(config)
    changes = []
    for assignment in assignments:
        path, _, text = assignment.partition("=")
        values = _in_groups([value_of(value, path) for value in json.loads(text)], _width(config, path), path)
        is_list = len(values) > 1 or (isinstance(_now(before, path), list) and not _is_whole(values, path, config))
        changes.append(f"{path}={json.dumps(values if is_list else values[0])}")
    return override(config, changes) if changes else config


def _now(values: Any, path: str) -> Any:
    """What a field holds; None where there is none."""
    for name in path.split("."):
        if isinstance(values, list) and name.isdecimal() and int(name) < len(values):
            values = values[int(name)]
        else:
            values = values.get(name) if isinstance(values, dict) else None
    return values


def _width(config: TrainConfig, path: str) -> int | None:
    """How many values an item of a list of tuples has, such as 2 for sizes; None where a field is no such list."""
    *above, name = path.split(".")
    value: Any = config
    for step in above:
        if isinstance(value, tuple) and step.isdecimal():
            value = value[int(step)] if int(step) < len(value) else None
        else:
            value = getattr(value, step, None)
    hint = get_type_hints(type(value)).get(name) if is_dataclass(value) else None
    item = next(iter(get_args(hint)), None) if get_args(hint)[1:] == (...,) else None
    return len(get_args(item)) if get_origin(item) is tuple else None


def _in_groups(values: list[Any], width: int | None, path: str) -> list[Any]:
    """Values of a list of tuples, which a command line has one after the other."""
    if width is None or any(isinstance(value, list) for value in values):
        return values
    if len(values) % width:
        raise ConfigError(
            f"--{path} was given {len(values)} values.", expected=f"{width} for each item of the list, or JSON"
        )
    return [values[i : i + width] for i in range(0, len(values), width)]


def _is_whole(values: list[Any], path: str, config: TrainConfig) -> bool:
    """Whether the only value is the whole list already, in JSON."""
    (value,) = values
    if not isinstance(value, list):
        return False
    return _width(config, path) is None or all(isinstance(item, list) for item in value)


def show_fields(preset_name: str, assignments: Sequence[str]) -> None:
    """Print every field with its value in the preset.

    Raises:
        ConfigError: no such preset; fields that cannot be assigned.
    """
    import tyro

    from ilrm.train.presets import preset

    try:
        config = preset(preset_name)
    except ConfigError:
        config = preset(preset_name, ".")  # its help needs no data
    config = assign_fields(config, assignments)
    absent = [f"--{path.replace('_', '-')} JSON" for path in _absent(config)]
    missing = f" Without values here: {', '.join(absent)} ." if absent else ""
    with suppress(SystemExit):
        tyro.cli(
            type(config),
            default=config,
            args=["--help"],
            prog=f"ilrm train {preset_name}",
            description=(
                "Fields of the training config, with this preset's values. Options of the command above that have the "
                "same name come first. What is of another kind, or not there yet, is given as a whole in JSON: "
                """--stages.0.sampler '{"kind": "spread", "inputs": [2, 4]}', --validation null."""
                f"{missing}"
            ),
            config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
        )


def _absent(value: Any, path: str = "") -> Iterator[str]:
    """Paths of parts of a config that are None here, which tyro cannot list."""
    if isinstance(value, tuple):
        for number, item in enumerate(value):
            yield from _absent(item, f"{path}.{number}")
    if not is_dataclass(value):
        return
    hints = get_type_hints(type(value))
    for field in fields(value):
        below, inner = getattr(value, field.name), f"{path}.{field.name}".lstrip(".")
        if below is None and any(is_dataclass(kind) for kind in get_args(hints[field.name])):
            yield inner
        yield from _absent(below, inner)
