"""From a photo (or its mask or depth map) to a view of the scene: undistort, crop, resize."""

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
    """The mapping from the pixels of one photo to those of its view.

    Attributes:
        lens: the lens of the photo.
        pinhole: the lens of the undistorted photo.
        box: the part (left, top, right, bottom) of the undistorted photo that the view shows.
        size: (width, height) of the view.
    """

    lens: Lens
    pinhole: Lens
    box: Box
    size: Size

    @staticmethod
    def cover(lens: Lens, pinhole: Lens, size: Size) -> Framing:
        """The largest centred part of the photo with the view's aspect; all of it if the aspects are nearly equal."""
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
        """The largest power of two by which the photo may be reduced first and still have twice the view's size."""
        left, top, right, bottom = self.box
        scale = min((right - left) / self.size[0], (bottom - top) / self.size[1])
        return 1 if scale < 4 else 2 ** math.floor(math.log2(scale / 2))

    def colours(self, photo: Photo) -> Tensor:
        """The view's image (height, width, 3) uint8. Raises SceneError if the photo cannot be decoded."""
        pixels = torch.from_numpy(photo.decode(self.reduction))
        if self.lens.distorted:
            pixels = remap(pixels, self.lens, self._reduced_pinhole()).round().clamp(0, 255).to(torch.uint8)
        return torch.from_numpy(self._fitted(pixels.numpy(), Image.Resampling.LANCZOS))

    def depths(self, depth: np.ndarray) -> Tensor:
        """The view's depth (height, width) float32 from a map of the whole photo at any resolution.

        Nearest neighbours only: interpolated depths would lie between surfaces.
        """
        if self.lens.distorted:
            straight = remap(torch.from_numpy(depth)[..., None], self.lens, self.pinhole, nearest=True)
            depth = straight[..., 0].numpy()
        return torch.from_numpy(self._fitted(depth, Image.Resampling.NEAREST))

    def coverage(self, counts: np.ndarray) -> Tensor:
        """The view's mask (height, width) bool: True where every photo pixel that contributes to a view pixel counts.

        Args:
            counts: uint8 (h, w, 1) mask of the whole photo at any resolution; 255 where a pixel counts.
        """
        whole = torch.from_numpy(counts)
        if self.lens.distorted:
            whole = remap(whole, self.lens, self._reduced_pinhole()).round().to(torch.uint8)
        return torch.from_numpy(self._fitted(whole[..., 0].numpy(), Image.Resampling.BILINEAR) == 255)

    def _reduced_pinhole(self) -> Lens:
        reduce = self.reduction
        return self.pinhole.resize(math.ceil(self.pinhole.width / reduce), math.ceil(self.pinhole.height / reduce))

    def _fitted(self, pixels: np.ndarray, kernel: Image.Resampling) -> np.ndarray:
        """Crop an undistorted photo (h, w) or (h, w, 3) of any resolution to the box and resize it to the view."""
        h, w = pixels.shape[:2]
        x, y = w / self.pinhole.width, h / self.pinhole.height
        left, top, right, bottom = self.box
        box = (left * x, top * y, right * x, bottom * y)
        if self.size == (w, h) and box == (0.0, 0.0, w, h):
            return pixels
        return np.array(Image.fromarray(pixels).resize(self.size, kernel, box=box))
