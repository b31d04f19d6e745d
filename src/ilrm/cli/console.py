"""Output: messages and progress bars on stderr, results on stdout as tables or, with --json, as one object.

Rich is imported at the first message: the help and most errors do without it.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any, Literal, cast

from ilrm.cli import BROKEN_PIPE, FAILED
from ilrm.core.reporting import Advance

if TYPE_CHECKING:
    import rich.console

_WIDEST = 10_000


class Stream:
    """A wrapper of the current sys.stdout or sys.stderr to which writing never fails.

    A message that cannot be printed must not cost the result. After the first failure nothing more is written.
    Characters that the stream's encoding lacks are written as escapes.

    Attributes:
        failure: the first error of writing, or None.
    """

    def __init__(self, name: Literal["stdout", "stderr"]) -> None:
        self._name = name
        self.failure: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(sys, self._name), name)

    def write(self, text: str) -> int:
        if self.failure is None:
            with self._recording_failure():
                self._write(text)
        return len(text)

    def flush(self) -> None:
        if self.failure is None:
            with self._recording_failure():
                getattr(sys, self._name).flush()

    def _write(self, text: str) -> None:
        stream = getattr(sys, self._name)
        try:
            stream.write(text)
        except UnicodeEncodeError:
            stream.write(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding))

    @contextmanager
    def _recording_failure(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failure = error
        except ValueError:  # the stream has been closed
            self.failure = OSError(errno.EBADF, os.strerror(errno.EBADF))

    def release(self) -> None:
        """Redirect the buffered rest to the null device; otherwise Python reports the error again at exit."""
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), getattr(sys, self._name).fileno())


class Console:
    """Formatted output.

    Args:
        quiet: print no tables, because stdout is for one JSON object.

    Attributes:
        results: stdout.
        warnings: all messages of ``warn`` so far, for reports.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.results = Stream("stdout")
        self.warnings: list[str] = []
        self._errors = Stream("stderr")

    # Rich only needs the methods of a file that Stream has.

    @cached_property
    def _messages(self) -> rich.console.Console:
        import rich.console

        return rich.console.Console(file=cast(IO[str], self._errors), highlight=False, soft_wrap=True)

    @cached_property
    def _tables(self) -> rich.console.Console:
        import rich.console

        tables = rich.console.Console(file=cast(IO[str], self.results), quiet=self.quiet, highlight=False)
        if not tables.is_terminal:
            tables.width = _WIDEST  # do not cut lines in files and pipes
        return tables

    @property
    def is_terminal(self) -> bool:
        """Whether messages go to a terminal, in which progress bars work."""
        return self._messages.is_terminal

    def say(self, message: str) -> None:
        """Print a line about the current work."""
        self._messages.print(message, markup=False)

    def warn(self, message: str) -> None:
        """Print a warning; the same one only once."""
        if message in self.warnings:
            return
        self.warnings.append(message)
        self._messages.print(f"warning: {message}", style="yellow", markup=False)

    def show(self, title: str, rows: Mapping[str, object]) -> None:
        """Print a result as a table of names and values, without values that are None."""
        from rich.table import Column, Table

        columns = (Column(no_wrap=True), Column(overflow="fold"))
        table = Table(*columns, title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
        for name, value in rows.items():
            if value is not None:
                table.add_row(name, f"{value:.2f}" if isinstance(value, float) else str(value))
        self._tables.print(table)

    def answer(self, report: Mapping[str, object]) -> None:
        """Print the JSON object, with --json."""
        if self.quiet:
            print(json.dumps(report, allow_nan=False), flush=True, file=cast(IO[str], self.results))

    def fail(self, message: str, status: int) -> int:
        """Print an error and return the exit status."""
        print(f"ilrm: {message}", file=cast(IO[str], self._errors))
        return status

    def settle(self, status: int) -> int:
        """Flush all output at the end. Returns the exit status, which changes if results could not be printed."""
        self.results.flush()
        self._errors.flush()
        failure = self.results.failure
        if failure is not None:
            self.results.release()
            if isinstance(failure, BrokenPipeError):
                status = status or BROKEN_PIPE
            else:
                reason = failure.strerror or str(failure)
                self.fail(f"stdout cannot be written, but all files are complete: {reason[:1].lower()}{reason[1:]}", 0)
                status = status or FAILED
        if self._errors.failure is not None:
            self._errors.release()
        return status

    @contextmanager
    def progress(self, label: str, total: int | None) -> Iterator[Advance]:
        """Show a progress bar of ``total`` steps; the yielded function advances it."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.fields[note]}"), console=self._messages, transient=True) as bar:
            task = bar.add_task(label, total=total, note="")
            yield lambda note="", steps=1, total=None: bar.update(task, advance=steps, note=note, total=total)
