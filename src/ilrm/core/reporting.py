"""What long work says while it runs: the command line shows it, and a caller in Python may."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Takes a step, or several, and shows a note beside the bar; says the total where it was not known before."""

    def __call__(self, note: str = "", steps: int = 1, total: int | None = None) -> None: ...


class Reporter(Protocol):
    """Where messages and progress go."""

    def say(self, message: str) -> None:
        """A line about what is going on."""

    def progress(self, label: str, total: int | None) -> AbstractContextManager[Advance]:
        """A stage of ``total`` steps; the context's function advances it."""
        ...


class Silent:
    """A reporter that says nothing."""

    def say(self, message: str) -> None:
        pass

    @contextmanager
    def progress(self, label: str, total: int | None) -> Iterator[Advance]:
        yield lambda note="", steps=1, total=None: None
