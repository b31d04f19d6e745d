"""Splat files by their extension: one call to read any of them, one to write any of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ilrm.errors import GaussiansError
from ilrm.export.ply import load_ply, save_ply
from ilrm.gaussians import Gaussians

READERS: dict[str, Callable[[Path], Gaussians]] = {".ply": load_ply}
WRITERS: dict[str, Callable[[Gaussians, Path], None]] = {".ply": save_ply}


def load_gaussians(path: Path | str) -> Gaussians:
    """Gaussians (N) of a splat file, in the world frame that it keeps.

    Raises:
        GaussiansError: an extension that is not known, or a file that holds no Gaussians.
    """
    path = Path(path)
    return _by_extension(READERS, path)(path)


def save_gaussians(gaussians: Gaussians, path: Path | str) -> None:
    """Write N Gaussians in the format that the extension names.

    Raises:
        GaussiansError: an extension that is not known, or Gaussians that the format cannot hold.
        OutputError: the file cannot be written.
    """
    path = Path(path)
    _by_extension(WRITERS, path)(gaussians, path)


def _by_extension(formats: dict[str, Callable], path: Path) -> Callable:
    if path.suffix.lower() not in formats:
        raise GaussiansError(
            f"{path} has no extension of a splat file.", expected=f"one of {', '.join(sorted(formats))}"
        )
    return formats[path.suffix.lower()]
