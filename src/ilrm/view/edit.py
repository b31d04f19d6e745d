"""What the viewer's edits leave of a scene: thresholds and a crop box, without any browser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ilrm.core.errors import ConfigError
from ilrm.core.gaussians import Gaussians

_BOX_SHARE = 0.02  # of the Gaussians lies outside of a fresh box, on either side


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
    """Which Gaussians stay.

    Attributes:
        min_opacity: those below go.
        max_scale: those with a larger standard deviation along any axis go, in world units.
        box: those with a centre outside go.
    """

    min_opacity: float = 0.0
    max_scale: float = math.inf
    box: Box | None = None

    def keep(self, gaussians: Gaussians) -> Tensor:
        """(N,) mask of the Gaussians that stay."""
        keep = (gaussians.opacities >= self.min_opacity) & (gaussians.scales.amax(-1) <= self.max_scale)
        return keep if self.box is None else keep & self.box.contains(gaussians.means)


class Session:
    """The states of a scene that can be chosen from, the one chosen, and the edit on it.

    Args:
        layers: (name, Gaussians) at least one, the result last. All on the CPU.
    """

    def __init__(self, layers: Sequence[tuple[str, Gaussians]]) -> None:
        if not layers:
            raise ConfigError("There is nothing to show.", expected="at least one set of Gaussians")
        self._layers = dict(layers)
        self._name = layers[-1][0]
        self.edit = Edit()

    @property
    def names(self) -> list[str]:
        """Of all states, in order."""
        return list(self._layers)

    @property
    def name(self) -> str:
        """Of the state that was chosen; the last one at first."""
        return self._name

    def choose(self, name: str) -> None:
        """Show another state; the edit stays. Raises ConfigError."""
        if name not in self._layers:
            raise ConfigError(f"There is no state {name!r}.", expected=", ".join(self._layers))
        self._name = name

    def change(self, **values: float | Box | None) -> None:
        """Replace fields of the edit."""
        self.edit = replace(self.edit, **values)  # pyright: ignore[reportArgumentType]

    @property
    def everything(self) -> Gaussians:
        """The chosen state without the edit."""
        return self._layers[self._name]

    def keep(self) -> Tensor:
        """(N,) mask of what stays of it."""
        return self.edit.keep(self.everything)

    def shown(self) -> Gaussians:
        """The chosen state with the edit."""
        everything = self.everything  # one look: the choice may change meanwhile
        return everything[self.edit.keep(everything)]

    def scale_quantile(self, share: float) -> float:
        """The size that a share of the Gaussians does not exceed, in world units; infinity for all of them."""
        if share >= 1:
            return math.inf
        sizes = self.everything.scales.amax(-1).sort().values
        return sizes[min(int(share * len(sizes)), len(sizes) - 1)].item()
