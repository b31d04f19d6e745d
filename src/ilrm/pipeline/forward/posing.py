"""Input without cameras: found first, and kept beside the result."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilrm.core.errors import SceneError
from ilrm.core.reporting import Reporter
from ilrm.files import paths
from ilrm.pipeline.options import PosesName
from ilrm.scenes.inputs import input_paths
from ilrm.scenes.load import camera_files, has_cameras, is_chunk_folder

CAPTURE_FOLDER = "capture"


@dataclass(frozen=True)
class PosedInput:
    """A scene with cameras.

    Attributes:
        path: for ``load_scene``.
        report: of the capture; None if the cameras were there.
    """

    path: Path
    report: dict[str, Any] | None = None


def needs_capture(path: Path, poses: PosesName) -> bool:
    """Whether cameras have to be found for an input: a video, or photos without a camera file, or by request."""
    if poses != "auto":
        return poses == "sfm"
    from ilrm.scenes.capture.media import holds_media

    if not paths.exists(path):
        return False
    if paths.is_dir(path) and (has_cameras(path) or is_chunk_folder(path) or camera_files(path)):
        return False
    return holds_media(path) and not _holds_datasets(path)


def files_of(path: Path, poses: PosesName) -> tuple[Path, ...]:
    """Everything that is read of an input, so that nothing is written over it."""
    if not needs_capture(path, poses):
        return input_paths(path)
    from ilrm.scenes.capture.media import find_media

    media = find_media(path)
    return (*media.files, *{file.parent for file in media.photos})


@contextmanager
def posed_input(
    path: Path, poses: PosesName, output: Path | None, max_pixels: int, seed: int, reporter: Reporter
) -> Iterator[PosedInput]:
    """The input with cameras during the body.

    Cameras that have to be found are kept in ``output``/capture, or in a temporary folder if nothing is to be written.

    Raises:
        SceneError, OutputError, WorkerError: see ``ilrm.capture``.
    """
    if not needs_capture(path, poses):
        yield PosedInput(path)
        return
    from ilrm.scenes.capture import capture

    if output is not None:
        found = capture(path, output / CAPTURE_FOLDER, max_pixels=max_pixels, seed=seed, reporter=reporter)
        yield PosedInput(found.folder, found.report)
        return
    with tempfile.TemporaryDirectory(prefix="ilrm-") as folder:
        found = capture(path, Path(folder) / CAPTURE_FOLDER, max_pixels=max_pixels, seed=seed, reporter=reporter)
        yield PosedInput(found.folder, found.report)


def _holds_datasets(path: Path) -> bool:
    """Whether the sub-folders of a folder are scenes with cameras: then its photos are not one scene."""
    try:
        return paths.is_dir(path) and any(paths.is_dir(entry) and has_cameras(entry) for entry in paths.entries(path))
    except SceneError:
        return False
