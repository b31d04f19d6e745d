"""How a photo, and whatever lies over it, becomes a view of its scene: undistorted, cropped, at the scene's size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ilrm.scenes.lenses.models import Lens, remap
from ilrm.scenes.photos.images import Photo, Size, same_aspect

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Framing:
    """The way from the pixels of one photo to those of its view.

    Attributes:
        lens: what the photo was taken through.
        pinhole: the same without distortion.
        box: the part (left, top, right, bottom) of the undistorted photo that the view shows.
        size: (width, height) of the view.
    """

    lens: Lens
    pinhole: Lens
    box: Box
    size: Size

    @staticmethod
    def cover(lens: Lens, pinhole: Lens, size: Size) -> Framing:
        """The centre of the photo, as large as the view's aspect allows; all of it where the aspects agree but for
        rounding."""
        (w, h), (width, height) = pinhole.size, size
        if same_aspect(pinhole.size, size):
            return Framing(lens, pinhole, (0.0, 0.0, float(w), float(h)), size)
        scale = max(width / w, height / h)
        x, y = (w - width / scale) / 2, (h - height / scale) / 2
        return Framing(lens, pinhole, (max(x, 0.0), max(y, 0.0), min(w - x, float(w)), min(h - y, float(h))), size)

    @property
    def matrix(self) -> np.ndarray:
        """(3, 3) float64 intrinsics of the view."""
        left, top, right, bottom = self.box
        x, y = self.size[0] / (right - left), self.size[1] / (bottom - top)
        return np.array([[x, 0, -left * x], [0, y, -top * y], [0, 0, 1]]) @ self.pinhole.matrix()

    @property
    def reduction(self) -> int:
        """The largest power of two by which a photo may be reduced first: to no less than twice the view's size."""
        left, top, right, bottom = self.box
        scale = min((right - left) / self.size[0], (bottom - top) / self.size[1])
        return 1 if scale < 4 else 2 ** math.floor(math.log2(scale / 2))

    def colours(self, photo: Photo) -> Tensor:
        """uint8 (height, width, 3). Raises SceneError if the photo cannot be decoded."""
        pixels = torch.from_numpy(photo.decode(self.reduction))
        if self.lens.distorted:
            pixels = remap(pixels, self.lens, self._reduced_pinhole()).round().clamp(0, 255).to(torch.uint8)
        return torch.from_numpy(self._fitted(pixels.numpy(), Image.Resampling.LANCZOS))

    def depths(self, depth: np.ndarray) -> Tensor:
        """float32 (height, width) of a map over the whole photo, at any resolution; values are never mixed."""
        if self.lens.distorted:
            straight = remap(torch.from_numpy(depth)[..., None], self.lens, self.pinhole, nearest=True)
            depth = straight[..., 0].numpy()
        return torch.from_numpy(self._fitted(depth, Image.Resampling.NEAREST))

    def coverage(self, counts: np.ndarray) -> Tensor:
        """bool (height, width): where all that a pixel of the view is made of counts.

        Args:
            counts: uint8 (h, w, 1) over the whole photo, at any resolution; 255 where a pixel counts.
        """
        whole = torch.from_numpy(counts)
        if self.lens.distorted:
            whole = remap(whole, self.lens, self._reduced_pinhole()).round().to(torch.uint8)
        return torch.from_numpy(self._fitted(whole[..., 0].numpy(), Image.Resampling.BILINEAR) == 255)

    def _reduced_pinhole(self) -> Lens:
        reduce = self.reduction
        return self.pinhole.resize(math.ceil(self.pinhole.width / reduce), math.ceil(self.pinhole.height / reduce))

    def _fitted(self, pixels: np.ndarray, kernel: Image.Resampling) -> np.ndarray:
        """The box of an undistorted photo (h, w) or (h, w, 3) of any resolution, at the view's size."""
        h, w = pixels.shape[:2]
        x, y = w / self.pinhole.width, h / self.pinhole.height
        left, top, right, bottom = self.box
        box = (left * x, top * y, right * x, bottom * y)
        if self.size == (w, h) and box == (0.0, 0.0, w, h):
            return pixels
        return np.array(Image.fromarray(pixels).resize(self.size, kernel, box=box))
