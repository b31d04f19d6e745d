"""Reading and writing splat files of any format, chosen by the extension."""

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
        load: reads Gaussians, in the world frame that they were saved in.
        save: writes Gaussians.
        axes: from the world to the coordinates in the file, if the format prescribes other axes.
        keeps_mode: whether the format can mark splats as anti-aliased.
        keeps_origin: whether the format can store the point of the world that positions are relative to.
    """

    load: Callable[[Path], Gaussians]
    save: Callable[[Gaussians, Path], None]
    axes: Similarity | None = None
    keeps_mode: bool = False
    keeps_origin: bool = False


# The first extension that a name ends in counts, so the longer one comes first.
FORMATS: dict[str, Format] = {
    ".compressed.ply": Format(load_ply, save_compressed_ply, keeps_mode=True, keeps_origin=True),
    ".ply": Format(load_ply, save_ply, keeps_mode=True, keeps_origin=True),
    ".splat": Format(load_splat, save_splat),
    ".spz": Format(load_spz, save_spz, OPENGL, keeps_mode=True),
    ".glb": Format(load_glb, save_glb, GLTF),
    ".sog": Format(load_sog, save_sog, keeps_mode=True),
}


def load_gaussians(path: Path | str, antialiased: bool | None = None) -> Gaussians:
    """Read N Gaussians from a splat file, in the world frame that they were saved in.

    For formats that cannot store the world offset, it is read from a cameras.json beside the file.

    Args:
        antialiased: whether the splats are to be rendered with compensated opacity, for files that do not say; None
            uses what the file says.

    Raises:
        GaussiansError: an unknown extension, or a file without Gaussians.
    """
    path = Path(path)
    settle(path)
    form = find_format(path)
    gaussians = form.load(path)
    if not (form.keeps_origin or gaussians.origin.any()):
        gaussians = gaussians.at(world_offset_beside(path))
    return gaussians if antialiased is None else replace(gaussians, antialiased=antialiased)


def save_gaussians(gaussians: Gaussians, path: Path | str) -> None:
    """Write N Gaussians in the format of the extension.

    Positions are written relative to ``gaussians.origin``. PLY files store that point; for the other formats there is a
    warning if it is not zero. There is also a warning if the format cannot mark splats as anti-aliased.

    Raises:
        GaussiansError: an unknown extension, or Gaussians that the format cannot store.
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
    """The format for a file name. Raises GaussiansError."""
    for extension, found in FORMATS.items():
        if path.name.lower().endswith(extension):
            return found
    raise GaussiansError(f"{path} has no extension of a splat file.", expected=f"one of {', '.join(FORMATS)}")
