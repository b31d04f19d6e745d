"""pixelSplat-format chunks (RealEstate10K, DepthSplat's DL3DV): .torch files of many scenes, read by key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ilrm.core.errors import SceneError, warn
from ilrm.files import paths
from ilrm.files.reading import read_json
from ilrm.files.torch_files import LazyBytes, LazyTensor, load_lazily, share_reasonably
from ilrm.scenes.frames import CaptureFrame, CaptureSource
from ilrm.scenes.lenses.models import Lens
from ilrm.scenes.photos.images import encoded_photo
from ilrm.scenes.readers.records import listing

INDEX = "index.json"
_CAMERA_VALUES = 18
# Poses whose rounding is a larger share of the cameras' spread cause a warning.
_COARSE = 1e-3


def list_keys(path: Path | str) -> tuple[str, ...]:
    """The keys of all scenes in a chunk file or a stage folder; from index.json if there is one."""
    path = Path(path)
    if paths.is_file(path):
        return open_chunk(path).keys
    if paths.is_file(path / INDEX):
        return tuple(_read_index(path))
    return tuple(key for chunk in _chunk_files(path) for key in list_keys(chunk))


def read_chunk_scene(path: Path, key: str | None = None) -> CaptureSource:
    """One scene of a chunk file or stage folder; only its chunk is opened, and no image is decoded.

    Args:
        path: NNNNNN.torch, or a folder with index.json and chunks.
        key: which scene; the first by default.

    Raises:
        SceneError: an unknown key; a file that is missing, truncated, not a chunk, or tries to run code.
    """
    if paths.is_dir(path):
        path = _chunk_with(path, key)
    return open_chunk(path).scene(key).source()


def chunk_of_every_key(folder: Path) -> dict[str, Path]:
    """The chunk file of each scene of a stage folder, from index.json or else from the chunks themselves.

    Raises:
        SceneError: no index and no chunks; an index that is malformed, empty, or names chunks that do not exist.
    """
    if not paths.is_file(folder / INDEX):
        return {key: chunk for chunk in _chunk_files(folder) for key in list_keys(chunk)}
    index = _read_index(folder)
    present = {file.name for file in paths.entries(folder, "*.torch")}
    missing = sorted(name for name in set(index.values()) - present if not paths.is_file(folder / name))
    if missing:
        raise SceneError(
            f"{folder / INDEX} names chunks that do not exist: {listing(missing)}.",
            expected=f"each of them in {folder}",
            fix="restore the chunks, or write the index again",
        )
    return {key: folder / name for key, name in index.items()}


@dataclass(frozen=True, eq=False)
class ChunkScene:
    """One scene of an opened chunk; photos are read when they are used.

    Attributes:
        label: name in messages.
        cameras: (N, 18): fx, fy, cx, cy as shares of the image size, 0, 0, and the 3x4 world-to-camera rows.
        images: N byte strings (encoded JPEG or PNG).
    """

    label: str
    cameras: Tensor
    images: Sequence[Tensor]

    @property
    def c2w(self) -> Tensor:
        """(N, 4, 4), inverted in float32, as in the training and evaluation of the published networks.

        Raises:
            SceneError: a camera without an inverse.
        """
        w2c = torch.eye(4).repeat(len(self.cameras), 1, 1)
        w2c[:, :3] = self.cameras[:, 6:].reshape(-1, 3, 4)
        try:
            return torch.linalg.inv(w2c)
        except RuntimeError as error:
            raise SceneError(f"A world-to-camera matrix of {self.label} has no inverse.") from error

    def source(self, views: Sequence[int] | None = None) -> CaptureSource:
        """All frames or some of them, without decoding images. Raises SceneError as ``c2w``, or for a non-image."""
        poses = self.c2w.double().numpy()
        if (self.cameras[:, 4:6] != 0).any():  # RealEstate10K's columns for distortion
            warn(f"{self.label} has distortion coefficients; they are ignored")
        centres = poses[:, :3, 3]
        spread = np.abs(centres - centres.mean(0)).max(initial=0)
        step = float(np.finfo(np.float32).eps * np.abs(self.cameras[:, 6:].numpy()).max(initial=0))
        if len(centres) > 1 and step > _COARSE * spread:
            warn(
                f"{self.label} has single-precision poses with steps of about {step:.2g}, but the cameras are only "
                f"{spread:.2g} apart: write the chunk again from the original poses, with an origin near the cameras"
            )
        return CaptureSource(tuple(self._frame(view, poses[view]) for view in (views or range(len(self.cameras)))))

    def _frame(self, view: int, c2w: np.ndarray) -> CaptureFrame:
        photo = encoded_photo(lambda: self.images[view].numpy().tobytes(), f"image {view} of {self.label}")
        width, height = photo.width, photo.height
        fx, fy, cx, cy = self.cameras[view, :4].double().tolist()
        lens = Lens.pinhole(fx * width, fy * height, cx * width, cy * height, width, height)
        return CaptureFrame(f"{view:06d}", photo, lens, c2w)


class Chunk:
    """An opened chunk file: its structure is known, but no tensor has been read."""

    def __init__(self, path: Path, examples: Sequence[dict[str, Any]]) -> None:
        self.path = path
        # Scenes may share a list of photos; each list is checked only once.
        lists = {id(example.get("images")): example.get("images") for example in examples}
        compact = {number: _compact(images) for number, images in lists.items()}
        self._examples = {
            example["key"]: (example.get("cameras"), compact[id(example.get("images"))])
            for example in reversed(examples)
        }
        self.keys = tuple(example["key"] for example in examples)

    def scene(self, key: str | None = None) -> ChunkScene:
        """One scene; the first by default.

        Raises:
            SceneError: an unknown key; malformed cameras or images, or unequal numbers of them.
        """
        key = self.keys[0] if key is None else key
        if key not in self._examples:
            raise _unknown_key(key, self.path, list(self.keys))
        label = f"scene {key} of {self.path}"
        cameras, images = self._examples[key]
        if not isinstance(cameras, LazyTensor) or cameras.ndim != 2 or cameras.shape[1] != _CAMERA_VALUES:
            raise SceneError(f"The cameras of {label} are malformed.", expected=f"a tensor (N, {_CAMERA_VALUES})")
        cameras = _read_tensor(cameras, label)
        if images is None:
            raise SceneError(f"The images of {label} are malformed.", expected="a list of uint8 tensors (encoded JPEG)")
        if len(images) != len(cameras):
            raise SceneError(f"There are {len(images)} images but {len(cameras)} cameras in {label}.")
        return ChunkScene(label, cameras.float(), images)


def open_chunk(path: Path) -> Chunk:
    """Open a chunk file.

    Raises:
        SceneError: a file that is missing, truncated, not a chunk, or tries to run code.
    """
    try:
        examples = load_lazily(path)
    except Exception as error:  # a malformed pickle can raise anything
        raise SceneError(
            f"{path} cannot be read as a chunk: {(str(error).splitlines() or [type(error).__name__])[0]}",
            expected="a list of scenes saved by torch.save, with only tensors, strings and numbers in it",
            fix="download the file again; never load it in an unsafe way",
        ) from error
    keyed = isinstance(examples, list) and all(
        isinstance(example, dict) and isinstance(example.get("key"), str) for example in examples
    )
    if not keyed or not examples:
        raise SceneError(
            f"{path} is not a chunk.", expected='a list of scenes, each with "key", "cameras" and "images"'
        )
    return Chunk(path, examples)


def _compact(images: Any) -> Sequence[Tensor] | None:
    """The byte strings of a scene in a compact form; None if they are not byte strings."""
    if not isinstance(images, list) or not images:
        return None
    if not all(isinstance(image, LazyTensor) and image.is_byte_string for image in images):
        return None
    if not share_reasonably(images):
        return None
    if any(image.storage.inflated is not None for image in images):
        return [image.read() for image in images]  # views of the inflated storage
    return LazyBytes(images)


def _read_tensor(tensor: LazyTensor, label: str) -> Tensor:
    try:
        return tensor.read()
    except OSError as error:
        raise SceneError(f"A tensor of {label} cannot be read: {error}.", fix="restore the chunk") from error


def _chunk_with(folder: Path, key: str | None) -> Path:
    if paths.is_file(folder / INDEX):
        index = _read_index(folder)
        if key is not None and key not in index:
            raise _unknown_key(key, folder, list(index))
        chunk = folder / index[key if key is not None else next(iter(index))]
        if not paths.is_file(chunk):
            raise SceneError(f"{folder / INDEX} names {chunk.name}, which does not exist.", fix="restore the chunk")
        return chunk
    files = _chunk_files(folder)
    if key is None:
        return files[0]
    found = next((file for file in files if key in list_keys(file)), None)
    if found is None:
        raise _unknown_key(key, folder, list(list_keys(folder)))
    return found


def _chunk_files(folder: Path) -> list[Path]:
    files = paths.entries(folder, "*.torch")
    if not files:
        raise SceneError(f"{folder} holds no chunks.", expected=f"NNNNNN.torch files and {INDEX}")
    return files


def _unknown_key(key: str | None, path: Path, known: list[str]) -> SceneError:
    return SceneError(f"There is no scene {key!r} in {path}.", expected=f"one of {listing(known)}")


def _read_index(folder: Path) -> dict[str, str]:
    index = read_json(folder / INDEX)
    if not is_chunk_index(index):
        raise SceneError(f"{folder / INDEX} is not an index of chunks.", expected='an object {key: "NNNNNN.torch"}')
    return index


def is_chunk_index(value: Any) -> bool:
    """Whether a JSON value is {key: "NNNNNN.torch"} with at least one entry."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(file, str) and file.endswith(".torch") for file in value.values())
    )
