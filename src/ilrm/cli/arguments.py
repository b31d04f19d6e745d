"""Arguments that several commands share, and how they become values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ilrm.core.errors import OutputError, warn

if TYPE_CHECKING:
    from ilrm.core.gaussians import Gaussians

Output = Annotated[Path, tyro.conf.arg(aliases=["-o"])]
# load_scene's own limit under a name of the command line, with one help text.
MaxPixels = Annotated[
    int,
    tyro.conf.arg(
        help="Refuse photos of more pixels, so that a small file cannot fill the memory (8 bytes a pixel; WebP, AVIF, "
        "progressive JPEG and 16-bit TIFF count twice)."
    ),
]


def check_suffix(path: Path, suffix: str) -> None:
    """Refuse an output file of another kind than the one we write."""
    if path.suffix.lower() != suffix:
        raise OutputError(f"{path} has the extension {path.suffix!r}.", expected=f"a name that ends in {suffix}")


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
