"""From a scene's chosen views to one training sample: at its size, mirrored, normalised, in single precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ilrm.core.cameras import Cameras, NormalisationRule, normalise
from ilrm.core.errors import SceneError
from ilrm.core.scene import Scene
from ilrm.scenes.frames import assemble
from ilrm.scenes.released import crop_to_multiple_released, rescale_and_crop_released, stretch_released
from ilrm.train.config import Fit
from ilrm.train.data.samplers import Unusable
from ilrm.train.data.sources import Clip

# diag(-1, 1, 1, 1): mirrors x. Applied from both sides it keeps a pose a rotation and a translation.
_MIRROR = torch.tensor([-1.0, 1.0, 1.0, 1.0])
# Limits of the released training code.
_WIDEST_VIEW = 100.0  # degrees
_FARTHEST_COORDINATE = 1000.0


@dataclass(frozen=True, eq=False)
class Sample:
    """V views of one scene, the inputs first.

    Attributes:
        images: (V, H, W, 3) in [0, 1], or bytes on their way to a GPU.
        c2w: (V, 4, 4) in the normalised frame.
        K: (V, 3, 3) in pixels.
        depth: (V, H, W) z-depth in the normalised frame, 0 where unknown; None where nothing is known.
    """

    images: Tensor
    c2w: Tensor
    K: Tensor
    depth: Tensor | None


def to_bytes(images: Tensor) -> Tensor:
    """Images in [0, 1] as uint8: a quarter of the memory to move, and no more than photos hold."""
    return images.mul(255.0).round_().to(torch.uint8)


def moved(x: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, bytes as floats in [0, 1]. To a GPU it goes through pinned memory, beside other work."""
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    x = x.to(device, non_blocking=True)
    return x.float().div_(255.0) if x.dtype == torch.uint8 else x


def fitted(clip: Clip, views: Sequence[int], size: tuple[int, int], fit: Fit) -> Scene:
    """Some views of a clip at ``size`` (height, width), their images decoded when they are used.

    The released fits leave out what their training code left out: wide views (over 100 degrees, in any frame of the
    clip; "released" and "released_shim"), and poses far out or of a wrong determinant ("released_shim", "stretch").

    Raises:
        Unusable: a sound clip that the fit leaves out, or whose images do not give this size.
        SceneError, CameraError: a damaged photo or pose.
    """
    height, width = size
    frames = clip.frames(views)
    if fit == "exact":
        return assemble(frames, size=(width, height))
    _refuse_unequal_sizes({(frame.photo.width, frame.photo.height) for frame in frames.frames})
    if fit in ("released", "released_shim"):
        _refuse_wide_views(clip)
    if fit in ("released_shim", "stretch"):
        _refuse_odd_poses(clip.c2w[list(views)])
    scene = assemble(frames)
    stored = f"{scene.cameras.width}x{scene.cameras.height}"
    match fit:
        case "released":
            if scene.cameras.width < width or scene.cameras.height < height:
                raise Unusable(f"Its images of {stored} are smaller than {width}x{height}.")
            return rescale_and_crop_released(scene, width, height)
        case "released_shim":
            cropped = crop_to_multiple_released(scene)
            if (cropped.cameras.width, cropped.cameras.height) != (width, height):
                made = f"{cropped.cameras.width}x{cropped.cameras.height}"
                raise Unusable(f"Its images of {stored} are cropped to {made}, not {width}x{height}.")
            return cropped
        case "stretch":
            return stretch_released(scene, width, height)


def _refuse_unequal_sizes(sizes: set[tuple[int, int]]) -> None:
    if len(sizes) > 1:
        listed = " and ".join(f"{width}x{height}" for width, height in sorted(sizes))
        raise Unusable(f"Its images have several sizes, {listed}.")


def _refuse_wide_views(clip: Clip) -> None:
    focal, centre = clip.lenses[:, :2], clip.lenses[:, 2:]
    angles = torch.rad2deg(torch.atan(centre / focal) + torch.atan((1 - centre) / focal))  # (N, 2)
    if angles.max() > _WIDEST_VIEW:
        raise Unusable(f"It has a field of view of {angles.max():.0f} degrees, more than {_WIDEST_VIEW:.0f}.")


def _refuse_odd_poses(c2w: Tensor) -> None:
    if c2w[:, :3, 3].max() > _FARTHEST_COORDINATE:  # on the positive side only, as released
        raise Unusable(f"It has a camera at a coordinate of {c2w[:, :3, 3].max():.0f}.")
    determinant = torch.linalg.det(c2w[:, :3, :3])
    if not torch.allclose(determinant, torch.ones_like(determinant)):
        raise SceneError(f"It has a rotation of determinant {determinant.min():.6f} to {determinant.max():.6f}.")


def make_sample(scene: Scene, inputs: int, rule: NormalisationRule) -> Sample:
    """Decode a scene's views and move its world to where the network works.

    Args:
        scene: V views of the size asked for, the inputs first.
        inputs: how many of them define the frame.
        rule: see ``ilrm.core.cameras.normalise``.

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
        mask=None if scene.mask is None else scene.mask[:].flip(2),
        points=None if scene.points is None else scene.points * flip[:3].to(scene.points),
    )
