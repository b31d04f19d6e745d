"""Posed photos to Gaussians in one forward pass, in the photos' own world frame."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ilrm.core.cameras import Cameras, Similarity, normalise
from ilrm.core.errors import ConfigError, SceneError
from ilrm.core.gaussians import PER_GAUSSIAN, Gaussians
from ilrm.core.precision import Precision, autocast, resolve
from ilrm.core.scene import Scene
from ilrm.model.compute.half import is_cast
from ilrm.model.config import ILRMConfig
from ilrm.model.hidden import hidden_pixels
from ilrm.model.ilrm import ILRM
from ilrm.model.matching.neighbours import is_astray
from ilrm.model.matching.sparse import SparsePoints
from ilrm.model.tokens import round_size
from ilrm.model.unseen import gaussians_of_unseen

# Sparse points that are used of a scene: memory and time of matching grow with them.
_MOST_POINTS = 1 << 13


@torch.no_grad()
def reconstruct(
    scene: Scene,
    model: ILRM,
    *,
    precision: Precision = "auto",
    feedback: int | None = None,
    iterations: bool = False,
    points: bool = False,
) -> Gaussians:
    """Gaussians of all views of a scene.

    The cameras are moved into the frame the network was trained in and the result is moved back, so that a
    scene in another world frame gives the same Gaussians in that frame. Far from the world's origin their means are
    counted from a point among the cameras (``Gaussians.origin``, chosen by ``Cameras.local_origin``).

    Args:
        scene: the input views. Sizes that patches do not divide are stretched to the nearest that they do.
        model: the network, on the device to compute on.
        precision: "auto" is bf16 where the hardware has it and it pays, else fp32.
        feedback: iterations that render, compare and correct; as many as the network's config says by default.
        iterations: also return the state after every earlier update layer and feedback iteration.
        points: use the scene's sparse points, if there are any and the network matches its views: as evidence for
            depth, and as Gaussians of their own where no view has a surface.

    Returns:
        N Gaussians in the scene's world frame on the model's device, in the order view, row, column, then those of
        sparse points; with ``iterations`` (layers + feedback, N), the last one being the result. Pixels outside the
        scene's mask have none.

    Raises:
        SceneError: the scene has no view, or no pixel that counts.
        CameraError: a pose or intrinsic is impossible.
        ConfigError: feedback of a network that has none; precision "fp32" for one whose weights are bf16
            (``ILRM.cast_weights``).
    """
    if len(scene) == 0:
        raise SceneError("The scene has no view.", expected="at least one posed photo, better two or more")
    scene.cameras.check(scene.names)
    origin = scene.cameras.local_origin()
    cameras, to_local = normalise(scene.cameras.relative_to(origin), rule=model.config.normalisation)
    parameter = next(model.parameters())
    device = parameter.device
    sparse = usable_points(scene, model.config) if points else None
    if sparse is not None:
        sparse = _in_frame(sparse, to_local.inverse(), origin, device)
    images = scene.images[:].to(device, torch.float32)
    mask = None if scene.mask is None else scene.mask[:].to(device)[None]
    cameras = cameras.to(device, torch.float32)
    if is_cast(model):
        chosen = _only_bf16(precision)
    else:
        chosen = resolve(precision, device, model.parameter_count())
        model = model.for_bf16() if chosen == "bf16" else model
    with autocast(chosen, device):
        gaussians = model(
            images[None],
            cameras.c2w[None],
            cameras.K[None],
            mask=mask,
            points=sparse,
            feedback=feedback,
            iterations=iterations,
        )
    states = (gaussians[:, 0] if iterations else gaussians[0]).to(dtype=torch.float32)
    if mask is not None:
        states = _of_counting_pixels(states, mask, model.config)
    if sparse is not None:
        states = _with_unseen(states, sparse, cameras)
    return states.transform(to_local).at(origin)


def usable_points(scene: Scene, config: ILRMConfig) -> SparsePoints | None:
    """Sparse points that ``reconstruct`` uses, (1, P) in the scene's world: the finite ones, evenly thinned to some
    thousands. None if there are none, or if the network does not match its views."""
    if scene.points is None or config.matching is None:
        return None
    kept = torch.isfinite(scene.points).all(-1)
    if scene.points_rgb is not None:
        kept &= torch.isfinite(scene.points_rgb).all(-1)
    every = kept.nonzero()[:, 0]
    chosen = every[:: max(1, -(-len(every) // _MOST_POINTS))]
    rgb = None if scene.points_rgb is None else scene.points_rgb[chosen][None].float()
    return SparsePoints(scene.points[chosen][None], rgb) if len(chosen) else None


def _in_frame(points: SparsePoints, to_frame: Similarity, origin: Tensor, device: torch.device) -> SparsePoints:
    """Those that do not lie astray, on the device, in the frame of the network. In the world, its transform counts
    positions from ``origin``."""
    local = points.xyz.double() - origin.to(points.xyz.device)
    xyz = to_frame.apply_points(local).to(device, torch.float32)
    kept = (~is_astray(xyz[0])).nonzero()[:, 0]
    return SparsePoints(xyz[:, kept], None if points.rgb is None else points.rgb.to(device)[:, kept])


def _with_unseen(states: Gaussians, points: SparsePoints, cameras: Cameras) -> Gaussians:
    """States (..., N), each with the Gaussians of points for which the last one has no surface."""
    lead = states.means.shape[:-2]
    last = states[-1] if lead else states
    own = gaussians_of_unseen(points, last, cameras)
    return Gaussians.cat([states, own.map(lambda x: x.expand(*lead, *x.shape))])


def _only_bf16(precision: Precision) -> Literal["bf16"]:
    if precision == "fp32":
        raise ConfigError(
            "A network whose weights were cast to bf16 was asked to compute in fp32.",
            expected="precision auto or bf16",
            fix="load its weights again, without ILRM.cast_weights()",
        )
    return "bf16"


def _of_counting_pixels(states: Gaussians, mask: Tensor, config: ILRMConfig) -> Gaussians:
    """Those of N Gaussians (..., N) whose viewpoint pixel holds no masked pixel of the views' mask (1, V, H, W)."""
    grid = (round_size(side, config.size_multiple) // config.viewpoint_factor for side in mask.shape[2:])
    kept = (~hidden_pixels(mask, *grid)).flatten().nonzero()[:, 0]
    if not len(kept):
        raise SceneError(
            "The masks leave no pixel of the photos.", expected="masks that are black where nothing counts"
        )
    lead = states.means.ndim - 2
    return replace(states, **{name: getattr(states, name).index_select(lead, kept) for name in PER_GAUSSIAN})
