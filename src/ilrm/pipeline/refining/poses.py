"""Camera steps: a small rotation and shift for each photo, fitted with the Gaussians or to them.

A camera that moves sees what a still camera sees of Gaussians that move the other way. So the rasteriser's gradients by
centres and rotations give those by the pose, in every back end. Spherical harmonics are not turned along: a camera step
is a fraction of a degree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ilrm.core.cameras import Cameras, normalise
from ilrm.core.gaussians import Gaussians, matrix_to_quaternion, quaternion_multiply
from ilrm.core.scene import Scene
from ilrm.render import render

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]

# Adam's constants (Kingma and Ba, 2015).
_BETAS, _EPS = (0.9, 0.999), 1e-12


class PoseSteps:
    """Free poses of V cameras, in the camera's own axes: c2w' = c2w @ exp(step).

    Each photo has its own Adam: a photo that is not rendered in a step does not move.

    Attributes:
        cameras: V cameras where they started.
        steps: (V, 6) rotation vectors in radians, then shifts in units of the world.
    """

    def __init__(self, cameras: Cameras, turn_rate: float, shift_rate: float) -> None:
        self.cameras = cameras
        self.steps = torch.zeros(len(cameras), 6, device=cameras.device, requires_grad=True)
        self._rates = torch.tensor([turn_rate] * 3 + [shift_rate] * 3).to(self.steps)
        self._first, self._second = torch.zeros_like(self.steps), torch.zeros_like(self.steps)  # moments of gradients
        self._count = torch.zeros(len(cameras), 1, device=cameras.device)

    def render(self, gaussians: Gaussians, views: list[int], *, near: float = 0.01) -> Tensor:
        """(v, H, W, 3) what the moved cameras see of N Gaussians."""
        still = replace(self.cameras, c2w=self.cameras.c2w[views], K=self.cameras.K[views])
        there = torch.linalg.inv(still.c2w)
        moved = moved_by(gaussians, still.c2w @ torch.linalg.inv(exponential(self.steps[views])) @ there)
        each = replace(still, c2w=still.c2w[:, None], K=still.K[:, None])
        return render(moved, each, near=near).rgb[:, 0]

    def moved(self) -> Cameras:
        """The cameras where they are now, without gradients."""
        with torch.no_grad():
            step = exponential(self.steps.detach()).to(self.cameras.c2w)
            return replace(self.cameras, c2w=self.cameras.c2w @ step)

    @torch.no_grad()
    def step(self, views: list[int], decay: float) -> None:
        """Adam's step of these views, whose gradients are then forgotten. Gradients that are not finite do nothing."""
        gradient, self.steps.grad = self.steps.grad, None
        if gradient is None:
            return
        rows = torch.tensor(views, device=gradient.device)
        g = gradient[rows]
        g = torch.where(torch.isfinite(g).all(-1, keepdim=True), g, 0.0)
        self._count[rows] += 1
        self._first[rows] = _BETAS[0] * self._first[rows] + (1 - _BETAS[0]) * g
        self._second[rows] = _BETAS[1] * self._second[rows] + (1 - _BETAS[1]) * g.square()
        first = self._first[rows] / (1 - _BETAS[0] ** self._count[rows])
        second = self._second[rows] / (1 - _BETAS[1] ** self._count[rows])
        self.steps[rows] -= decay * self._rates * first / (second.sqrt() + _EPS)


def exponential(steps: Tensor) -> Tensor:
    """(..., 4, 4) rigid motions of rotation vectors and shifts (..., 6): rotation by the exponential map, and the shift
    as it is. Differentiable at zero, too."""
    turn, shift = steps[..., :3], steps[..., 3:]
    zero = torch.zeros_like(turn[..., 0])
    x, y, z = turn.unbind(-1)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    rotation = torch.linalg.matrix_exp(cross)
    top = torch.cat([rotation, shift[..., None]], -1)
    last = torch.zeros_like(top[..., :1, :])
    last[..., 3] = 1
    return torch.cat([top, last], -2)


def moved_by(gaussians: Gaussians, motions: Tensor) -> Gaussians:
    """(v, N) Gaussians: the given N moved by each rigid motion (v, 4, 4). Colours stay."""
    rotation, shift = motions[:, :3, :3], motions[:, :3, 3]
    count = len(motions)
    quats = quaternion_multiply(matrix_to_quaternion(rotation)[:, None], gaussians.quats[None])
    return replace(
        gaussians,
        means=gaussians.means @ rotation.transpose(1, 2) + shift[:, None],
        quats=F.normalize(quats, dim=-1),
        scales=gaussians.scales.expand(count, -1, -1),
        opacities=gaussians.opacities.expand(count, -1),
        sh=gaussians.sh.expand(count, -1, -1, -1),
    )


def align_views(
    gaussians: Gaussians, scene: Scene, like: Cameras, loss: Loss, *, steps: int = 40, rate: float = 2e-3
) -> Scene:
    """The scene with each camera moved to where its photo fits fixed Gaussians best.

    For scoring held-out photos after the cameras of the inputs have moved: these and the Gaussians may have moved
    together, which the held-out cameras do not know.

    Args:
        gaussians: N in the scene's world.
        scene: photos; pixels outside their mask do not count.
        like: cameras whose unit frame is worked in.
        loss: of renderings (v, H, W, 3), photos and masks.
        steps: of Adam, for each photo.
        rate: of radians, and of units of that frame; falls to a tenth.
    """
    _, to_world = normalise(like)
    to_unit = to_world.inverse()
    fixed = gaussians.detach().to(dtype=torch.float32).transform(to_unit, origin=torch.zeros(3))
    cameras = scene.cameras.transform(to_unit).to(fixed.means.device, torch.float32)
    poses = PoseSteps(cameras, rate, rate)
    for view in range(len(scene)):
        truth, mask = scene.images[[view]].to(fixed.means), scene.mask_of([view])
        for step in range(steps):
            rgb = poses.render(fixed, [view])
            loss(rgb, truth, None if mask is None else mask.to(rgb.device)).backward()
            poses.step([view], 0.1 ** (step / max(steps - 1, 1)))
    return replace(scene, cameras=poses.moved().to("cpu", torch.float64).transform(to_world))
