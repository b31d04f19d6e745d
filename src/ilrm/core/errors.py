"""Errors and warnings for users. Every error says what was given, what was expected and what to do.

The command line prints these messages without a traceback and exits with status 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class IlrmError(Exception):
    """Base class of all errors that a user can cause and fix.

    Args:
        problem: what was given and why it cannot be used; names the file, view or value.
        expected: what would have been valid.
        fix: what to do.
    """

    def __init__(self, problem: str, *, expected: str = "", fix: str = "") -> None:
        self.problem, self.expected, self.fix = problem, expected, fix
        lines = [problem]
        if expected:
            lines.append(f"  expected: {expected}")
        if fix:
            lines.append(f"  to do:    {fix}")
        super().__init__("\n".join(lines))


class CameraError(IlrmError):
    """An invalid pose or intrinsic matrix."""


class SceneError(IlrmError):
    """A scene that cannot be read, or that lacks something required."""


class GaussiansError(IlrmError):
    """Gaussians, or a file of them, with missing, malformed or invalid values."""


class WeightsError(IlrmError):
    """Weights that cannot be found, read, trusted or matched to a network."""


class ConfigError(IlrmError):
    """An invalid option, or options that contradict each other."""


class AccessError(IlrmError):
    """A file or folder that may not be read, so that it is unknown whether something exists."""


class OutputError(IlrmError):
    """A result that cannot be written."""


class TrainingError(IlrmError):
    """A training run that cannot go on."""


class WorkerError(IlrmError):
    """A helper process that died."""


class MissingExtraError(IlrmError):
    """An optional dependency that is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed.",
            fix=f"pip install 'ilrm[{extra}]'",
        )


class IlrmWarning(UserWarning):
    """Something may not be as the user expects. The command line prints it as one line, without a code location."""


def warn(message: str) -> None:
    """Issue an IlrmWarning of one line; it should name the file or view."""
    printable = message.encode("utf-8", "backslashreplace").decode()  # file names need not be UTF-8
    warnings.warn(printable, IlrmWarning, stacklevel=3)


@contextmanager
def redirect_warnings(handle: Callable[[str], object], *, show_too: bool = False) -> Iterator[None]:
    """Pass the text of each IlrmWarning in the body to ``handle``, also those that Python would show only once.

    Other warnings are shown as usual. Like the module ``warnings``, this affects all threads.

    Args:
        show_too: also show each IlrmWarning as usual.
    """

    def show(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
        ours = issubclass(category, IlrmWarning)
        if ours:
            handle(str(message))
        if show_too or not ours:
            show_as_usual(message, category, *place, **options)

    with warnings.catch_warnings():
        show_as_usual = warnings.showwarning
        warnings.showwarning = show
        warnings.simplefilter("always", IlrmWarning)
        yield


@contextmanager
def collect_warnings(messages: list[str]) -> Iterator[None]:
    """Append the text of each IlrmWarning in the body to a list, the same text once; all are shown as usual."""

    def add(message: str) -> None:
        if message not in messages:
            messages.append(message)

    with redirect_warnings(add, show_too=True):
        yield
