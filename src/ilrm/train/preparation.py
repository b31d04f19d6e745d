"""From a scene's chosen views to one training sample: mirrored, normalised, in single precision."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ilrm.cameras import Cameras, NormalisationRule, normalise
from ilrm.scene import Scene

# diag(-1, 1, 1, 1): mirrors x. Applied from both sides it keeps a pose a rotation and a translation.
_MIRROR = torch.tensor([-1.0, 1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Sample:
    """V views of one scene, the inputs first.

    Attributes:
        images: (V, H, W, 3) in [0, 1].
        c2w: (V, 4, 4) in the normalised frame.
        K: (V, 3, 3) in pixels.
        depth: (V, H, W) z-depth in the normalised frame, 0 where unknown; None where nothing is known.
    """

    images: Tensor
    c2w: Tensor
    K: Tensor
    depth: Tensor | None


def make_sample(scene: Scene, inputs: int, rule: NormalisationRule) -> Sample:
    """Decode a scene's views and move its world to where the network works.

    Args:
        scene: V views of the size asked for, the inputs first.
        inputs: how many of them define the frame.
        rule: see ``ilrm.cameras.normalise``.

    Raises:
        SceneError: an image that cannot be decoded.
        CameraError: a pose that is not finite, or no scale to be found.
    """
    cameras, to_world = normalise(scene.cameras.to("cpu"), range(inputs), rule)
    depth = None if scene.depth is None else (scene.depth / to_world.scale).float()
    return Sample(scene.images[:].float(), cameras.c2w.float(), cameras.K.float(), depth)


def mirror(scene: Scene, *, move_principal_point: bool = True) -> Scene:
    """The scene seen in a mirror: images left to right, poses F c2w F with F = diag(-1, 1, 1, 1), depth along.

    Args:
        move_principal_point: cx becomes W - cx, which keeps the geometry exact. The released training code leaves
            it, which is the same only at the image's centre.
    """
    flip = _MIRROR.to(scene.cameras.c2w)
    K = scene.cameras.K.clone()
    if move_principal_point:
        K[:, 0, 2] = scene.cameras.width - K[:, 0, 2]
    cameras = Cameras(flip[:, None] * scene.cameras.c2w * flip, K, scene.cameras.width, scene.cameras.height)
    return replace(
        scene,
        images=scene.images[:].flip(2),
        cameras=cameras,
        depth=None if scene.depth is None else scene.depth.flip(2),
        points=None if scene.points is None else scene.points * flip[:3].to(scene.points),
    )
