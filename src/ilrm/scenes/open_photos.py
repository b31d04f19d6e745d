"""Opening photos with given cameras: the part of ``Scene.from_images`` that reads files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ilrm.core.cameras import Cameras
from ilrm.core.errors import SceneError
from ilrm.core.scene import LazyImages
from ilrm.files.image_files import MAX_PIXELS, check_budget
from ilrm.scenes.framing import Framing
from ilrm.scenes.lenses.models import Lens
from ilrm.scenes.photos.images import open_photo, same_aspect


def open_photos(files: Sequence[Path], cameras: Cameras) -> LazyImages:
    """Images of V files at the size of V cameras, decoded when they are used.

    Raises:
        SceneError: a file that is missing, not an image, too large to decode, or not of the cameras' shape.
    """
    size, readers = (cameras.width, cameras.height), []
    for file in files:
        photo = open_photo(file, declared=size)
        check_budget(photo.label, photo.header.cost, MAX_PIXELS)
        if not same_aspect(photo.size, size):
            raise SceneError(
                f"{photo.label} is {photo.width}x{photo.height}, its camera {cameras.width}x{cameras.height}.",
                expected="the same shape, at any resolution",
                fix="give cameras of the whole photo, or crop the photo to match the camera",
            )
        # A dummy lens of the photo's size: the result only needs resizing, since the intrinsics are given.
        lens = Lens.pinhole(1.0, 1.0, 0.0, 0.0, *photo.size)
        framing = Framing(lens, lens, (0.0, 0.0, float(photo.width), float(photo.height)), size)
        readers.append(partial(framing.colours, photo))
    return LazyImages(readers, cameras.height, cameras.width)
