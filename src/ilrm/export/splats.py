"""Splat files by their extension: one call to read any of them, one to write any of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ilrm.cameras import Similarity
from ilrm.errors import GaussiansError
from ilrm.export.axes import GLTF, OPENGL
from ilrm.export.compressed_ply import save_compressed_ply
from ilrm.export.glb import load_glb, save_glb
from ilrm.export.ply import load_ply, save_ply
from ilrm.export.sog import load_sog, save_sog
from ilrm.export.splat import load_splat, save_splat
from ilrm.export.spz import load_spz, save_spz
from ilrm.gaussians import Gaussians


@dataclass(frozen=True)
class Format:
    """A kind of splat file.

    Attributes:
        load: Gaussians of a file, in the world frame that they were saved in.
        save: writes Gaussians.
        axes: from the world to the coordinates that stand in the file, if the format prescribes other axes.
    """

    load: Callable[[Path], Gaussians]
    save: Callable[[Gaussians, Path], None]
    axes: Similarity | None = None


# The first extension that a name ends in counts, so the longer one stands first.
FORMATS: dict[str, Format] = {
    ".compressed.ply": Format(load_ply, save_compressed_ply),
    ".ply": Format(load_ply, save_ply),
    ".splat": Format(load_splat, save_splat),
    ".spz": Format(load_spz, save_spz, OPENGL),
    ".glb": Format(load_glb, save_glb, GLTF),
    ".sog": Format(load_sog, save_sog),
}


def load_gaussians(path: Path | str) -> Gaussians:
    """Gaussians (N) of a splat file, in the world frame that they were saved in.

    Raises:
        GaussiansError: an extension that is not known, or a file that holds no Gaussians.
    """
    path = Path(path)
    return find_format(path).load(path)


def save_gaussians(gaussians: Gaussians, path: Path | str) -> None:
    """Write N Gaussians in the format that the extension names.

    Raises:
        GaussiansError: an extension that is not known, or Gaussians that the format cannot hold.
        OutputError: the file cannot be written.
    """
    path = Path(path)
    find_format(path).save(gaussians, path)


def find_format(path: Path) -> Format:
    """The format that a file name asks for. Raises GaussiansError."""
    for extension, found in FORMATS.items():
        if path.name.lower().endswith(extension):
            return found
    raise GaussiansError(f"{path} has no extension of a splat file.", expected=f"one of {', '.join(FORMATS)}")
