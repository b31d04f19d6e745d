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
def redirect_warnings(tell: Callable[[str], object]) -> Iterator[None]:
    """Hand the text of each IlrmWarning to ``tell`` while inside, also where Python would show it only once.

    Other warnings go their usual way. Like all of ``warnings``, for one thread at a time.
    """

    def show(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
        if issubclass(category, IlrmWarning):
            tell(str(message))
        else:
            usual(message, category, *place, **options)

    with warnings.catch_warnings():
        usual = warnings.showwarning
        warnings.showwarning = show
        warnings.simplefilter("always", IlrmWarning)
        yield


@contextmanager
def collect_warnings(notes: list[str]) -> Iterator[None]:
    """Keep the text of each IlrmWarning in a list, once; all warnings go their usual way."""

    def show(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
        if issubclass(category, IlrmWarning) and str(message) not in notes:
            notes.append(str(message))
        usual(message, category, *place, **options)

    with warnings.catch_warnings():
        usual = warnings.showwarning
        warnings.showwarning = show
        warnings.simplefilter("always", IlrmWarning)
        yield
