"""What every splat format refuses, in the same words."""

from __future__ import annotations

from pathlib import Path

import torch

from ilrm.errors import GaussiansError, warn
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


# Positions that are rounded to a larger share of the scene show as stripes.
_COARSE = 1e-3


def check_finite(gaussians: Gaussians, path: Path | str) -> Gaussians:
    """The Gaussians that were read, if all their values are finite; a warning if positions were rounded too much.

    Raises:
        GaussiansError: NaN or infinite values.
    """
    if not (finite := gaussians.finite()).all():
        raise GaussiansError(
            f"{path}: {int((~finite).sum())} of {len(gaussians)} Gaussians hold NaN or infinite values "
            f"(the first is number {int((~finite).nonzero()[0])}).",
            fix="write the file again from finite Gaussians, or remove them in a splat editor",
        )
    middle = gaussians.means.median(0).values
    extent = (gaussians.means - middle).norm(dim=-1).median().item()
    step = middle.abs().max().item() * torch.finfo(torch.float32).eps
    if step > _COARSE * extent > 0:
        warn(
            f"{path} holds positions in single precision around {_words(middle)}, in steps of about {step:.2g} for a "
            f"scene of about {extent:.2g} units: detail was lost when it was written; write it with double x y z"
        )
    return gaussians


def _words(point: torch.Tensor) -> str:
    return " ".join(f"{x:.0f}" for x in point.tolist())


def warn_of_origin(path: Path, origin: torch.Tensor) -> None:
    """Say from where the coordinates in a file are counted, where the file cannot say so itself."""
    offset = " ".join(repr(x) for x in origin.tolist())
    warn(
        f"a {path.suffix} file holds single precision, too little for this world: its coordinates are counted from "
        f"the point {offset}"
    )


def unreadable(path: Path | str, error: OSError, expected: str) -> GaussiansError:
    """The reason why a file could not be opened or read, in words."""
    reason = "there is no such file" if isinstance(error, FileNotFoundError) else (error.strerror or str(error))
    return GaussiansError(f"Cannot read {path}: {reason}.", expected=expected)
