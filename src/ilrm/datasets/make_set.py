"""Procedural scenes as a data set on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from ilrm.core.errors import SceneError
from ilrm.core.scene import Scene
from ilrm.datasets.layouts import Form, Item
from ilrm.datasets.procedural import ProceduralConfig, make_scene
from ilrm.datasets.save_set import CHUNK_BYTES, Outcome, save_set
from ilrm.scenes.save import ImageFormat


def make_set(
    output: Path | str,
    seeds: Sequence[int],
    config: ProceduralConfig,
    form: Form = "folders",
    *,
    image_format: ImageFormat = "png",
    jobs: int | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    on_done: Callable[[Outcome], object] = lambda outcome: None,
) -> list[Outcome]:
    """Write a scene for each seed, named scene_SEED; scenes that are already in ``output`` are kept.

    The files depend only on the seeds and the config, not on ``jobs`` or on interruptions. See ``save_set`` for the
    arguments.

    Raises:
        OutputError: the folder cannot be written, or contains scenes of another config.
        SceneError: some scenes could not be made or written; the others have been written.
    """
    items = [Item(f"scene_{seed:06d}", f"seed {seed}", partial(_make, seed, config)) for seed in seeds]
    described = asdict(config)
    if config.style == "plain":  # a younger field: sets from before it go on
        del described["style"]
    settings = {"procedural": described}
    outcomes = save_set(
        items,
        output,
        form,
        image_format=image_format,
        settings=settings,
        jobs=jobs,
        chunk_bytes=chunk_bytes,
        on_done=on_done,
    )
    if failed := [outcome for outcome in outcomes if not outcome.written]:
        raise SceneError(
            f"{len(failed)} of {len(items)} scenes are missing from {output}; the first: {failed[0].name}. "
            f"{failed[0].reason}"
        )
    return outcomes


def _make(seed: int, config: ProceduralConfig) -> tuple[Scene, tuple[str, ...]]:
    return make_scene(seed, config), ()
