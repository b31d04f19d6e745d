"""Readers that misbehave, to show that this is detected."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from ilrm.core.errors import SceneError
from tests.fuzz.mutations import BINARY
from tests.fuzz.reader import Reader

_VALID = b"valid"


def _make(folder: Path) -> list[Path]:
    (folder / "x").write_bytes(_VALID)
    return [folder / "x"]


def _if_spoiled(fault: Callable[[], object]) -> Callable[[Path, Path], object]:
    return lambda _, file: file.read_bytes() != _VALID and fault()


def _refuse() -> None:
    raise SceneError("no")


def _raise() -> None:
    raise KeyError("lost")


def _spin() -> None:
    while True:
        pass


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


READERS = {
    "refuses": Reader(_make, _if_spoiled(_refuse), BINARY),
    "raises": Reader(_make, _if_spoiled(_raise), BINARY),
    "spins": Reader(_make, _if_spoiled(_spin), BINARY),
    "grows": Reader(_make, _if_spoiled(lambda: b"x" * (400 << 20)), BINARY),
    "dies": Reader(_make, _if_spoiled(_die), BINARY),
}
