"""Photos on disk or in memory: the header is read at once, the pixels when they are used.

Every photo is decoded to uint8 RGB. Transparency is composited on white (as the Blender scenes expect), 16-bit grey is
scaled to 8 bits, and grey, palette and CMYK are converted. The EXIF orientation is applied unless the intrinsics refer
to the stored pixels (see ``open_photo``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ilrm.core.errors import SceneError
from ilrm.files.image_files import ImageHeader, header_of, open_image, orientation, read_header
from ilrm.scenes.photos.pixels import draft, marked_pixels, opaque_pixels, reduced_pixels, rgb_pixels

Size = tuple[int, int]

# The rotation or flip that makes stored pixels upright (EXIF 2.3, tag 0x0112), as views of arrays (H, W, C).
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
    8: lambda x: np.rot90(x, 1),
}
# The inverse of an orientation: all but the quarter turns are their own inverse.
_UNDOING = {6: 8, 8: 6}
_FIRST_TRANSPOSED_ORIENTATION = 5
# Two sizes whose aspect ratios differ by less than this may be the same photo at two resolutions.
SAME_ASPECT = 0.01


@dataclass(frozen=True, eq=False)
class Photo:
    """One image that is not decoded yet.

    Attributes:
        label: name in messages.
        source: the path, or a function that returns the content of the file.
        header: of the stored image.
        turned: whether the EXIF orientation is applied; otherwise pixels are as stored.
    """

    label: str
    source: Path | Callable[[], bytes]
    header: ImageHeader
    turned: bool

    @property
    def size(self) -> Size:
        """(width, height) in pixels of what ``decode`` returns."""
        return _turned_size(self.header.size, self.header.orientation if self.turned else 1)

    @property
    def width(self) -> int:
        return self.size[0]

    @property
    def height(self) -> int:
        return self.size[1]

    def decode(self, reduce: int = 1) -> np.ndarray:
        """Decode to uint8 (ceil(height / reduce), ceil(width / reduce), 3): means of reduce x reduce pixels.

        Args:
            reduce: a power of two.

        Raises:
            SceneError: a damaged file, or one that has changed since it was opened.
        """
        return self._read(lambda image: rgb_pixels(image, self.label), reduce, drafted=True)

    def decode_opaque(self, reduce: int = 1) -> np.ndarray:
        """As ``decode``: uint8 (height, width, 1), 255 where nothing is transparent."""
        return self._read(opaque_pixels, reduce)

    def decode_marked(self, reduce: int = 1) -> np.ndarray:
        """As ``decode``: uint8 (height, width, 1), 255 where nothing is black or transparent, as in masks."""
        return self._read(marked_pixels, reduce)

    def _read(self, convert: Callable[[Image.Image], np.ndarray], reduce: int, *, drafted: bool = False) -> np.ndarray:
        with open_image(self.source, self.label, max_pixels=None) as image:
            if header_of(image) != self.header:
                raise SceneError(f"{self.label} changed while the scene was in use.", fix="load the scene again")
            share = draft(image, reduce) if drafted else 1
            image.load()
            # Pillow applies the orientation of TIFF files while decoding and then removes the tag.
            upright = image.format == "TIFF" and orientation(image) != self.header.orientation
            if reduce == 1:
                pixels = convert(image)
            else:
                width, height = self.header.size if share > 1 else image.size
                plain = drafted and image.mode == "RGB" and not self.header.transparent
                whole = image if plain else convert(image)
                pixels = reduced_pixels(whole, (width / share, height / share), reduce // share)
        if upright == self.turned:
            return pixels
        # Either stored pixels have to be turned, or Pillow has turned them and the turn has to be undone.
        turn = (
            self.header.orientation if self.turned else _UNDOING.get(self.header.orientation, self.header.orientation)
        )
        return turn_upright(pixels, turn)


def same_aspect(a: Size, b: Size) -> bool:
    """Whether two sizes (width, height) can be the same photo at two resolutions."""
    return abs(a[0] * b[1] / (a[1] * b[0]) - 1.0) < SAME_ASPECT


def open_photo(path: Path, declared: Size | None = None, *, stored_pixels: bool = False) -> Photo:
    """A photo whose header has been read.

    Args:
        path: an image file.
        declared: (width, height) that the intrinsics refer to. If it has the shape of the stored pixels but not of the
            upright photo, the intrinsics refer to the stored pixels, and the orientation is not applied.
        stored_pixels: what to do if ``declared`` does not decide: True keeps the pixels as stored (COLMAP works on
            stored pixels).

    Raises:
        SceneError: the file is missing, or is not an image.
    """
    header = read_header(path)
    return Photo(str(path), path, header, _measured_upright(header, declared, stored_pixels))


def encoded_photo(data: Callable[[], bytes], label: str) -> Photo:
    """A photo from encoded (JPEG, PNG) bytes; its orientation is not applied."""
    return Photo(label, data, read_header(data, label), turned=False)


def turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation to stored pixels (H, W, C)."""
    return np.ascontiguousarray(_TURNS[orientation](pixels))


def _turned_size(stored: Size, orientation: int) -> Size:
    return (stored[1], stored[0]) if orientation >= _FIRST_TRANSPOSED_ORIENTATION else stored


def _measured_upright(header: ImageHeader, declared: Size | None, stored_pixels: bool) -> bool:
    stored, upright = header.size, _turned_size(header.size, header.orientation)
    if declared is not None and same_aspect(declared, stored) != same_aspect(declared, upright):
        return same_aspect(declared, upright)
    return not stored_pixels
