"""Ways to damage a file. All draws come from the given generator, so a number always means the same mutation."""

from __future__ import annotations

import copy
import json
import random
import re
import struct
from collections.abc import Callable
from typing import Any

Draw = random.Random
Mutation = Callable[[bytes, Draw], bytes]

_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
_FLOATS = (float("nan"), float("inf"), -float("inf"), 0.0, -1.0, 1e-308, 1e308, 1e30, 1e-30)
_VALUES = (
    *(
        b"",
        b"\0",
        b"\xff\xfe",
        b"\xc3(",
        b"\n",
        b"\r\n",
        b" ",
        b"#",
        b",",
        b'"',
        b"..",
        b"/",
        b"\\",
        b"%s",
        b"{}",
        b"[[",
    ),
    *(b"nan", b"-nan", b"inf", b"-inf", b"null", b"true", b"-1", b"0", b"1e400", b"1e-400", b"9" * 400, b"0x10"),
    *("²".encode(), "٣".encode(), b"A" * 300, b"../" * 20, b"[" * 20_000, b'{"a":' * 20_000, b"9" * 5000),
)
_TOKENS = (b"", b"\0", b"\xff\xfe", b"\xc3(", b"\n", b"\r\n", b" ", b"#", b",", b'"', b"..", b"/", b"{}", *_VALUES)


# --- any bytes ------------------------------------------------------------------------------------------------------


def flip_bits(data: bytes, draw: Draw) -> bytes:
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16)) if out else 0):
        out[_somewhere(out, draw)] ^= 1 << draw.randrange(8)
    return bytes(out)


def set_bytes(data: bytes, draw: Draw) -> bytes:
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8)) if out else 0):
        out[_somewhere(out, draw)] = draw.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, draw.randrange(256)))
    return bytes(out)


def set_number(data: bytes, draw: Draw) -> bytes:
    """A whole number or a float of some width over what was there: counts, sizes and offsets of binary headers."""
    size, form = draw.choice(((1, "B"), (2, "H"), (4, "I"), (8, "Q")))
    order = draw.choice("<<>")
    if size >= 4 and draw.random() < 0.3:
        new = struct.pack(order + {4: "f", 8: "d"}[size], _float(draw, size))
    else:
        new = struct.pack(order + form, draw.choice(_EXTREMES) & (1 << 8 * size) - 1)
    at = _somewhere(data, draw)
    return data[:at] + new + data[at + size :]


def cut(data: bytes, draw: Draw) -> bytes:
    return data[: _somewhere(data, draw)]


def remove(data: bytes, draw: Draw) -> bytes:
    at = _somewhere(data, draw)
    return data[:at] + data[at + draw.choice((1, 2, 4, 8, 64, 1000)) :]


def repeat(data: bytes, draw: Draw) -> bytes:
    at, length = _somewhere(data, draw), draw.choice((1, 4, 16, 256))
    return data[:at] + data[at : at + length] * draw.choice((2, 3, 50)) + data[at + length :]


def splice(data: bytes, draw: Draw) -> bytes:
    """A piece of the file over another one."""
    source, target, length = _somewhere(data, draw), _somewhere(data, draw), draw.choice((1, 4, 8, 32, 512))
    piece = data[source : source + length]
    return data[:target] + piece + data[target + len(piece) :]


def insert(data: bytes, draw: Draw) -> bytes:
    at = _somewhere(data, draw)
    return data[:at] + draw.choice(_TOKENS) + data[at:]


def clear(data: bytes, draw: Draw) -> bytes:
    at, length = _somewhere(data, draw), draw.choice((4, 16, 128))
    return data[:at] + draw.choice((b"\0", b"\xff")) * len(data[at : at + length]) + data[at + length :]


def _somewhere(data: bytes | bytearray, draw: Draw) -> int:
    """A position; half of the time near the start, where headers are."""
    return draw.randrange(max(1, min(len(data), 128) if draw.random() < 0.5 else len(data)))


def _float(draw: Draw, size: int) -> float:
    value = draw.choice(_FLOATS)
    return value if size == 8 or value != value or abs(value) in (0.0, float("inf")) or abs(value) < 1e38 else 3e38


# --- texts ----------------------------------------------------------------------------------------------------------


def swap_number(data: bytes, draw: Draw) -> bytes:
    """Another number, or something else, in place of a number in a text."""
    found = list(_NUMBER.finditer(data))
    if not found:
        return insert(data, draw)
    for match in sorted(draw.sample(found, min(len(found), draw.choice((1, 1, 3)))), key=lambda m: -m.start()):
        other = draw.choice(found)[0] if draw.random() < 0.3 else draw.choice(_VALUES)
        data = data[: match.start()] + other + data[match.end() :]
    return data


def change_lines(data: bytes, draw: Draw) -> bytes:
    lines = data.splitlines(keepends=True) or [b""]
    at, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    match draw.randrange(5):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, lines[other])
        case 2:
            lines[at], lines[other] = lines[other], lines[at]
        case 3:
            words = lines[at].split(b" ")
            words[draw.randrange(len(words))] = draw.choice(_TOKENS)
            lines[at] = b" ".join(words)
        case _:
            words = lines[at].split(b" ")
            del words[draw.randrange(len(words))]
            lines[at] = b" ".join(words) + b"\n"
    return b"".join(lines)


# --- JSON -----------------------------------------------------------------------------------------------------------


def change_json(data: bytes, draw: Draw) -> bytes:
    """Values of another type, size or place; missing, renamed and repeated fields."""
    value = json.loads(data)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        places = list(_places(value))
        if not places:
            break
        holder, key = draw.choice(places)
        match draw.randrange(8):
            case 0:
                del holder[key]
            case 1:
                other, name = draw.choice(places)
                holder[key] = copy.deepcopy(other[name])  # else a value could become part of itself
            case 2 if isinstance(holder, dict):
                holder[draw.choice((key + "x", key.upper(), "", "kind", "é\0"))] = holder.pop(key)
            case 3 if isinstance(holder, list):
                holder.insert(key, holder[key])
            case _:
                holder[key] = _another(holder[key], draw)
    return json.dumps(value, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in list(items):
        yield value, key
        yield from _places(below)


def _another(value: Any, draw: Draw) -> Any:
    plain: list[Any] = [None, True, False, 0, 1, -1, 2, 1e308, -1e308, 1e-308, 10**400, -(10**400), 2**31, 2**63, 2**64]
    plain += [float("nan"), float("inf"), 0.5, 1e9, 4096, 65_537, 10**7, 0.0, -0.0]
    texts = ["", "x", "x" * 300, "é", "\0", "\ud800", "..", ".", "/", "../../etc/passwd", "nan", "1e400", "1", "²"]
    nested: list[Any] = [[], {}, [[]], [value], {"a": value}, [value] * 3, [None], [value] * 1000, {"": 1}]
    if isinstance(value, int | float) and not isinstance(value, bool) and draw.random() < 0.3:
        factor = draw.choice((-1, 2, 10, 1000, 0.001, 1e6))
        return type(value)(value * factor) if abs(value) < 1e100 and value == value else 0
    return draw.choice(draw.choice((plain, texts, nested)))


_PLACES: tuple[Mutation, ...] = (cut, remove, repeat, splice, insert)
BINARY: tuple[Mutation, ...] = (flip_bits, set_bytes, set_number, set_number, clear, *_PLACES)
TEXT: tuple[Mutation, ...] = (*[swap_number] * 3, *[change_lines] * 3, *BINARY)
JSON: tuple[Mutation, ...] = (*[change_json] * 8, swap_number, swap_number, flip_bits, *_PLACES)


def mutate(data: bytes, kinds: tuple[Mutation, ...], draw: Draw) -> bytes:
    """The file after one mutation, sometimes after several."""
    for number in range(draw.choice((1, 1, 1, 2, 3))):
        kind = draw.choice(kinds)
        if kind is change_json and number > 0:  # after an earlier mutation it may no longer be JSON
            kind = draw.choice(BINARY)
        data = kind(data, draw)
    return data
