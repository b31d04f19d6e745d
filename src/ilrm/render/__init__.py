"""Images of Gaussians: ``render`` and its result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ilrm.cameras import Cameras
from ilrm.errors import ConfigError, GaussiansError
from ilrm.gaussians import Gaussians
from ilrm.render.rules import DEPTH_ALPHA_MIN

Backend = Literal["auto", "reference", "numba", "gsplat"]

__all__ = ["Backend", "Rendering", "render"]


@dataclass(frozen=True, eq=False)
class Rendering:
    """What V cameras see.

    Attributes:
        rgb: (V, H, W, 3), background included; not clamped, can exceed 1.
        alpha: (V, H, W) in [0, 1].
        depth: (V, H, W) expected z-depth in world units, sum(w z) / alpha; 0 where alpha is 0.
    """

    rgb: Tensor
    alpha: Tensor
    depth: Tensor


def render(
    gaussians: Gaussians,
    cameras: Cameras,
    background: Sequence[float] | Tensor = (1.0, 1.0, 1.0),
    *,
    near: float = 0.01,
    far: float = 1e6,
    backend: Backend = "auto",
) -> Rendering:
    """Render one set of Gaussians into V cameras.

    The rules are those of ``ilrm.render.rules``. Gradients flow from all three outputs to means, scales, quats,
    opacities and sh, and to nothing else. Quaternions are normalised inside. Gaussians with NaN or infinite
    values are not drawn and get no gradient. Skew in K is ignored.

    Args:
        gaussians: N Gaussians without batch dimensions; N may be 0.
        cameras: in the world of the Gaussians, moved to their device and to their ``origin`` if need be.
        background: three numbers.
        near, far: camera z between which Gaussians are drawn, in world units.
        backend: "auto" takes "gsplat" for CUDA tensors and "numba" otherwise. "numba" runs on the CPU in float32,
            whatever the dtype; "reference" is slow and keeps the dtype. Half precision is computed in float32.

    Raises:
        GaussiansError: batched Gaussians, ones without values (the device "meta"); on the CPU, where looking costs
            nothing, also negative scales and rotations 0 0 0 0.
        CameraError: focal lengths that are not positive.
        ConfigError: an unknown backend, a background that is not three numbers, near or far out of order.
        MissingExtraError: backend "gsplat" without the package.
    """
    if gaussians.means.ndim != 2:
        raise GaussiansError(
            f"render was given batched Gaussians, means {tuple(gaussians.means.shape)}.",
            expected="one set: means (N, 3)",
            fix="render the batch elements one by one: render(gaussians[b], cameras)",
        )
    gaussians = _drawable(gaussians)
    if not 0 < near < far:
        raise ConfigError(f"render was given near = {near} and far = {far}.", expected="0 < near < far")
    colour = torch.as_tensor(background, device=gaussians.device).detach().to(gaussians.means.dtype)
    if tuple(colour.shape) != (3,):
        raise ConfigError(f"The background has shape {tuple(colour.shape)}.", expected="three numbers, red green blue")
    if backend == "auto":
        backend = "gsplat" if gaussians.device.type == "cuda" else "numba"
    local = cameras.relative_to(gaussians.origin)
    rgb, alpha, weighted_depth = _render_with(backend)(gaussians, local, colour, near, far)
    depth = weighted_depth / alpha.clamp_min(DEPTH_ALPHA_MIN)
    return Rendering(rgb, alpha, torch.where(alpha > 0, depth, 0.0))


def _drawable(gaussians: Gaussians) -> Gaussians:
    """The Gaussians in single or double precision. Raises GaussiansError where they cannot be drawn."""
    if gaussians.device.type == "meta":
        raise GaussiansError(
            "render was given Gaussians without values, on the device 'meta'.",
            fix="load weights before the model runs",
        )
    if not gaussians.means.is_floating_point():
        raise GaussiansError(f"render was given Gaussians of {gaussians.means.dtype}.", expected="floating point")
    if gaussians.device.type == "cpu" and len(gaussians) > 0:
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
    """The backend's function (gaussians, cameras, background, near, far) -> rgb, alpha, sum of weight times depth."""
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
