"""Writing pixelSplat-format chunks, which ``scenes.readers.chunks`` and pixelSplat read."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ilrm.core.scene import Scene
from ilrm.files import atomic_file
from ilrm.scenes.save import ImageFormat, encode_image

Example = dict[str, Any]


def chunk_example(scene: Scene, key: str, *, image_format: ImageFormat = "jpg", url: str = "") -> Example:
    """A scene as one entry of a chunk: encoded images and cameras. Chunks cannot store depth and points.

    Args:
        scene: V views.
        key: key of the scene.
        image_format: PNG is lossless, JPEG takes a tenth of the bytes.
        url: origin of the scene.

    Returns:
        "key", "url", "timestamps" (V,) int64 (the indices of the views), "cameras" (V, 18) float32 (fx, fy, cx, cy as
        shares of the image size, 0, 0, the 3x4 world-to-camera rows) and "images", V uint8 tensors.

    Raises:
        SceneError: an image cannot be decoded.
    """
    files = [encode_image(scene, view, image_format) for view in range(len(scene))]
    return {
        "key": key,
        "url": url,
        "timestamps": torch.arange(len(scene)),
        "cameras": _camera_rows(scene),
        "images": [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files],
    }


def write_tensors(path: Path, value: object) -> None:
    """Write a file of torch.save, uncompressed so that it can be read lazily, and with the same bytes for any path.

    Raises:
        OutputError: it cannot be written.
    """
    # Through memory: torch would store the temporary file name in the archive, and its error for a full disk is
    # unintelligible.
    stream = io.BytesIO()
    torch.save(value, stream)
    with atomic_file(path) as temporary:
        temporary.write_bytes(stream.getbuffer())


def write_chunk(path: Path, examples: Sequence[Example]) -> None:
    """Write a chunk file. Raises OutputError."""
    write_tensors(path, list(examples))


def example_bytes(example: Example) -> int:
    """The bytes that an example adds to a chunk, without the pickled outline."""
    tensors = [example["timestamps"], example["cameras"], *example["images"]]
    return sum(tensor.nbytes for tensor in tensors)


def _camera_rows(scene: Scene) -> Tensor:
    """(V, 18) float32; poses are inverted in float64 and, far from the world's origin, relative to a nearby point."""
    cameras = scene.cameras.to("cpu", torch.float64)
    cameras = cameras.relative_to(cameras.local_origin())
    rows = torch.zeros(len(cameras), 18, dtype=torch.float64)
    rows[:, 0], rows[:, 1] = cameras.K[:, 0, 0] / cameras.width, cameras.K[:, 1, 1] / cameras.height
    rows[:, 2], rows[:, 3] = cameras.K[:, 0, 2] / cameras.width, cameras.K[:, 1, 2] / cameras.height
    rows[:, 6:] = cameras.w2c[:, :3].flatten(1)
    return rows.float()
