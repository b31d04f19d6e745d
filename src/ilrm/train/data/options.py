"""What is done to photos by chance before a network trains on them: parts of the run's config."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ilrm.core.errors import ConfigError
from ilrm.core.typed_config import check_range

# Displayed values are light to the power of one over this, nearly enough to change an exposure.
DISPLAY_GAMMA = 2.2


@dataclass(frozen=True)
class Captures:
    """Captures of real places, used in ever new ways: runs of neighbouring views, windows of the photos, exposure.

    The numbers of inputs and targets are those of the stage's sampler; which views they are is drawn here, and the
    stage's ``fit`` plays no part. The photos of a scene are decoded once and kept as bytes. Sparse points beside a
    capture become depth where views see them.

    Attributes:
        path: a folder of scene folders that ``load_scene`` reads, or one scene's folder.
        only: names of the scenes to use, their paths below ``path``; all if empty.
        leave_out: names of the scenes not to use.
        max_side: photos are kept with their longer side reduced to so many pixels.
        span: how many times more views than the sample needs the run may have that they are drawn from; 1 takes the
            nearest neighbours of the first.
        overlap: share of a view's surface that another input should see, as far as the capture allows.
        zoom: up to so many times smaller than the photo the window along each side is; 1 is all of it.
        magnify: a window is never enlarged more than this, which limits the zoom.
        exposure: standard deviation of the whole sample's exposure in stops.
        white_balance: standard deviation of the red and blue gains of the whole sample.
    """

    path: Path
    weight: float = 1.0
    only: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()
    max_side: int = 512
    span: float = 2.0
    overlap: float = 0.5
    zoom: float = 1.6
    magnify: float = 1.25
    exposure: float = 0.2
    white_balance: float = 0.05
    kind: Literal["captures"] = "captures"

    def __post_init__(self) -> None:
        check_range(self, 8, 16_384, "max_side")
        check_range(self, 1, 100, "span", "zoom", "magnify")
        check_range(self, 0, 1, "overlap", "white_balance")
        check_range(self, 0, 4, "exposure")
        if both := sorted({*self.only} & {*self.leave_out}):
            raise ConfigError(f"Scenes are both used and left out: {', '.join(both)}.", fix="name each in one list")


@dataclass(frozen=True)
class InputNoise:
    """Errors of the inputs that photos and poses of users have; targets and depth stay true.

    Attributes:
        share: of the samples that have any.
        rotation: standard deviation of the turn of each input camera in radians.
        position: the same of its centre, as a share of the inputs' extent; each sample draws its own in this range.
        focal: the same of the focal length, as a share of it. All inputs have the same error: they share a lens, and
            structure from motion finds one focal length for it.
        exposure: the same of each input's exposure in stops.
        sensor: largest standard deviation of the noise of pixels; each sample draws its own from 0 to this.
    """

    share: float = 0.5
    rotation: float = 0.001
    position: tuple[float, float] = (0.001, 0.005)
    focal: float = 0.005
    exposure: float = 0.1
    sensor: float = 0.02

    def __post_init__(self) -> None:
        check_range(self, 0, 1, "share", "rotation", "position", "focal", "sensor")
        if self.position[0] > self.position[1]:
            raise ConfigError(f"position = {self.position}.", expected="the smaller number first")
        check_range(self, 0, 4, "exposure")
