"""Splat files by their extension: one call to read any of them, one to write any of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ilrm.core.cameras import Similarity
from ilrm.core.errors import GaussiansError
from ilrm.core.gaussians import Gaussians
from ilrm.files import settle
from ilrm.splats.axes import GLTF, OPENGL
from ilrm.splats.cameras import world_offset_beside
from ilrm.splats.checks import warn_of_mode, warn_of_origin
from ilrm.splats.compressed_ply import save_compressed_ply
from ilrm.splats.glb import load_glb, save_glb
from ilrm.splats.ply import load_ply, save_ply
from ilrm.splats.sog import load_sog, save_sog
from ilrm.splats.splat import load_splat, save_splat
from ilrm.splats.spz import load_spz, save_spz


@dataclass(frozen=True)
class Format:
    """A kind of splat file.

    Attributes:
        load: Gaussians of a file, in the world frame that they were saved in.
        save: writes Gaussians.
        axes: from the world to the coordinates that stand in the file, if the format prescribes other axes.
        keeps_mode: whether the file tells other programs that splats are anti-aliased.
        keeps_origin: whether the file says which point of the world positions are counted from.
    """

    load: Callable[[Path], Gaussians]
    save: Callable[[Gaussians, Path], None]
    axes: Similarity | None = None
    keeps_mode: bool = False
    keeps_origin: bool = False


# The first extension that a name ends in counts, so the longer one stands first.
FORMATS: dict[str, Format] = {
    ".compressed.ply": Format(load_ply, save_compressed_ply, keeps_mode=True, keeps_origin=True),
    ".ply": Format(load_ply, save_ply, keeps_mode=True, keeps_origin=True),
    ".splat": Format(load_splat, save_splat),
    ".spz": Format(load_spz, save_spz, OPENGL, keeps_mode=True),
    ".glb": Format(load_glb, save_glb, GLTF),
    ".sog": Format(load_sog, save_sog, keeps_mode=True),
}


def load_gaussians(path: Path | str, antialiased: bool | None = None) -> Gaussians:
    """Gaussians (N) of a splat file, in the world frame that they were saved in.

    Formats that cannot say which point of the world they are counted from take it from a cameras.json beside the file.

    Args:
        antialiased: whether they are to be rendered with compensated opacity, for files that do not say so; None is
            what the file says.

    Raises:
        GaussiansError: an extension that is not known, or a file that holds no Gaussians.
    """
    path = Path(path)
    settle(path)
    form = find_format(path)
    gaussians = form.load(path)
    if not (form.keeps_origin or gaussians.origin.any()):
        gaussians = gaussians.at(world_offset_beside(path))
    return gaussians if antialiased is None else replace(gaussians, antialiased=antialiased)


def save_gaussians(gaussians: Gaussians, path: Path | str) -> None:
    """Write N Gaussians in the format that the extension names.

    Positions are written as they are counted, from ``gaussians.origin``; PLY files say from where, for the others there
    is a warning; and one for formats that cannot say that splats are anti-aliased.

    Raises:
        GaussiansError: an extension that is not known, or Gaussians that the format cannot hold.
        OutputError: the file cannot be written.
    """
    path = Path(path)
    form = find_format(path)
    form.save(gaussians, path)
    if gaussians.origin.any() and not form.keeps_origin:
        warn_of_origin(path, gaussians.origin)
    if gaussians.antialiased and not form.keeps_mode:
        warn_of_mode(path)


def find_format(path: Path) -> Format:
    """The format that a file name asks for. Raises GaussiansError."""
    for extension, found in FORMATS.items():
        if path.name.lower().endswith(extension):
            return found
    raise GaussiansError(f"{path} has no extension of a splat file.", expected=f"one of {', '.join(FORMATS)}")
