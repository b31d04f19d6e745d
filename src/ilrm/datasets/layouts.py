"""The layouts of a data set on disk: folders with camera files, or chunks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from ilrm.core.errors import ConfigError, OutputError, SceneError
from ilrm.core.scene import Scene
from ilrm.core.typed_config import build
from ilrm.datasets.save_chunks import Example, chunk_example, example_bytes, write_chunk, write_tensors
from ilrm.files import claim_names, output_error, paths, remove_abandoned, write_json, write_owned
from ilrm.files.reading import read_json, read_text
from ilrm.scenes.readers.chunks import INDEX
from ilrm.scenes.readers.records import listing
from ilrm.scenes.save import SCENE_NAMES, CameraFile, ImageFormat, save_scene

Form = Literal["folders", "chunks", "json"]
Settings = Mapping[str, Any]

LIST_FILE = "scenes.txt"
RECORD_FILE = "record.json"
STAGE = "train"
_PARTS = ".parts"
_NOTES = "made"  # top-level key of a camera file
_CAMERA_FILES: dict[str, CameraFile] = {"folders": "transforms.json", "json": "opencv_cameras.json"}


@dataclass(frozen=True)
class Item:
    """A scene to write.

    Attributes:
        name: its folder or key.
        origin: a stable description of its source; the same name with another origin is another scene.
        load: makes or reads the scene and returns it with warnings; picklable. Raises IlrmError.
    """

    name: str
    origin: str
    load: Callable[[], tuple[Scene, tuple[str, ...]]]


@dataclass(frozen=True)
class Written:
    """A scene that has been written: its origin, number of views, their size in pixels, and warnings."""

    origin: str
    views: int
    width: int
    height: int
    warnings: tuple[str, ...] = ()

    @staticmethod
    def from_json(value: object) -> Written:
        """The inverse of ``asdict``, through JSON. Raises ConfigError."""
        return build(Written, value)


class SetLayout(Protocol):
    """A data set's folder."""

    def open(self) -> None:
        """Read what an earlier run has written. Raises OutputError if it had other settings."""
        ...

    def find(self, name: str) -> Written | None:
        """The scene of that name, if it has been written. Raises OutputError if it had other settings."""
        ...

    @property
    def write(self) -> Callable[[Item], Written]:
        """A picklable function that writes one scene; it may run in another process. Raises IlrmError."""
        ...

    def add(self, name: str, written: Written) -> None:
        """Register the next written scene; called in the order of the items."""
        ...

    def close(self) -> None:
        """Write the list of scenes."""
        ...


def check_same(where: Path, there: Mapping[str, object], asked: Mapping[str, object]) -> None:
    """Raise OutputError, saying what differs, unless both are the same."""
    differing = [name for name in {**there, **asked} if there.get(name) != asked.get(name)]
    if differing:
        listed = "; ".join(f"{name} is {there.get(name)} there, {asked.get(name)} here" for name in differing)
        raise OutputError(
            f"{where} was made in another way: {listed}.",
            expected="the same settings as the data already in the folder",
            fix="choose another folder, or remove the data in it",
        )


def _load(item: Item) -> tuple[Scene, Written]:
    scene, warnings = item.load()
    return scene, Written(item.origin, len(scene), scene.cameras.width, scene.cameras.height, warnings)


# --- a folder for each scene ----------------------------------------------------------------------------------------


@dataclass
class FolderLayout:
    """ROOT/name/transforms.json with depth and points, or ROOT/name/opencv_cameras.json and ROOT/scenes.txt."""

    root: Path
    form: Literal["folders", "json"]
    image_format: ImageFormat
    settings: Settings
    _names: list[str] = field(default_factory=list)

    def open(self) -> None:
        if self.form != "json":
            return
        claim_names(self.root, [LIST_FILE])
        if paths.is_file(self.root / LIST_FILE):
            lines = read_text(self.root / LIST_FILE, OutputError).splitlines()
            self._names = [line.removesuffix(f"/{_CAMERA_FILES[self.form]}") for line in lines]

    def find(self, name: str) -> Written | None:
        file = self.root / name / _CAMERA_FILES[self.form]
        if not paths.is_file(file):
            claim_names(self.root / name, SCENE_NAMES)
            return None
        try:
            notes = read_json(file)[_NOTES]
            settings, written = dict(notes["settings"]), Written.from_json(notes["scene"])
        except (SceneError, ConfigError, LookupError, TypeError, ValueError) as error:
            raise OutputError(
                f"{file} belongs to another scene that was not made by this command.",
                fix="choose another folder, or remove that scene",
            ) from error
        check_same(self.root / name, settings, self.settings)
        return written

    @property
    def write(self) -> Callable[[Item], Written]:
        return partial(_write_folder, self.root, _CAMERA_FILES[self.form], self.image_format, self.settings)

    def add(self, name: str, written: Written) -> None:
        if name not in self._names:
            self._names.append(name)

    def close(self) -> None:
        if self.form == "json" and self._names:
            lines = [f"{name}/{_CAMERA_FILES[self.form]}\n" for name in self._names]
            write_owned(self.root, LIST_FILE, "".join(lines))


def _write_folder(
    root: Path, camera_file: CameraFile, image_format: ImageFormat, settings: Settings, item: Item
) -> Written:
    scene, written = _load(item)
    notes = {_NOTES: {"settings": settings, "scene": asdict(written)}}
    save_scene(scene, root / item.name, camera_file=camera_file, image_format=image_format, notes=notes)
    return written


# --- chunks ---------------------------------------------------------------------------------------------------------


@dataclass
class ChunkLayout:
    """ROOT/train/NNNNNN.torch and index.json. ROOT/record.json stores the settings and which scene is in which chunk.

    Each scene is first written to a file of its own. They are packed in the order of the items, as soon as a chunk is
    known to be full, so that chunks do not depend on the order of completion.
    """

    root: Path
    image_format: ImageFormat
    settings: Settings
    chunk_bytes: int
    _packed: dict[str, dict[str, Any]] = field(default_factory=dict)
    _pending: list[tuple[Example, Written]] = field(default_factory=list)
    _writing: str | None = None  # a chunk that an interrupted run has started and may have written

    @property
    def _stage(self) -> Path:
        return self.root / STAGE

    @property
    def _parts(self) -> Path:
        return self._stage / _PARTS

    def _part(self, name: str) -> Path:
        return self._parts / f"{name}.torch"

    def open(self) -> None:
        self._check_record()
        try:
            self._parts.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(error, self._parts) from error
        remove_abandoned(self._stage)
        remove_abandoned(self._parts)
        for name in self._packed:  # left if a run stopped between packing a chunk and removing its parts
            self._part(name).unlink(missing_ok=True)
        self._write_record()

    def _check_record(self) -> None:
        file = self.root / RECORD_FILE
        if not paths.is_file(file):
            claim_names(self._stage, [INDEX, f"{_PARTS}/"])
            if chunks := [entry.name for entry in paths.entries(self._stage, "*.torch")]:
                raise OutputError(
                    f"{self._stage} contains chunks that this command did not make: {listing(chunks)}.",
                    fix="choose another folder",
                )
            return
        try:
            record = read_json(file)
            settings, packed = dict(record["settings"]), _packed_scenes(record["scenes"])
            writing = record.get("writing")
        except (SceneError, ConfigError, LookupError, TypeError, ValueError) as error:
            raise OutputError(f"{file} is damaged.", fix="choose another folder, or remove this one") from error
        if packed or paths.entries(self._parts, "*.torch"):
            check_same(self.root, settings, self.settings)
        present = {entry.name for entry in paths.entries(self._stage, "*.torch")}
        self._packed = {name: entry for name, entry in packed.items() if entry["chunk"] in present}
        self._writing = writing if writing in present else None

    def find(self, name: str) -> Written | None:
        if name in self._packed:
            return Written.from_json(self._packed[name]["scene"])
        part = self._part(name)
        if not paths.is_file(part):
            return None
        try:
            return _read_part(part)[1]
        except OutputError:  # the machine crashed before all data was on disk
            part.unlink()
            return None

    @property
    def write(self) -> Callable[[Item], Written]:
        return partial(_write_part, self._parts, self.image_format)

    def add(self, name: str, written: Written) -> None:
        if name in self._packed:
            return
        example, written = _read_part(self._part(name))
        filled = sum(example_bytes(earlier) for earlier, _ in self._pending)
        if self._pending and filled + example_bytes(example) > self.chunk_bytes:
            self._pack()
        self._pending.append((example, written))

    def _pack(self) -> None:
        numbers = [int(Path(entry["chunk"]).stem) for entry in self._packed.values()]
        chunk = f"{max(numbers, default=-1) + 1:06d}.torch"
        if paths.exists(self._stage / chunk) and chunk != self._writing:
            raise OutputError(
                f"{self._stage / chunk} is in the way: this command did not make it.",
                fix="move it elsewhere, or choose another folder",
            )
        # The record first names the chunk, then lists its scenes: if the run stops in between, the next one knows that
        # the chunk is its own and may be replaced.
        self._writing = chunk
        self._write_record()
        write_chunk(self._stage / chunk, [example for example, _ in self._pending])
        for example, written in self._pending:
            self._packed[example["key"]] = {"chunk": chunk, "scene": asdict(written)}
        self._writing = None
        self._write_record()
        self._write_index()
        for example, _ in self._pending:
            self._part(example["key"]).unlink()
        self._pending = []

    def close(self) -> None:
        if self._pending:
            self._pack()
        elif self._packed:
            self._write_index()
        with suppress(OSError):  # not empty: parts of scenes that a later command may ask for
            self._parts.rmdir()

    def _write_record(self) -> None:
        begun = {} if self._writing is None else {"writing": self._writing}
        write_json(self.root / RECORD_FILE, {"settings": self.settings, "scenes": self._packed, **begun})

    def _write_index(self) -> None:
        write_json(self._stage / INDEX, {name: entry["chunk"] for name, entry in self._packed.items()})


def _write_part(parts: Path, image_format: ImageFormat, item: Item) -> Written:
    scene, written = _load(item)
    example = chunk_example(scene, item.name, image_format=image_format, url=item.origin)
    write_tensors(parts / f"{item.name}.torch", {"example": example, "written": json.dumps(asdict(written))})
    return written


def _packed_scenes(values: Any) -> dict[str, dict[str, Any]]:
    """The scenes of a record that are in chunks. Raises ConfigError and others if it is damaged."""
    if not isinstance(values, dict):
        raise TypeError("no object")
    for entry in values.values():
        int(Path(entry["chunk"]).stem)
        Written.from_json(entry["scene"])
    return values


def _read_part(part: Path) -> tuple[Example, Written]:
    """Read the file of a single scene. Raises OutputError if it is damaged."""
    try:
        content = torch.load(part, map_location="cpu", weights_only=True)
        return content["example"], Written.from_json(json.loads(content["written"]))
    except Exception as error:  # torch.load raises many kinds
        raise OutputError(f"{part} is damaged.", fix="remove it, and run the same command again") from error
