"""Writing many scenes as a data set: in parallel, and resumable after any interruption with the same bytes.

The files of a scene are complete or absent. Existing scenes are kept if they were made with the same settings;
otherwise the whole command is refused, so that a data set never mixes settings.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ilrm.core.errors import IlrmError, OutputError
from ilrm.datasets.layouts import ChunkLayout, FolderLayout, Form, Item, SetLayout, Settings, Written, check_same
from ilrm.datasets.parallel import LostWorker, choose_jobs, run_each
from ilrm.files import only_writer
from ilrm.scenes.save import ImageFormat

CHUNK_BYTES = 100_000_000
_NAME = re.compile(r"[^/\\\0.][^/\\\0]{0,119}")


@dataclass(frozen=True)
class Outcome:
    """The outcome for an item: it is ``written`` (by an earlier run if ``kept``), or ``reason`` says why not."""

    name: str
    origin: str
    written: Written | None = None
    kept: bool = False
    reason: str = ""


def save_set(
    items: Sequence[Item],
    output: Path | str,
    form: Form,
    *,
    image_format: ImageFormat,
    settings: Mapping[str, object],
    jobs: int | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    on_done: Callable[[Outcome], object] = lambda outcome: None,
) -> list[Outcome]:
    """Write all items that are not in ``output`` yet.

    Args:
        items: scenes with different names.
        output: the data set's folder; it may contain scenes of an earlier run with the same settings.
        form: "folders", each with transforms.json, and with depth and points if known; "json", folders with
            opencv_cameras.json, listed in scenes.txt; "chunks", train/NNNNNN.torch with train/index.json.
        image_format: of the photos.
        settings: everything else that the files depend on, as JSON values.
        jobs: number of processes; one per core by default.
        chunk_bytes: largest size of a chunk, unless a single scene is larger.
        on_done: called with each outcome, in the order of completion.

    Returns:
        the outcomes in the order of the items. Scenes with a ``reason`` were not written; the next run tries them again
        and adds them after the others.

    Raises:
        OutputError: the folder cannot be written, is in use, or contains scenes that were made with other settings.
    """
    root = Path(output)
    layout = _layout(root, form, image_format, settings, chunk_bytes)
    outcomes: dict[str, Outcome] = {}
    in_order = deque(items)

    def done(outcome: Outcome) -> None:
        outcomes[outcome.name] = outcome
        while in_order and (first := outcomes.get(in_order[0].name)):
            in_order.popleft()
            if first.written:
                layout.add(first.name, first.written)
        on_done(outcome)

    with only_writer(root):
        layout.open()
        there = {item.name: _find(layout, root, item) for item in items}
        assert len(there) == len(items), "names repeat"
        for item in items:
            if written := there[item.name]:
                done(Outcome(item.name, item.origin, written, kept=True))
        missing = [item for item in items if not there[item.name]]
        for index, answer in run_each(partial(_write, layout.write), missing, choose_jobs(jobs, len(missing))):
            item = missing[index]
            done(Outcome(item.name, item.origin, reason=answer.reason) if isinstance(answer, LostWorker) else answer)
        layout.close()
    return [outcomes[item.name] for item in items]


def _layout(
    root: Path, form: Form, image_format: ImageFormat, settings: Mapping[str, object], chunk_bytes: int
) -> SetLayout:
    same: Settings = {"form": form, "image_format": image_format, **json.loads(json.dumps(settings))}
    if form == "chunks":
        return ChunkLayout(root, image_format, {**same, "chunk_bytes": chunk_bytes}, chunk_bytes)
    return FolderLayout(root, form, image_format, same)


def _find(layout: SetLayout, root: Path, item: Item) -> Written | None:
    if not _NAME.fullmatch(item.name):
        raise OutputError(
            f"A scene cannot be written under the name {item.name!r}.",
            expected="a file name of at most 120 characters that does not start with a dot",
        )
    written = layout.find(item.name)
    if written is not None:
        check_same(root / item.name, {"origin": written.origin}, {"origin": item.origin})
    return written


def _write(write: Callable[[Item], Written], item: Item) -> Outcome:
    try:
        return Outcome(item.name, item.origin, write(item))
    except OutputError:
        raise  # writing the next scene would fail as well
    except IlrmError as error:
        return Outcome(item.name, item.origin, reason=str(error))
