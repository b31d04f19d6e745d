"""The CPU rasteriser: numba kernels on all of torch's threads, float32 images, gradients by hand.

Views are rendered one after the other, each in parallel. What is kept of each for the gradient is
eight bytes a Gaussian, a pixel, and a pair of Gaussian and tile. Projections are kept as long as they
are small, and computed again otherwise.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numba
import numpy as np
import torch
from numba.core import config
from torch import Tensor

from ilrm.core.cameras import Cameras
from ilrm.core.errors import GaussiansError
from ilrm.core.gaussians import Gaussians
from ilrm.render.numba_projection import GRADIENT, project_all, unproject, view_vector
from ilrm.render.numba_tiles import (
    TILE,
    composite,
    composite_gradient,
    list_by_tile,
    slots_of_gaussians,
    sort_by_depth,
)
from ilrm.render.projection import Pinhole

Difference = Callable[[int, int, Tensor], Tensor]

# Bytes of projections that a call may keep for its gradient.
_MOST_KEPT = 1 << 28
# Numba's fallback threading layer must not be entered by two threads at once.
_LOCK = threading.RLock()


@contextmanager
def threads_of_torch() -> Iterator[None]:
    """As many numba threads as torch has been told to use."""
    with _LOCK:
        wanted = torch.get_num_threads()
        before = numba.get_num_threads()
        # That call starts numba's threads if nothing has before; where both use the same OpenMP, torch's own
        # number is lost in it.
        torch.set_num_threads(wanted)
        numba.set_num_threads(max(1, min(wanted, config.NUMBA_NUM_THREADS)))  # type: ignore[attr-defined]
        try:
            yield
        finally:
            numba.set_num_threads(before)


def render_views(
    gaussians: Gaussians, cameras: Cameras, background: Tensor, near: float, far: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Of a batch (B, N), (B, V): colour (B, V, H, W, 3), alpha and sum of weight times depth (B, V, H, W), float32."""
    g = gaussians.to("cpu", torch.float32)
    job = _job(g, cameras, background, near, far)
    return _Rasterise.apply(g.means, g.scales, g.quats, g.opacities, g.sh, job)  # type: ignore[misc]


def compare_views(
    gaussians: Gaussians, cameras: Cameras, difference: Difference, background: Tensor, near: float, far: float
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, ...], Tensor]:
    """``render_views``; the gradients of the five parameters, (B, N, ...), where ``difference`` is the gradient of the
    colour; and the sum of each Gaussian's blending weights (B, N). One view is traced at a time.

    Args:
        difference: from a batch element, a view and its colours (H, W, 3) to the gradient of those (H, W, 3).
    """
    g = gaussians.detach().to("cpu", torch.float32)
    job = _job(g, cameras, background, near, far)
    arrays = [np.ascontiguousarray(x.numpy()) for x in (g.means, g.scales, g.quats, g.opacities, g.sh)]
    rgb, alpha, depth = job.images()
    gradients, seen = [np.zeros(a.shape, np.float32) for a in arrays], np.zeros(arrays[3].shape, np.float32)
    nothing = np.zeros((job.height, job.width), np.float32)
    with threads_of_torch():
        for b, v, view in job.each():
            element = [array[b] for array in arrays]
            trace = _render(element, view, job, rgb[b, v], alpha[b, v], depth[b, v])
            v_rgb = np.ascontiguousarray(difference(b, v, torch.from_numpy(rgb[b, v])).numpy())
            _add_gradient(element, view, job, trace, [v_rgb, nothing, nothing], [x[b] for x in gradients], seen[b])
    images = (torch.from_numpy(rgb), torch.from_numpy(alpha), torch.from_numpy(depth))
    return images, tuple(torch.from_numpy(x) for x in gradients), torch.from_numpy(seen)


def _job(gaussians: Gaussians, cameras: Cameras, background: Tensor, near: float, far: float) -> _Job:
    like = torch.empty(0, dtype=torch.float64)
    views = [
        [view_vector(view, near, far, gaussians.antialiased) for view in Pinhole.of(element, like)]
        for element in cameras
    ]
    return _Job(views, cameras.width, cameras.height, background.numpy(force=True).astype(np.float32))


@dataclass(frozen=True, eq=False)
class _Job:
    """What a call renders besides the Gaussians: V views for each of B sets."""

    views: list[list[np.ndarray]]
    width: int
    height: int
    background: np.ndarray

    def each(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Batch element, view, and the view's numbers."""
        return ((b, v, view) for b, views in enumerate(self.views) for v, view in enumerate(views))

    def images(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Colour (B, V, H, W, 3), alpha and weighted depth (B, V, H, W), to be filled."""
        size = (len(self.views), len(self.views[0]), self.height, self.width)
        return np.empty((*size, 3), np.float32), np.empty(size, np.float32), np.empty(size, np.float32)

    @property
    def tiles_x(self) -> int:
        return -(-self.width // TILE)

    @property
    def tiles_y(self) -> int:
        return -(-self.height // TILE)


@dataclass(frozen=True, eq=False)
class _Trace:
    """What the gradient of one view needs from its rendering; see numba_tiles for the meaning. Projections (records)
    are there if they were small."""

    records: np.ndarray | None
    slot_starts: np.ndarray
    tile_starts: np.ndarray
    members: np.ndarray
    slots: np.ndarray
    transmittance: np.ndarray
    last_seen: np.ndarray


class _Rasterise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        *parameters, job = args
        arrays = [np.ascontiguousarray(p.detach().numpy()) for p in parameters]
        rgb, alpha, depth = job.images()
        traces, kept = [], 0
        with threads_of_torch():
            for b, v, view in job.each():
                trace = _render([array[b] for array in arrays], view, job, rgb[b, v], alpha[b, v], depth[b, v])
                if any(ctx.needs_input_grad):
                    kept += trace.records.nbytes if trace.records is not None else 0
                    traces.append(trace if kept <= _MOST_KEPT else replace(trace, records=None))
        ctx.save_for_backward(*parameters)
        ctx.job, ctx.traces = job, traces
        return torch.from_numpy(rgb), torch.from_numpy(alpha), torch.from_numpy(depth)

    @staticmethod
    def backward(ctx: Any, *image_gradients: Tensor) -> tuple[Tensor | None, ...]:
        parameters = ctx.saved_tensors
        arrays = [np.ascontiguousarray(p.detach().numpy()) for p in parameters]
        gradients = [np.zeros(a.shape, np.float32) for a in arrays]
        images = [np.ascontiguousarray(v.numpy()) for v in image_gradients]
        with threads_of_torch():
            for (b, v, view), trace in zip(ctx.job.each(), ctx.traces, strict=True):
                of_element = [array[b] for array in arrays], view, ctx.job, trace
                seen = np.zeros(arrays[0].shape[1], np.float32)  # weights, which nothing here asks for
                _add_gradient(*of_element, [image[b, v] for image in images], [x[b] for x in gradients], seen)
        needed = zip(gradients, ctx.needs_input_grad[:-1], strict=True)
        return (*(torch.from_numpy(g) if wanted else None for g, wanted in needed), None)


def _render(
    arrays: list[np.ndarray], view: np.ndarray, job: _Job, rgb: np.ndarray, alpha: np.ndarray, depth: np.ndarray
) -> _Trace:
    """Render one view into the three images."""
    records, depth_bits = project_all(view, *arrays)
    order = sort_by_depth(depth_bits)
    slot_starts, tile_of_slot = slots_of_gaussians(records, depth_bits, job.tiles_x, job.tiles_y)
    if len(tile_of_slot) > np.iinfo(np.int32).max:
        raise GaussiansError(
            f"The Gaussians cover {len(tile_of_slot)} tiles of one image, each counted on its own.",
            expected=f"at most {np.iinfo(np.int32).max}",
            fix="remove Gaussians as large as the scene, or render at a smaller size",
        )
    tile_starts, members, slots = list_by_tile(slot_starts, tile_of_slot, order, job.tiles_x * job.tiles_y)
    transmittance, last_seen = np.empty(alpha.shape, np.float32), np.empty(alpha.shape, np.int32)
    images = (rgb, alpha, depth, transmittance, last_seen)
    composite(records, tile_starts, members, job.tiles_x, job.background, *images)
    return _Trace(records, slot_starts, tile_starts, members, slots, transmittance, last_seen)


def _add_gradient(
    arrays: list[np.ndarray],
    view: np.ndarray,
    job: _Job,
    trace: _Trace,
    image_gradients: list[np.ndarray],
    gradients: list[np.ndarray],
    seen: np.ndarray,
) -> None:
    """Add one view's share to the gradients of the parameters, and to how much is seen of each Gaussian (N,)."""
    records = project_all(view, *arrays)[0] if trace.records is None else trace.records
    slot_gradients = np.zeros((len(trace.members), GRADIENT), np.float32)
    v_rgb, v_alpha, v_depth = image_gradients
    composite_gradient(
        records,
        trace.tile_starts,
        trace.members,
        trace.slots,
        job.tiles_x,
        job.background,
        trace.transmittance,
        trace.last_seen,
        v_rgb,
        v_alpha,
        v_depth,
        slot_gradients,
    )
    means, scales, quats, opacities, sh = arrays
    from_slots = (records, trace.slot_starts, slot_gradients)
    unproject(view, means, scales, quats, opacities, sh, *from_slots, *gradients, seen)
