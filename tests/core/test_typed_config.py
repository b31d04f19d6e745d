"""Configs from untrusted files give a config, or our error."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from ilrm.core.errors import ConfigError
from ilrm.core.typed_config import assign, build, check_finite, check_range, plain


@dataclass(frozen=True)
class Round:
    radius: float
    kind: Literal["round"] = "round"

    def __post_init__(self) -> None:
        check_finite(self)


@dataclass(frozen=True)
class Square:
    sides: tuple[int, int] = (1, 1)
    kind: Literal["square"] = "square"

    def __post_init__(self) -> None:
        check_range(self, 1, 9, "sides")


@dataclass(frozen=True)
class Drawing:
    name: str
    shape: Round | Square
    more: tuple[Round | Square, ...] = ()
    folder: Path | None = None
    closed: bool = False


DRAWING = Drawing("a", Square((2, 3)), (Round(0.5), Square()), Path("x"), True)


def test_a_config_survives_json() -> None:
    assert build(Drawing, json.loads(json.dumps(plain(DRAWING)))) == DRAWING


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": None}, "name = null"),
        ({"name": ["a"] * 10_000}, r"name = .{200}\.\.\."),
        ({"shape": {"kind": ["round"]}}, "shape = "),
        ({"shape": {"kind": "round"}}, "shape is incomplete"),
        ({"shape": {"kind": "round", "radius": float("nan")}}, "radius = nan"),
        ({"shape": {"kind": "round", "radius": 10**400}}, "shape.radius = "),
        ({"shape": {"kind": "square", "sides": [1, 2, 3]}}, "shape.sides = "),
        ({"shape": {"kind": "square", "sides": [0, 1]}}, r"sides = \(0, 1\)"),
        ({"shape": {"kind": "square", "sides": [True, 1]}}, "shape.sides.0 = true"),
        ({"shape": {"kind": "square", "sides": [1e3, 1]}}, "shape.sides.0 = 1000.0"),
        ({"shape": {"kind": "square", "sides": [2**70, 1]}}, "shape.sides.0 = "),
        ({"shape": {"kind": "square", "edges": 1}}, "no field 'edges'"),
        ({"more": {}}, "more = "),
        ({"x" * 100_000: 1}, "no field"),
        ({"closed": 1}, "closed = 1"),
    ],
)
def test_wrong_values_are_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        build(Drawing, {**plain(DRAWING), **change})
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("values", [None, 3, "text", [], [[]], {1: 2}])
def test_other_values_are_no_config(values: object) -> None:
    with pytest.raises(ConfigError):
        build(Drawing, values)


def test_deep_values_are_told() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ConfigError, match="too large to show"):
        build(Drawing, {**plain(DRAWING), "name": deep})


@pytest.mark.parametrize("place", ["²", "٣", "-1", "2", "0" * 5000, "1" * 5000, "", "0.0.0"])
def test_places_in_lists(place: str) -> None:
    values = plain(DRAWING)
    with pytest.raises(ConfigError):
        assign(values, f"more.{place}.radius" if place != "0.0.0" else f"more.{place}", 1.0)
    assign(values, "more.0.radius", 7.0)
    assert build(Drawing, values).more[0] == Round(7.0)
