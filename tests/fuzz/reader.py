"""What is known about a reader, apart from the readers themselves, which import the whole package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.mutations import Mutation


@dataclass(frozen=True)
class Reader:
    """A reader and its input.

    Attributes:
        make: writes a valid input into a folder, and returns the files of it that are to be spoiled (one at a time).
        read: reads the input in that folder, given the spoiled file.
        kinds: how the content is spoiled.
        unpack: takes what is to be spoiled out of a file: the whole of it by default.
        pack: puts it back into the bytes of the file, with sizes and checksums that fit.
    """

    make: Callable[[Path], list[Path]]
    read: Callable[[Path, Path], object]
    kinds: tuple[Mutation, ...]
    unpack: Callable[[bytes], bytes] = lambda data: data
    pack: Callable[[bytes, bytes], bytes] = lambda file, content: content
