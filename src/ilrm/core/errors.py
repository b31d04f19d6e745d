"""What a user can do wrong. Every error says what was given, what was expected and what to do.

The command line prints these messages without a traceback and exits with status 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class IlrmError(Exception):
    """Base of all errors that a user can cause and mend.

    Args:
        problem: what was given, and why it cannot be used (names the file, view or value).
        expected: what would have been right.
        fix: what to do about it.
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
    """A pose or an intrinsic matrix that no camera can have."""


class SceneError(IlrmError):
    """A scene on disk that cannot be read, or that lacks what was asked of it."""


class GaussiansError(IlrmError):
    """Gaussians (or a file of them) with missing, malformed or impossible values."""


class WeightsError(IlrmError):
    """Weights that cannot be found, read, trusted or matched to a network."""


class ConfigError(IlrmError):
    """A configuration that contradicts itself."""


class AccessError(IlrmError):
    """A file or folder that may not be looked at, so that nobody can tell whether something is there."""


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
    """What was read may not be what its owner expects. The command line prints it as one line, without a place."""


def warn(message: str) -> None:
    """Warn with one line that names the file or view."""
    printable = message.encode("utf-8", "backslashreplace").decode()  # names of files need not be UTF-8
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
