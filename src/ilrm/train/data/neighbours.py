"""Which views of a capture belong together: runs of neighbours, with targets that the inputs have seen.

Photos of a capture need not be in the order of a walk, so neighbours are those that see the same points.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ilrm.core.cameras import Cameras
from ilrm.train.data.samplers import SampledViews, TooFewFrames

# Views with fewer points than this tell nothing by them.
_LEAST_POINTS = 20
_TRIES = 8


def shared_surface(seen: Tensor) -> Tensor:
    """(V, V) share of the points of each view (row) that each view (column) sees, of seen (V, P)."""
    seen = seen.float()
    return seen @ seen.T / seen.sum(1, keepdim=True).clamp_min(1.0)


def shared_by_pose(cameras: Cameras) -> Tensor:
    """(V, V) guess of the same where no points are known: high for near centres and like directions."""
    centres = cameras.centers.double()
    apart = torch.cdist(centres, centres)
    spread = (centres - centres.mean(0)).norm(dim=1).mean().clamp_min(1e-12)
    alike = (cameras.forward.double() @ cameras.forward.double().T).clamp(0, 1)
    return (alike / (1 + apart / spread)).float()


def shared(cameras: Cameras, seen: Tensor | None) -> Tensor:
    """(V, V) by points where every view has enough of them, else by poses."""
    if seen is None or int(seen.sum(1).min()) < _LEAST_POINTS:
        return shared_by_pose(cameras)
    return shared_surface(seen)


def choose_neighbours(
    share: Tensor, rng: np.random.Generator, inputs: int, targets: int, *, span: float, overlap: float
) -> SampledViews:
    """Draw views of one sample from a run of neighbours.

    Args:
        share: (V, V), see ``shared``.
        rng: source of all chance.
        inputs, targets: how many to draw.
        span: the run has between inputs + targets and span times as many views.
        overlap: every chosen view should share so much with an input (another one, if it is one itself). Of some
            draws the first that does is taken, or else the one that comes nearest.

    Raises:
        TooFewFrames: there are not as many views.
    """
    needed, views = inputs + targets, len(share)
    if views < needed:
        raise TooFewFrames(
            f"A capture of {views} photos is too small for {inputs} inputs and {targets} targets.",
            expected=f"at least {needed} photos",
            fix="leave it out, or ask for fewer views",
        )
    first = int(rng.integers(views))
    size = int(rng.integers(needed, min(views, max(needed, round(span * needed))) + 1))
    # Both ways: a view of everything is nobody's neighbour for that alone.
    nearness = torch.minimum(share[first], share[:, first]).clone()
    nearness[first] = 2.0
    run = torch.argsort(nearness, descending=True, stable=True)[:size].numpy()
    best, most = np.empty(0, int), -1.0
    for _ in range(_TRIES):
        drawn = rng.permutation(run)[:needed]
        found = _least_overlap(share, drawn, inputs)
        if found > most:
            best, most = drawn, found
        if found >= overlap:
            break
    return SampledViews(tuple(sorted(best[:inputs].tolist())), tuple(sorted(best[inputs:].tolist())))


def _least_overlap(share: Tensor, views: np.ndarray, inputs: int) -> float:
    """The least share of a view's surface that one of the inputs, not itself, sees."""
    if inputs == 1 and len(views) == 1:
        return 1.0
    among = share[views][:, views[:inputs]].clone()
    among[:inputs].fill_diagonal_(-1.0 if inputs > 1 else 1.0)
    return float(among.amax(1).min())
