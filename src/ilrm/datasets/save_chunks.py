"""pixelSplat-format chunks out: scenes as the reader in ``chunks`` (and pixelSplat's own) takes them."""

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
    """A scene as one entry of a chunk: its encoded images and cameras; depth and points have no place there.

    Args:
        scene: V views.
        key: what the scene will be found by.
        image_format: PNG keeps the pixels, JPEG a tenth of the bytes.
        url: where the scene comes from.

    Returns:
        "key", "url", "timestamps" (V,) int64 (the views' numbers), "cameras" (V, 18) float32 (fx, fy, cx, cy in shares
        of the image's size, 0, 0, the 3x4 world-to-camera rows) and "images", V uint8 tensors.

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
    """Write what torch.save can, uncompressed (so that it can be mapped) and the same bytes whatever the path.

    Raises:
        OutputError: it cannot be written.
    """
    # Not to the path: torch would write the file's name, a temporary one, into the archive, and says nothing that
    # could be understood about a full disk.
    stream = io.BytesIO()
    torch.save(value, stream)
    with atomic_file(path) as temporary:
        temporary.write_bytes(stream.getbuffer())


def write_chunk(path: Path, examples: Sequence[Example]) -> None:
    """Write a chunk file. Raises OutputError."""
    write_tensors(path, list(examples))


def example_bytes(example: Example) -> int:
    """The bytes that an example adds to a chunk, but for its outline."""
    tensors = [example["timestamps"], example["cameras"], *example["images"]]
    return sum(tensor.nbytes for tensor in tensors)


def _camera_rows(scene: Scene) -> Tensor:
    """(V, 18) float32; poses are inverted in float64, and far from the world's origin counted from a point nearby."""
    cameras = scene.cameras.to("cpu", torch.float64)
    cameras = cameras.relative_to(cameras.local_origin())
    rows = torch.zeros(len(cameras), 18, dtype=torch.float64)
    rows[:, 0], rows[:, 1] = cameras.K[:, 0, 0] / cameras.width, cameras.K[:, 1, 1] / cameras.height
    rows[:, 2], rows[:, 3] = cameras.K[:, 0, 2] / cameras.width, cameras.K[:, 1, 2] / cameras.height
    rows[:, 6:] = cameras.w2c[:, :3].flatten(1)
    return rows.float()
