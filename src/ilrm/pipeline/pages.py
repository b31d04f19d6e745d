"""``page_file``: a page of a result, as ``ilrm view --html`` writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ilrm.core.checks import MAX_PIXELS, check_suffix
from ilrm.files import claim_file, note_written
from ilrm.pipeline.inputs import paths_read
from ilrm.results import load_result
from ilrm.view.page import save_result_page


def page_file(
    input: Path | str,
    output: Path | str,
    *,
    photos: Path | None = None,
    max_pixels: int = MAX_PIXELS,
    overwrite: bool = False,
    antialiased: bool = False,
) -> dict[str, Any]:
    """Write a page (.html) that shows a splat file with the cameras, photos and numbers beside it.

    Args:
        input: the folder of a result, or a splat file.
        photos: the scene that the result was made from; by default the photos in inputs/.
        max_pixels: see ``load_scene``.
        overwrite: also replace a page that this program did not write.
        antialiased: treat the splats as trained anti-aliased, for files that do not say so.

    Returns:
        the report that the command prints with --json.

    Raises:
        IlrmError: invalid input or output; the subclass says which.
    """
    path = Path(output)
    check_suffix(path, ".html")
    result = load_result(input, antialiased or None, photos=photos, max_pixels=max_pixels)
    claim_file(path, reads=paths_read(result.path, photos), overwrite=overwrite)
    save_result_page(result, path)
    note_written(path)
    return {
        "output": str(path),
        "bytes": path.stat().st_size,
        "num_gaussians": len(result.gaussians),
        "world_offset": result.gaussians.origin.tolist(),
    }
