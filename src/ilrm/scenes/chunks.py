"""pixelSplat-format chunks (RealEstate10K, DepthSplat's DL3DV): many scenes to a .torch file, read by key."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ilrm.errors import SceneError
from ilrm.scenes.frames import Frame, Source
from ilrm.scenes.images import encoded_photo
from ilrm.scenes.lenses import Lens
from ilrm.scenes.records import listing, read_json

INDEX = "index.json"
_CAMERA_VALUES = 18


def list_keys(path: Path | str) -> tuple[str, ...]:
    """The keys of all scenes in a chunk file, or in a stage folder (through its index.json where there is one)."""
    path = Path(path)
    if path.is_file():
        return tuple(example["key"] for example in _read_chunk(path))
    if (path / INDEX).is_file():
        return tuple(_read_index(path))
    return tuple(key for chunk in _chunk_files(path) for key in list_keys(chunk))


def read_chunk_scene(path: Path, key: str | None = None) -> Source:
    """One scene of a chunk file or stage folder; only its chunk is opened, and no image is decoded.

    Args:
        path: NNNNNN.torch, or a folder with index.json and chunks.
        key: which scene; the first by default.

    Raises:
        SceneError: an unknown key; a file that is missing, truncated, not a chunk, or wants to run code.
    """
    if path.is_dir():
        path = _chunk_with(path, key)
    examples = _read_chunk(path)
    example = examples[0] if key is None else next((e for e in examples if e["key"] == key), None)
    if example is None:
        raise _unknown_key(key, path, [e["key"] for e in examples])
    return Source(_frames(example, f"scene {example['key']} of {path}"))


def _chunk_with(folder: Path, key: str | None) -> Path:
    if (folder / INDEX).is_file():
        index = _read_index(folder)
        if key is not None and key not in index:
            raise _unknown_key(key, folder, list(index))
        chunk = folder / index[key if key is not None else next(iter(index))]
        if not chunk.is_file():
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
    files = sorted(folder.glob("*.torch"))
    if not files:
        raise SceneError(f"{folder} holds no chunks.", expected=f"NNNNNN.torch files and {INDEX}")
    return files


def _unknown_key(key: str | None, path: Path, known: list[str]) -> SceneError:
    return SceneError(f"There is no scene {key!r} in {path}.", expected=f"one of {listing(known)}")


def _read_index(folder: Path) -> dict[str, str]:
    index = read_json(folder / INDEX)
    if not is_chunk_index(index):
        raise SceneError(f"{folder / INDEX} is no index of chunks.", expected='an object {key: "NNNNNN.torch"}')
    return index


def is_chunk_index(value: Any) -> bool:
    """Whether a JSON value is {key: "NNNNNN.torch"} with at least one entry."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(file, str) and file.endswith(".torch") for file in value.values())
    )


def _read_chunk(path: Path) -> list[dict[str, Any]]:
    try:
        examples = _load(path)
    except Exception as error:  # a malformed pickle can provoke anything
        raise SceneError(
            f"{path} cannot be read as a chunk: {(str(error).splitlines() or [type(error).__name__])[0]}",
            expected="a list of scenes saved by torch.save, holding only tensors, texts and numbers",
            fix="download the file again; never load it in an unsafe way",
        ) from error
    keyed = isinstance(examples, list) and all(
        isinstance(example, dict) and isinstance(example.get("key"), str) for example in examples
    )
    if not keyed or not examples:
        raise SceneError(f"{path} is no chunk.", expected='a list of scenes, each with "key", "cameras" and "images"')
    return examples


def _load(path: Path) -> Any:
    # Mapping keeps a chunk's 100 MB and more out of memory; it needs an archive without compression.
    with zipfile.ZipFile(path) as archive:
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    return torch.load(path, map_location="cpu", weights_only=True, mmap=stored)


def _frames(example: dict[str, Any], label: str) -> tuple[Frame, ...]:
    cameras, images = example.get("cameras"), example.get("images")
    if not isinstance(cameras, Tensor) or cameras.ndim != 2 or cameras.shape[1] != _CAMERA_VALUES:
        raise SceneError(f"The cameras of {label} are malformed.", expected=f"a tensor (N, {_CAMERA_VALUES})")
    encoded = isinstance(images, list) and all(
        isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 1 for image in images
    )
    if not encoded or not images:
        raise SceneError(f"The images of {label} are malformed.", expected="a list of uint8 tensors (encoded JPEG)")
    if len(images) != len(cameras):
        raise SceneError(f"There are {len(images)} images but {len(cameras)} cameras in {label}.")
    poses = _c2w(cameras.float(), label)
    return tuple(_frame(i, images[i], cameras[i], poses[i], label) for i in range(len(images)))


def _frame(index: int, image: Tensor, camera: Tensor, c2w: Tensor, label: str) -> Frame:
    photo = encoded_photo(lambda: image.numpy().tobytes(), f"image {index} of {label}")
    width, height = photo.width, photo.height
    fx, fy, cx, cy = camera[:4].double().tolist()
    lens = Lens.pinhole(fx * width, fy * height, cx * width, cy * height, width, height)
    return Frame(f"{index:06d}", photo, lens, c2w.double().numpy())


def _c2w(cameras: Tensor, label: str) -> Tensor:
    """(N, 4, 4): inverted in single precision, as the networks were trained and scored with."""
    w2c = torch.eye(4).repeat(len(cameras), 1, 1)
    w2c[:, :3] = cameras[:, 6:].reshape(-1, 3, 4)
    try:
        return torch.linalg.inv(w2c)
    except RuntimeError as error:
        raise SceneError(f"A world-to-camera matrix of {label} has no inverse.") from error
