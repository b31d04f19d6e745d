"""Checking whether Gaussians and photos are in the same world frame."""

from __future__ import annotations

import math

import torch

from ilrm.core.cameras import Cameras
from ilrm.core.errors import warn
from ilrm.core.gaussians import Gaussians
from ilrm.core.scene import Scene
from ilrm.render import render

# Below either of these, photos and Gaussians are probably in different world frames.
_LEAST_PSNR, _LEAST_IN_SIGHT = 10.0, 0.1
# Measured where splats are opaque: displaced splats of the same scene reach 11 to 13 dB, correct ones 18 dB and more.
_LEAST_WHERE_OPAQUE = 15.0


def warn_if_apart(gaussians: Gaussians, photos: Scene, decibels: float) -> None:
    """Warn if the photos do not show the Gaussians, which usually means that the world frames differ.

    Args:
        decibels: mean PSNR of the renderings of the photos.
    """
    share = _share_in_sight(gaussians, photos.cameras)
    # Splats of only a part of the scene leave most of the photos white; that alone is no reason to warn.
    unlike = decibels < _LEAST_PSNR and _psnr_where_opaque(gaussians, photos) < _LEAST_WHERE_OPAQUE
    if share < _LEAST_IN_SIGHT or unlike:
        warn(
            f"photos and splats do not match: {decibels:.1f} dB before the first step, {100 * share:.0f} % of the "
            "splats in view. Are they in the same world frame? Trainers often write their own, moved and scaled "
            "(nerfstudio: dataparser_transforms.json)"
        )


@torch.no_grad()
def _psnr_where_opaque(gaussians: Gaussians, photos: Scene) -> float:
    """PSNR in dB over all pixels that the Gaussians cover by at least half; minus infinity if there are none."""
    error, count = 0.0, 0
    for view in range(len(photos)):
        seen = render(gaussians, photos.cameras[view])
        opaque, mask = (seen.alpha > 0.5).cpu(), photos.mask_of([view])
        opaque = opaque if mask is None else opaque & mask.cpu()
        difference = seen.rgb.cpu().clamp(0, 1)[opaque] - photos.images[[view]].cpu()[opaque]
        error, count = error + difference.square().sum().item(), count + difference.numel()
    return -10 * math.log10(max(error / count, 1e-12)) if count else -math.inf


@torch.no_grad()
def _share_in_sight(gaussians: Gaussians, cameras: Cameras) -> float:
    """Share of the Gaussians whose centre is in view of at least one camera."""
    cameras = cameras.relative_to(gaussians.origin).to(gaussians.device, torch.float32)
    seen = torch.zeros(len(gaussians), dtype=torch.bool, device=gaussians.device)
    for w2c, K in zip(cameras.w2c, cameras.K, strict=True):
        x, y, z = (gaussians.means @ w2c[:3, :3].T + w2c[:3, 3]).unbind(-1)
        u, v = K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2]
        seen |= (z > 0) & (u >= 0) & (u < cameras.width) & (v >= 0) & (v < cameras.height)
    return seen.float().mean().item()
