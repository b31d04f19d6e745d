"""Checks and warnings that all splat formats share."""

from __future__ import annotations

from pathlib import Path

import torch

from ilrm.core.errors import GaussiansError, warn
from ilrm.core.gaussians import Gaussians


def check_writable(gaussians: Gaussians, path: Path | str) -> None:
    """Refuse Gaussians that no splat file can store.

    Raises:
        GaussiansError: there are none, they are batched, or some have NaN or infinite values.
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


# If positions are rounded to a larger share of the scene, the rounding is visible as stripes.
_COARSE = 1e-3
_MOST_LEFT_OUT = 0.75  # of random bytes, about an eighth of the rows are valid by chance
_IMPOSSIBLE = "NaN or infinite values, negative scales, opacities outside [0, 1] or the rotation 0 0 0 0"


def keep_possible(gaussians: Gaussians, path: Path | str) -> Gaussians:
    """The valid Gaussians of a file; warns if some were left out, or if positions have too few digits.

    Diverging trainers and careless converters leave a few rows with NaN or infinite values, or with a zero rotation.
    Other programs skip these as well.

    Raises:
        GaussiansError: so few are valid that the file must be damaged or of another kind.
    """
    count, possible = len(gaussians), gaussians.possible()
    if (gone := int((~possible).sum())) > _MOST_LEFT_OUT * count:
        raise GaussiansError(
            f"{path}: {gone} of {count} Gaussians have {_IMPOSSIBLE}.",
            expected="a file in which most Gaussians can be drawn",
            fix="copy or export the file again",
        )
    if not possible.all():
        gaussians = gaussians[possible]
        warn(f"{path}: left out {gone} of {count} Gaussians with {_IMPOSSIBLE}")
    middle = gaussians.means.median(0).values
    extent = (gaussians.means - middle).norm(dim=-1).median().item()
    step = middle.abs().max().item() * torch.finfo(torch.float32).eps
    if step > _COARSE * extent > 0:
        warn(
            f"{path} has single-precision positions around {_words(middle)}, with steps of about {step:.2g} in a "
            f"scene of about {extent:.2g} units: detail was lost when it was written; write it with double x y z"
        )
    return gaussians


def _words(point: torch.Tensor) -> str:
    return " ".join(f"{x:.0f}" for x in point.tolist())


def warn_of_origin(path: Path, origin: torch.Tensor) -> None:
    """Warn which point the coordinates in a file are relative to, for formats that cannot store it."""
    offset = " ".join(repr(x) for x in origin.tolist())
    warn(
        f"a {path.suffix} file is single precision, too little for this world: its coordinates are relative to the "
        f"point {offset}"
    )


def warn_of_mode(path: Path) -> None:
    """Warn that other programs will draw anti-aliased splats as ordinary ones, if a format cannot mark them."""
    warn(
        f"a {path.suffix} file cannot tell other programs that the splats are anti-aliased: they will draw thin splats "
        "too opaque"
    )


def unreadable(path: Path | str, error: OSError, expected: str) -> GaussiansError:
    """A GaussiansError that says why a file could not be opened or read."""
    reason = "there is no such file" if isinstance(error, FileNotFoundError) else (error.strerror or str(error))
    return GaussiansError(f"Cannot read {path}: {reason}.", expected=expected)
