"""Arguments that several commands share."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ilrm.core.errors import warn

if TYPE_CHECKING:
    from ilrm.core.gaussians import Gaussians

Output = Annotated[Path, tyro.conf.arg(aliases=["-o"])]
# The parameter max_pixels of load_scene, with one help text for all commands.
MaxPixels = Annotated[
    int,
    tyro.conf.arg(
        help="Refuse photos of more pixels, so that a small file cannot exhaust memory (8 bytes per pixel; WebP, AVIF, "
        "progressive JPEG and 16-bit TIFF count twice)."
    ),
]
# Fields of commands that are not options of their library functions.
_NOT_OPTIONS = ("input", "gaussians", "scene", "output", "json")


def library_options(command: Any) -> dict[str, Any]:
    """The options of a command, as keyword arguments for the library function that does its work."""
    return {field.name: getattr(command, field.name) for field in fields(command) if field.name not in _NOT_OPTIONS}


def read_with(splats: Path, *others: Path | None) -> list[Path]:
    """What a command reads beside a splat file: its cameras, numbers and photos, and the scenes or files of flags."""
    from ilrm.results.beside import folder_of
    from ilrm.scenes.inputs import input_paths

    beside = [folder_of(splats) / name for name in ("cameras.json", "metrics.json", "inputs")]
    given = [path for path in others if path is not None]
    named = [path for path in given if path.name == "cameras.json"]
    return [*beside, *named, *(file for path in given if path not in named for file in input_paths(path))]


def warn_of_browsers(gaussians: Gaussians) -> None:
    """Say what a browser cannot show of splats that were trained anti-aliased."""
    if gaussians.antialiased:
        warn(
            "the splats are anti-aliased; browsers draw thin ones too opaque, the renderings of `ilrm view` and "
            "`ilrm render` are right"
        )
