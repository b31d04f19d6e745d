"""The viewer's edits of a scene (thresholds and a crop box), independent of the browser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ilrm.core.errors import ConfigError
from ilrm.core.gaussians import Gaussians

_BOX_SHARE = 0.02  # of the Gaussians is outside of a new box, on each side of each axis


@dataclass(frozen=True)
class Box:
    """A box in the world.

    Attributes:
        centre: (3,) float64.
        rotation: (3, 3) float64, the box's axes as columns.
        size: (3,) full edge lengths.
    """

    centre: Tensor
    rotation: Tensor
    size: Tensor

    @staticmethod
    def around(means: Tensor, up: Tensor) -> Box:
        """The upright box around most of the centres (N, 3); its third axis is ``up`` (3,)."""
        up = F.normalize(up.double(), dim=0)
        sideways = torch.zeros(3, dtype=torch.float64)
        sideways[up.abs().argmin()] = 1.0
        x = F.normalize(torch.linalg.cross(sideways, up), dim=0)
        rotation = torch.stack([x, torch.linalg.cross(up, x), up], dim=1)
        local = (means.double() @ rotation).sort(dim=0).values
        outside = int(_BOX_SHARE * len(local))
        low, high = local[outside], local[len(local) - 1 - outside]
        return Box(rotation @ (low + high) / 2, rotation, (high - low).clamp_min(1e-9))

    def contains(self, points: Tensor) -> Tensor:
        """(N,) mask of the points (N, 3) inside."""
        local = (points.double() - self.centre) @ self.rotation
        return (local.abs() <= self.size / 2).all(-1)


@dataclass(frozen=True)
class Edit:
    """The conditions that Gaussians must meet to be kept.

    Attributes:
        min_opacity: smallest opacity.
        max_scale: largest standard deviation along any axis, in world units.
        box: the box that contains the centre; None for no condition.
    """

    min_opacity: float = 0.0
    max_scale: float = math.inf
    box: Box | None = None

    def keep(self, gaussians: Gaussians) -> Tensor:
        """(N,) mask of the Gaussians to keep."""
        keep = (gaussians.opacities >= self.min_opacity) & (gaussians.scales.amax(-1) <= self.max_scale)
        return keep if self.box is None else keep & self.box.contains(gaussians.means)


class Session:
    """The available states of a scene, the selected one, and the edit applied to it.

    Args:
        layers: at least one (name, Gaussians), on the CPU, the result last.
    """

    def __init__(self, layers: Sequence[tuple[str, Gaussians]]) -> None:
        if not layers:
            raise ConfigError("There is nothing to show.", expected="at least one set of Gaussians")
        self._layers = dict(layers)
        self._name = layers[-1][0]
        self.edit = Edit()

    @property
    def names(self) -> list[str]:
        """The names of all states, in order."""
        return list(self._layers)

    @property
    def name(self) -> str:
        """The name of the selected state; initially the last one."""
        return self._name

    def choose(self, name: str) -> None:
        """Select another state; the edit is kept. Raises ConfigError."""
        if name not in self._layers:
            raise ConfigError(f"There is no state {name!r}.", expected=", ".join(self._layers))
        self._name = name

    def change(self, **values: float | Box | None) -> None:
        """Replace fields of the edit."""
        self.edit = replace(self.edit, **values)  # pyright: ignore[reportArgumentType]

    @property
    def everything(self) -> Gaussians:
        """The selected state without the edit."""
        return self._layers[self._name]

    def keep(self) -> Tensor:
        """(N,) mask of the Gaussians that the edit keeps."""
        return self.edit.keep(self.everything)

    def shown(self) -> Gaussians:
        """The selected state with the edit applied."""
        everything = self.everything  # read once, because another thread may change the selection
        return everything[self.edit.keep(everything)]

    def scale_quantile(self, share: float) -> float:
        """The scale that a share of the Gaussians does not exceed, in world units; infinity for a share of 1."""
        if share >= 1:
            return math.inf
        sizes = self.everything.scales.amax(-1).sort().values
        return sizes[min(int(share * len(sizes)), len(sizes) - 1)].item()
