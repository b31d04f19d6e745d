"""What every splat format refuses, in the same words."""

from __future__ import annotations

from pathlib import Path

from ilrm.errors import GaussiansError
from ilrm.gaussians import Gaussians


def check_writable(gaussians: Gaussians, path: Path | str) -> None:
    """Refuse what no splat file can hold.

    Raises:
        GaussiansError: there are none, they are batched, or some hold NaN or infinite values.
    """
    if gaussians.means.ndim != 2:
        raise GaussiansError(
            f"A splat file holds one set of Gaussians, but means of shape {tuple(gaussians.means.shape)} were given.",
            fix="save each batch element on its own, or join them with .flatten()",
        )
    if len(gaussians) == 0:
        raise GaussiansError(f"There are no Gaussians to write to {path}.", expected="at least one")
    if not (finite := gaussians.finite()).all():
        raise GaussiansError(
            f"{int((~finite).sum())} of {len(gaussians)} Gaussians hold NaN or infinite values.",
            expected="finite values",
            fix="keep only gaussians[gaussians.finite()]",
        )


def check_finite(gaussians: Gaussians, path: Path | str) -> Gaussians:
    """The Gaussians that were read, if all their values are finite. Raises GaussiansError."""
    if not (finite := gaussians.finite()).all():
        raise GaussiansError(
            f"{path}: {int((~finite).sum())} of {len(gaussians)} Gaussians hold NaN or infinite values "
            f"(the first is number {int((~finite).nonzero()[0])}).",
            fix="write the file again from finite Gaussians, or remove them in a splat editor",
        )
    return gaussians


def unreadable(path: Path | str, error: OSError, expected: str) -> GaussiansError:
    """The reason why a file could not be opened or read, in words."""
    reason = "there is no such file" if isinstance(error, FileNotFoundError) else (error.strerror or str(error))
    return GaussiansError(f"Cannot read {path}: {reason}.", expected=expected)
