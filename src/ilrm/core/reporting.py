"""Progress and messages of long operations. The command line shows them; callers in Python may."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Advances a progress bar by some steps, shows a note beside it, and may set the total if it was unknown."""

    def __call__(self, note: str = "", steps: int = 1, total: int | None = None) -> None: ...


class Reporter(Protocol):
    """Receives messages and progress."""

    def say(self, message: str) -> None:
        """Show a line about the current work."""

    def progress(self, label: str, total: int | None) -> AbstractContextManager[Advance]:
        """Show a stage of ``total`` steps (None: unknown); the yielded function advances it."""
        ...


class Silent:
    """A reporter that ignores everything."""

    def say(self, message: str) -> None:
        pass

    @contextmanager
    def progress(self, label: str, total: int | None) -> Iterator[Advance]:
        yield lambda note="", steps=1, total=None: None
