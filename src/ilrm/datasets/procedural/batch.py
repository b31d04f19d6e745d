"""Making procedural scenes from seeds: images with cameras, depth and points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ilrm.core.cameras import Cameras, camera_points
from ilrm.core.errors import ConfigError
from ilrm.core.scene import Scene
from ilrm.datasets.procedural import layout
from ilrm.datasets.procedural.config import ProceduralConfig
from ilrm.datasets.procedural.views import RAYS_AT_ONCE, WorldViews, render
from ilrm.datasets.procedural.worlds import Worlds


@dataclass(frozen=True, eq=False)
class ProceduralBatch:
    """B procedural scenes of V views.

    Attributes:
        images: (B, V, H, W, 3) float in [0, 1].
        depth: (B, V, H, W) z-depth in world units; every ray hits something, outdoors at least the sky dome.
        c2w: (B, V, 4, 4) camera-to-world, OpenCV axes, world z up.
        K: (B, V, 3, 3) intrinsics in pixels.
        points: (B, P, 3) on surfaces that at least one view sees.
        points_rgb: (B, P, 3) their colours in [0, 1].
    """

    images: Tensor
    depth: Tensor
    c2w: Tensor
    K: Tensor
    points: Tensor
    points_rgb: Tensor

    def __len__(self) -> int:
        return self.images.shape[0]


def _intrinsics(fov: float, config: ProceduralConfig) -> np.ndarray:
    focal = 0.5 * config.width / math.tan(math.radians(fov) / 2)
    return np.array([[focal, 0, config.width / 2], [0, focal, config.height / 2], [0, 0, 1]])


def _make_group(seeds: Sequence[int], config: ProceduralConfig, device: torch.device) -> ProceduralBatch:
    drawn = [layout.sample_world(seed, config) for seed in seeds]
    count = len(drawn)
    c2w = torch.from_numpy(np.stack([w.c2w for w in drawn]).astype(np.float32)).to(device)
    K = torch.from_numpy(np.stack([_intrinsics(w.fov, config) for w in drawn]).astype(np.float32)).to(device)
    K = K[:, None].expand(-1, config.views, -1, -1).contiguous()
    owner = torch.arange(count, device=device).repeat_interleave(config.views)
    worlds = Worlds.stack(drawn, device).select(owner)
    exposure = torch.tensor([w.exposure for w in drawn], device=device)
    images, depth = render(WorldViews(worlds, c2w.flatten(0, 1), K.flatten(0, 1)), exposure, config)
    points, rgb = _surface_points(seeds, images, depth, c2w, K, config)
    return ProceduralBatch(images, depth, c2w, K, points, rgb)


def _surface_points(
    seeds: Sequence[int], images: Tensor, depth: Tensor, c2w: Tensor, K: Tensor, config: ProceduralConfig
) -> tuple[Tensor, Tensor]:
    """(B, P, 3) world points behind randomly chosen pixels, and their colours."""
    total = config.views * config.height * config.width
    pick = np.stack([np.random.default_rng([seed, 1]).integers(0, total, config.points) for seed in seeds])
    index = torch.from_numpy(pick).to(depth.device)
    view, place = index // (config.height * config.width), index % (config.height * config.width)
    z = depth.flatten(1).gather(1, index)
    batch = torch.arange(len(seeds), device=depth.device)[:, None]
    pixel = torch.stack([place % config.width + 0.5, place // config.width + 0.5], dim=-1)
    local = camera_points(z[..., None], pixel[..., None, :], K[batch, view])[..., 0, :]
    pose = c2w[batch, view]
    # A sum instead of a matrix product, whose last bits may depend on the size of the batch.
    points = (pose[..., :3, :3] * local[..., None, :]).sum(-1) + pose[..., :3, 3]
    return points, images.flatten(1, 3)[batch, index]


@torch.no_grad()
def make_batch(
    seeds: Sequence[int], config: ProceduralConfig | None = None, device: torch.device | str = "cpu"
) -> ProceduralBatch:
    """Procedural scenes, one for each seed.

    On the CPU a seed and a config determine the scene bit for bit, independently of the batch and the number of
    threads; on CUDA they determine it up to rounding.

    Raises:
        ConfigError: no seed, or a negative one.
    """
    config = config or ProceduralConfig()
    device = torch.device(device)
    if len(seeds) == 0 or min(seeds) < 0:
        raise ConfigError(f"The seeds {list(seeds)} were given.", expected="at least one integer, 0 or more")
    group = (
        1 if device.type == "cpu" else max(1, 4 * RAYS_AT_ONCE["cuda"] // (config.views * config.height * config.width))
    )
    made = [_make_group(seeds[k : k + group], config, device) for k in range(0, len(seeds), group)]
    names = ProceduralBatch.__dataclass_fields__
    return ProceduralBatch(**{name: torch.cat([getattr(part, name) for part in made]) for name in names})


def make_scene(seed: int, config: ProceduralConfig | None = None, device: torch.device | str = "cpu") -> Scene:
    """One procedural scene with true depth and surface points; see ``make_batch``."""
    config = config or ProceduralConfig()
    batch = make_batch([seed], config, device)
    return Scene(
        images=batch.images[0],
        cameras=Cameras(batch.c2w[0], batch.K[0], config.width, config.height),
        names=tuple(f"view_{k:03d}" for k in range(config.views)),
        depth=batch.depth[0],
        points=batch.points[0],
        points_rgb=batch.points_rgb[0],
    )
