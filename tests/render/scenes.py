"""Gaussians, cameras and comparisons that the tests of the renderer share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ilrm.core.cameras import Cameras
from ilrm.core.gaussians import PER_GAUSSIAN, Gaussians
from ilrm.render import Backend, Rendering, render

PARAMETERS = PER_GAUSSIAN
IMAGES = ("rgb", "alpha", "depth")
BACKGROUND = (0.2, 0.5, 0.9)


def front_camera(width: int = 24, height: int = 16, focal: float = 20.0, cx: float | None = None) -> Cameras:
    """One camera at the origin that looks along +z."""
    centre = width / 2 if cx is None else cx
    K = torch.tensor([[[focal, 0, centre], [0, focal, height / 2], [0, 0, 1.0]]])
    return Cameras(torch.eye(4)[None], K, width, height)


def one_gaussian(
    mean: tuple[float, float, float] = (0.0, 0.0, 2.0),
    scale: tuple[float, float, float] = (0.1, 0.1, 0.1),
    opacity: float = 0.7,
    quat: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0),
    sh: tuple[float, float, float] = (0.3, -0.2, 1.0),
) -> Gaussians:
    return Gaussians(
        *(torch.tensor([x]) for x in (mean, scale, quat, opacity)),
        sh=torch.tensor([[sh]]),
    )


def change(gaussians: Gaussians, update: Callable[[str, Tensor], Tensor]) -> Gaussians:
    """New Gaussians with every tensor replaced by update(name, tensor)."""
    return replace(gaussians, **{name: update(name, getattr(gaussians, name)) for name in PARAMETERS})


def image_weights(rendering: Rendering, outputs: tuple[str, ...], seed: int = 0) -> Tensor:
    """A loss that weighs every pixel of the named images at random."""
    draw = torch.Generator().manual_seed(seed)
    loss = torch.zeros((), dtype=torch.float64)
    for name in outputs:
        image = getattr(rendering, name).double().cpu()
        loss = loss + (image * torch.randn(image.shape, generator=draw, dtype=torch.float64)).sum()
    return loss


def render_with_gradients(
    gaussians: Gaussians,
    cameras: Cameras,
    backend: Backend,
    dtype: torch.dtype = torch.float32,
    outputs: tuple[str, ...] = IMAGES,
    near: float = 0.01,
    far: float = 1e6,
) -> tuple[Rendering, dict[str, Tensor]]:
    """Images, and the gradient of a random loss on some of them by every parameter, float64."""
    leaves = change(gaussians, lambda _, x: x.detach().to(dtype).clone().requires_grad_())
    rendering = render(leaves, cameras.to(dtype=dtype), BACKGROUND, backend=backend, near=near, far=far)
    loss = image_weights(rendering, outputs)
    gradients = torch.autograd.grad(loss, [getattr(leaves, name) for name in PARAMETERS], materialize_grads=True)
    return rendering, {name: g.double() for name, g in zip(PARAMETERS, gradients, strict=True)}


def assert_agree(gaussians: Gaussians, cameras: Cameras, *, relative: float = 1e-4, **settings: object) -> Rendering:
    """Numba must give the images (1e-4) and the gradients (relative to the largest of a parameter) of the reference.

    The reference runs in float64, so that its own rounding is no part of the comparison. Returns numba's images.
    """
    fast, fast_gradients = render_with_gradients(gaussians, cameras, "numba", **settings)  # type: ignore[arg-type]
    slow, slow_gradients = render_with_gradients(gaussians, cameras, "reference", torch.float64, **settings)  # type: ignore[arg-type]
    for name in IMAGES:
        torch.testing.assert_close(getattr(fast, name).double(), getattr(slow, name), atol=1e-4, rtol=1e-5)
    for name in PARAMETERS:
        largest = slow_gradients[name].abs().max().item() if slow_gradients[name].numel() else 0.0
        difference = (fast_gradients[name] - slow_gradients[name]).abs()
        assert torch.isfinite(difference).all(), name
        assert (difference <= relative * largest + 1e-12).all(), (name, difference.max().item(), largest)
    return fast
