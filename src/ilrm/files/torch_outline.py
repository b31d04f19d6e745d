"""A pickle interpreter for files of torch.save that calls nothing.

pickle with restricted names, and torch.load with weights_only, run no code but still let a file use up memory and time:
a memo index of four bytes makes an array of gigabytes, ``bytearray(n)`` allocates, and hashing a key of nested tuples
may take forever. Here the result is a tree of plain values. Names that the file calls are looked up in a short list;
only tensors are built, and the caller builds them.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

import torch

DTYPES = {
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "BoolStorage": torch.bool,
}


class _Maker(Enum):
    """The callables that have a meaning in an outline, by module and name."""

    TENSOR = "torch._utils _rebuild_tensor_v2"
    PARAMETER = "torch._utils _rebuild_parameter"
    DICTIONARY = "collections OrderedDict"


class Opaque(NamedTuple):
    """A harmless value that is not needed, such as a set; only the name of its type is kept."""

    name: str


# Checkpoints of training frameworks contain these besides tensors.
_IGNORED = {
    *("torch Size", "torch device", "collections Counter", "_codecs encode"),
    *(f"{module} {name}" for module in ("builtins", "__builtin__") for name in ("set", "complex", "bytearray")),
    *(f"torch {str(dtype).removeprefix('torch.')}" for dtype in DTYPES.values()),
}
_NAMES: dict[str, Any] = {
    **{maker.value: maker for maker in _Maker},
    **{f"torch {name}": dtype for name, dtype in DTYPES.items()},
    **{name: Opaque(name) for name in _IGNORED},
}
_Call = Callable[..., Any]


class _OutlineReader:
    """A pickle interpreter with only the instructions that torch.save writes."""

    def __init__(self, data: Any, start: int, storage: _Call, tensor: _Call) -> None:
        self.data, self.at = data, start
        self._storage, self._tensor = storage, tensor
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []  # the stacks below the marks
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        data = self.data
        while True:
            code = data[self.at]
            self.at += 1
            if code == pickle.STOP[0]:
                return self._stack.pop()
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                raise pickle.UnpicklingError(f"it holds the instruction {code}, which torch.save does not write")
            instruction(self)

    def _take(self, count: int) -> bytes:
        taken = self.data[self.at : self.at + count]
        if len(taken) != count:
            raise EOFError("its outline ends too early")
        self.at += count
        return taken

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + 1000)
        if end < 0:
            raise EOFError("its outline ends too early")
        line = self.data[self.at : end]
        self.at = end + 1
        return line.decode()

    # --- plain values ---

    def _protocol(self) -> None:
        self._take(1)

    def _text(self) -> None:
        self._stack.append(self._take(self._number("<I")).decode("utf-8", "surrogatepass"))

    def _short_text(self) -> None:
        self._stack.append(self._take(self._number("B")).decode("latin-1"))

    def _long(self) -> None:
        self._stack.append(int.from_bytes(self._take(self._number("B")), "little", signed=True))

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _mark(self) -> None:
        self._outer.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._outer.pop()
        return items

    def _tuple(self, count: int | None = None) -> None:
        if count is None:
            items = self._since_mark()
        else:
            items = self._stack[-count:]
            if len(items) != count:
                raise pickle.UnpicklingError("its outline is damaged")
            del self._stack[-count:]
        self._stack.append(tuple(items))

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise pickle.UnpicklingError("its outline is damaged")
        target.extend(items)

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise pickle.UnpicklingError("its outline is damaged")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if key is not None and type(key) not in (str, int, float, bool):  # types whose hash takes no time
                raise pickle.UnpicklingError("its outline has a key that is neither text nor number")
            target[key] = value

    # --- memo ---

    def _remember(self, form: str) -> None:
        self._memo[self._number(form)] = self._stack[-1]

    def _recall(self, form: str) -> None:
        self._stack.append(self._memo[self._number(form)])

    # --- names and calls ---

    def _name(self) -> None:
        name = f"{self._line()} {self._line()}"
        if name not in _NAMES:
            raise pickle.UnpicklingError(f"it holds {name.replace(' ', '.')}, which is not a tensor")
        self._stack.append(_NAMES[name])

    def _call(self) -> None:
        arguments, called = self._stack.pop(), self._stack.pop()
        if type(arguments) is not tuple:
            raise pickle.UnpicklingError("its outline is damaged")
        if called is _Maker.TENSOR and len(arguments) >= 4:
            self._stack.append(self._tensor(*arguments[:4]))
        elif called is _Maker.PARAMETER and arguments:
            self._stack.append(arguments[0])
        elif called is _Maker.DICTIONARY and not arguments:
            self._stack.append({})
        elif type(called) is Opaque:
            self._stack.append(called)
        else:
            raise pickle.UnpicklingError("its outline calls something that must not be called")

    def _state(self) -> None:
        """Attributes, such as the metadata of a state dictionary: not needed."""
        self._stack.pop()
        if type(self._stack[-1]) not in (dict, Opaque):
            raise pickle.UnpicklingError("its outline is damaged")

    def _place(self) -> None:
        self._stack.append(self._storage(self._stack.pop()))


_INSTRUCTIONS: dict[int, Callable[[_OutlineReader], None]] = {
    code[0]: instruction
    for code, instruction in {
        pickle.PROTO: _OutlineReader._protocol,
        pickle.NONE: lambda reader: reader._push(None),
        pickle.NEWTRUE: lambda reader: reader._push(True),
        pickle.NEWFALSE: lambda reader: reader._push(False),
        pickle.BININT: lambda reader: reader._push(reader._number("<i")),
        pickle.BININT1: lambda reader: reader._push(reader._number("B")),
        pickle.BININT2: lambda reader: reader._push(reader._number("<H")),
        pickle.LONG1: _OutlineReader._long,
        pickle.BINFLOAT: lambda reader: reader._push(reader._number(">d")),
        pickle.BINUNICODE: _OutlineReader._text,
        pickle.SHORT_BINSTRING: _OutlineReader._short_text,
        pickle.EMPTY_LIST: lambda reader: reader._push([]),
        pickle.EMPTY_DICT: lambda reader: reader._push({}),
        pickle.EMPTY_TUPLE: lambda reader: reader._push(()),
        pickle.MARK: _OutlineReader._mark,
        pickle.TUPLE: _OutlineReader._tuple,
        pickle.TUPLE1: lambda reader: reader._tuple(1),
        pickle.TUPLE2: lambda reader: reader._tuple(2),
        pickle.TUPLE3: lambda reader: reader._tuple(3),
        pickle.APPEND: lambda reader: reader._append([reader._stack.pop()]),
        pickle.APPENDS: lambda reader: reader._append(reader._since_mark()),
        pickle.SETITEM: lambda reader: reader._set([reader._stack.pop(-2), reader._stack.pop()]),
        pickle.SETITEMS: lambda reader: reader._set(reader._since_mark()),
        pickle.BINPUT: lambda reader: reader._remember("B"),
        pickle.LONG_BINPUT: lambda reader: reader._remember("<I"),
        pickle.BINGET: lambda reader: reader._recall("B"),
        pickle.LONG_BINGET: lambda reader: reader._recall("<I"),
        pickle.GLOBAL: _OutlineReader._name,
        pickle.REDUCE: _OutlineReader._call,
        pickle.NEWOBJ: _OutlineReader._call,
        pickle.BUILD: _OutlineReader._state,
        pickle.BINPERSID: _OutlineReader._place,
    }.items()
}


def read_outline(
    data: Any,
    start: int = 0,
    *,
    storage: Callable[[Any], Any],
    tensor: Callable[[Any, Any, Any, Any], Any],
) -> tuple[Any, int]:
    """Interpret an outline.

    Args:
        data: bytes or a mapped file; the outline begins at ``start``.
        storage: converts a persistent id to a storage. The id may be any value; this function must check it.
        tensor: builds a tensor from a storage, offset, shape and stride. They may be any values; it must check them.

    Returns:
        the value, made of lists, tuples, dictionaries with strings and numbers as keys, strings, numbers, None,
        ``Opaque`` and results of ``tensor``; and the position after the outline.

    Raises:
        pickle.UnpicklingError: it contains anything else (the message names it), or it is damaged.
        EOFError: it is cut short.
    """
    reader = _OutlineReader(data, start, storage, tensor)
    try:
        return reader.load(), reader.at
    except (IndexError, KeyError, UnicodeDecodeError) as error:
        raise pickle.UnpicklingError("its outline is damaged") from error
