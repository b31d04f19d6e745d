"""One training batch, ready for the network."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ilrm.core.cameras import Cameras


@dataclass(frozen=True)
class Problem:
    """An item that could not be used; another one took its place.

    Attributes:
        scene: its name or key.  source: the path or kind of where it came from.
        reason: one line.  broken: damaged data; otherwise sound but unusable for the sampler (too few frames, ...).
    """

    scene: str
    source: str
    reason: str
    broken: bool


@dataclass(frozen=True, eq=False)
class Batch:
    """B samples of V views, the inputs first, then the targets.

    Attributes:
        images: (B, V, H, W, 3) float in [0, 1].
        c2w: (B, V, 4, 4) camera-to-world in the normalised frame (the network's rule, from the inputs alone).
        K: (B, V, 3, 3) intrinsics in pixels.
        inputs: number of input views.
        names: scene of each sample.
        depth: (B, V, H, W) z-depth in the normalised frame, 0 where unknown; None if no sample has any.
        problems: what could not be used on the way.
        kinds: kind of the source of each sample, as in its config ("procedural", "captures", ...); empty if unknown.
    """

    images: Tensor
    c2w: Tensor
    K: Tensor
    inputs: int
    names: tuple[str, ...]
    depth: Tensor | None = None
    problems: tuple[Problem, ...] = ()
    kinds: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def targets(self) -> int:
        """Number of target views."""
        return self.images.shape[1] - self.inputs

    @property
    def target_cameras(self) -> Cameras:
        """(B, T) cameras of the target views."""
        height, width = self.images.shape[2:4]
        return Cameras(self.c2w[:, self.inputs :], self.K[:, self.inputs :], width, height)

    @property
    def target_images(self) -> Tensor:
        """(B, T, H, W, 3) photos of the target views."""
        return self.images[:, self.inputs :]

    def to(self, device: torch.device | str) -> Batch:
        """The same on another device."""
        depth = None if self.depth is None else self.depth.to(device, non_blocking=True)
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in ("images", "c2w", "K")}
        return replace(self, depth=depth, **moved)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that it holds."""
        return (self.images, self.c2w, self.K, *(() if self.depth is None else (self.depth,)))
