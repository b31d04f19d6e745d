"""Images of Gaussians: ``render`` and its result."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from ilrm.core.cameras import Cameras
from ilrm.core.errors import ConfigError, GaussiansError
from ilrm.core.gaussians import Gaussians
from ilrm.render.rules import DEPTH_ALPHA_MIN

Backend = Literal["auto", "reference", "numba", "gsplat"]

__all__ = ["Backend", "Rendering", "background_of", "render"]

_WHITE = (1.0, 1.0, 1.0)


@dataclass(frozen=True, eq=False)
class Rendering:
    """What V cameras see, with the batch dimensions of Gaussians and cameras in front.

    Attributes:
        rgb: (..., V, H, W, 3), background included; not clamped, can exceed 1.
        alpha: (..., V, H, W) in [0, 1].
        depth: (..., V, H, W) expected z-depth in world units, sum(w z) / alpha; 0 where alpha is 0.
    """

    rgb: Tensor
    alpha: Tensor
    depth: Tensor


def render(
    gaussians: Gaussians,
    cameras: Cameras,
    background: Sequence[float] | Tensor | None = None,
    *,
    near: float = 0.01,
    far: float = 1e6,
    backend: Backend = "auto",
) -> Rendering:
    """Render N Gaussians into V cameras, or batches of both element by element.

    The rules are those of ``ilrm.render.rules``. Gradients flow from all three outputs to means, scales, quats,
    opacities and sh, and to nothing else. Quaternions are normalised inside. Gaussians with NaN or infinite
    values are not drawn and get no gradient. Skew in K is ignored.

    Args:
        gaussians: (..., N); N may be 0.
        cameras: (..., V) in the world of the Gaussians, moved to their device and to their ``origin`` if need be. Batch
            dimensions of both are broadcast: one set of cameras may see several sets of Gaussians, and the reverse.
        background: three numbers; by default that of the Gaussians, else white.
        near, far: camera z between which Gaussians are drawn, in world units.
        backend: "auto" takes "gsplat" for CUDA tensors and "numba" otherwise. "numba" runs on the CPU in float32,
            whatever the dtype; "reference" is slow and keeps the dtype. Half precision is computed in float32.

    Raises:
        GaussiansError: batch dimensions that do not fit those of the cameras, Gaussians without values (the device
            "meta"); on the CPU, where looking costs nothing, also negative scales and rotations 0 0 0 0.
        CameraError: focal lengths that are not positive (looked for on the CPU alone).
        ConfigError: an unknown backend, a background that is not three numbers, near or far out of order.
        MissingExtraError: backend "gsplat" without the package.
    """
    shape = _batch_shape(gaussians, cameras)
    gaussians = _drawable(gaussians)
    if not 0 < near < far:
        raise ConfigError(f"render was given near = {near} and far = {far}.", expected="0 < near < far")
    colour = _colour(background_of(gaussians, background), gaussians.device).to(gaussians.means.dtype)
    if tuple(colour.shape) != (3,):
        raise ConfigError(f"The background has shape {tuple(colour.shape)}.", expected="three numbers, red green blue")
    if backend == "auto":
        backend = "gsplat" if gaussians.device.type == "cuda" else "numba"
    local = cameras.relative_to(gaussians.origin)
    flat_gaussians, flat_cameras = _flattened(gaussians, shape), _flattened_cameras(local, shape)
    images = _render_with(backend)(flat_gaussians, flat_cameras, colour, near, far)
    rgb, alpha, weighted_depth = (image.reshape(*shape, *image.shape[1:]) for image in images)
    return Rendering(rgb, alpha, expected_depth(weighted_depth, alpha))


def background_of(gaussians: Gaussians, asked: Sequence[float] | Tensor | None = None) -> Sequence[float] | Tensor:
    """What is drawn behind the Gaussians: what is asked for, else what they say, else white."""
    return asked if asked is not None else gaussians.background or _WHITE


def expected_depth(weighted_depth: Tensor, alpha: Tensor) -> Tensor:
    """Of the sum of weight times depth: depth in world units, 0 where alpha is 0."""
    return torch.where(alpha > 0, weighted_depth / alpha.clamp_min(DEPTH_ALPHA_MIN), 0.0)


def _colour(background: Sequence[float] | Tensor, device: torch.device) -> Tensor:
    if isinstance(background, Tensor):
        return background.detach().to(device)
    return _constant(tuple(background), device)


@lru_cache(maxsize=64)
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers that stay on the device: copying them there makes the host wait for all that was asked of it before."""
    with torch.inference_mode(mode=False):  # tensors of inference have no gradients around them
        return torch.tensor(values, device=device)


def _batch_shape(gaussians: Gaussians, cameras: Cameras) -> tuple[int, ...]:
    """The batch dimensions of both, broadcast. Raises GaussiansError."""
    try:
        return tuple(torch.broadcast_shapes(gaussians.batch_shape, cameras.batch_shape))
    except RuntimeError:
        raise GaussiansError(
            f"render was given Gaussians with batch dimensions {tuple(gaussians.batch_shape)} and cameras with "
            f"{tuple(cameras.batch_shape)}.",
            expected="the same, or some of them 1 or missing",
        ) from None


def _flattened(gaussians: Gaussians, shape: tuple[int, ...]) -> Gaussians:
    """(B, N) for batch dimensions of any number."""
    lead = len(gaussians.batch_shape)
    return gaussians.map(lambda x: x.expand(*shape, *x.shape[lead:]).reshape(math.prod(shape), *x.shape[lead:]))


def _flattened_cameras(cameras: Cameras, shape: tuple[int, ...]) -> Cameras:
    """(B, V) for batch dimensions of any number."""
    tensors = (x.expand(*shape, *x.shape[-3:]) for x in (cameras.c2w, cameras.K))
    c2w, K = (x.reshape(math.prod(shape), *x.shape[-3:]) for x in tensors)
    return replace(cameras, c2w=c2w, K=K)


def _drawable(gaussians: Gaussians) -> Gaussians:
    """The Gaussians in single or double precision. Raises GaussiansError where they cannot be drawn."""
    if gaussians.device.type == "meta":
        raise GaussiansError(
            "render was given Gaussians without values, on the device 'meta'.",
            fix="load weights before the model runs",
        )
    if not gaussians.means.is_floating_point():
        raise GaussiansError(f"render was given Gaussians of {gaussians.means.dtype}.", expected="floating point")
    if gaussians.device.type == "cpu" and gaussians.opacities.numel() > 0:
        scales, quats = gaussians.scales.detach(), gaussians.quats.detach()
        if scales.amin() < 0 or (quats.abs().amax(-1) == 0).any():
            raise GaussiansError(
                "render was given Gaussians with negative scales or the rotation 0 0 0 0.",
                expected="scales of 0 or more, quaternions wxyz of any length but 0",
                fix="keep only gaussians[gaussians.possible()]",
            )
    if gaussians.means.dtype in (torch.float32, torch.float64):
        return gaussians
    return gaussians.to(dtype=torch.float32)


def _render_with(backend: str) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """The backend's function for a batch, in the order of ``render``: rgb, alpha, and the sum of weight times depth."""
    # Imported here so that `import ilrm` does not wait for numba, and works without gsplat.
    if backend == "numba":
        from ilrm.render.numba_cpu import render_views
    elif backend == "gsplat":
        from ilrm.render.gsplat_cuda import render_views
    elif backend == "reference":
        from ilrm.render.reference import render_views
    else:
        raise ConfigError(f"There is no render backend {backend!r}.", expected="auto, numba, gsplat or reference")
    return render_views
