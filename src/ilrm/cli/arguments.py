"""Arguments that several commands share."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import tyro

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
