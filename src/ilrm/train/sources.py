"""Where training scenes come from: sources of a config, opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ilrm.cameras import Cameras
from ilrm.scene import Scene
from ilrm.scenes.procedural import make_batch
from ilrm.train.config import Procedural


@dataclass(frozen=True)
class ProceduralSource:
    """Endless scenes made from seeds."""

    config: Procedural

    def name(self, number: int) -> str:
        """The name of scene ``number``: its seed."""
        return f"procedural-{self.config.first_seed + number}"

    def make(
        self, numbers: Sequence[int], frames: int, size: tuple[int, int], device: torch.device | str = "cpu"
    ) -> list[Scene]:
        """Scenes of ``frames`` views at ``size`` (height, width), with true depth.

        The same number gives the same scene whatever else is made with it (on CUDA up to rounding).
        """
        height, width = size
        # Surface points are not looked at; one is the least that can be made.
        scenes = replace(self.config.scenes, views=frames, width=width, height=height, points=1)
        made = make_batch([self.config.first_seed + number for number in numbers], scenes, device)
        names = tuple(f"view_{view:03d}" for view in range(frames))
        return [
            Scene(images, Cameras(c2w, K, width, height), names, depth)
            for images, c2w, K, depth in zip(made.images, made.c2w.cpu(), made.K.cpu(), made.depth, strict=True)
        ]
