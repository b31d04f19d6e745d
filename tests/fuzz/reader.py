"""The description of a reader, kept apart from the readers, which import the whole package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.mutations import Mutation


@dataclass(frozen=True)
class Reader:
    """A reader and its input.

    Attributes:
        make: writes a valid input into a folder, and returns those of its files that are to be damaged (one at a time).
        read: reads the input in that folder, given the damaged file.
        kinds: how the content is damaged.
        unpack: takes the part to damage out of a file: by default the whole file.
        pack: puts it back into the bytes of the file, with sizes and checksums that fit.
    """

    make: Callable[[Path], list[Path]]
    read: Callable[[Path, Path], object]
    kinds: tuple[Mutation, ...]
    unpack: Callable[[bytes], bytes] = lambda data: data
    pack: Callable[[bytes, bytes], bytes] = lambda file, content: content
