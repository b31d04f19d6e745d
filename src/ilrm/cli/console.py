"""What people see: messages and progress bars on stderr, results on stdout. Machines ask for --json instead."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


class Advance(Protocol):
    """Takes a step, or several, and shows a note beside the bar; says the total where it was not known before."""

    def __call__(self, note: str = "", steps: int = 1, total: int | None = None) -> None: ...


class _Pipe(rich.console.Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would exit with 1, as if something had failed


class Console:
    """Rich output for people.

    Args:
        quiet: no results on stdout, which then belongs to one JSON object.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._messages = rich.console.Console(stderr=True, highlight=False, soft_wrap=True)
        self._results = _Pipe(quiet=quiet, highlight=False, soft_wrap=True)

    @property
    def is_terminal(self) -> bool:
        """Whether messages go to a terminal, where a bar can move."""
        return self._messages.is_terminal

    def say(self, message: str) -> None:
        """A line about what is going on."""
        self._messages.print(message, markup=False)

    def warn(self, message: str) -> None:
        """A line that should not be overlooked."""
        self._messages.print(f"warning: {message}", style="yellow", markup=False)

    def show(self, title: str, rows: Mapping[str, object]) -> None:
        """A result, as a table of names and values; values of None are left out."""
        table = Table("", "", title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
        for name, value in rows.items():
            if value is not None:
                table.add_row(name, f"{value:.2f}" if isinstance(value, float) else str(value))
        self._results.print(table)

    def answer(self, report: Mapping[str, object]) -> None:
        """Print the one JSON object, if that is what was asked for."""
        if self.quiet:
            print(json.dumps(report, allow_nan=False), flush=True)

    @contextmanager
    def progress(self, label: str, total: int | None) -> Iterator[Advance]:
        """A bar of ``total`` steps; the yielded function advances it."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.fields[note]}"), console=self._messages, transient=True) as bar:
            task = bar.add_task(label, total=total, note="")
            yield lambda note="", steps=1, total=None: bar.update(task, advance=steps, note=note, total=total)
