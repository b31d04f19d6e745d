"""Making procedural scenes from seeds: images with cameras, depth and points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ilrm.core.cameras import Cameras, camera_points
from ilrm.core.errors import ConfigError
from ilrm.core.scene import Scene
from ilrm.datasets.procedural import layout
from ilrm.datasets.procedural.config import ProceduralConfig
from ilrm.datasets.procedural.views import RAYS_AT_ONCE, WorldViews, render
from ilrm.datasets.procedural.worlds import PackedWorld, Worlds


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


@dataclass(frozen=True, eq=False)
class DescribedScene:
    """All that a seed decides, in numpy: made in any process, and cast by ``cast`` on any device.

    Attributes:
        c2w: (V, 4, 4) float32.
        K: (3, 3) float32, of every view.
        exposure: mean brightness that the images are developed to.
        world: what the views see.
    """

    seed: int
    c2w: NDArray[np.float32]
    K: NDArray[np.float32]
    exposure: float
    world: PackedWorld


def describe(seed: int, config: ProceduralConfig) -> DescribedScene:
    """The scene of a seed before any ray is cast."""
    world = layout.sample_world(seed, config)
    K = _intrinsics(world.fov, config).astype(np.float32)
    return DescribedScene(seed, world.c2w.astype(np.float32), K, world.exposure, PackedWorld.pack(world))


def _cast_group(described: Sequence[DescribedScene], config: ProceduralConfig, device: torch.device) -> ProceduralBatch:
    c2w = torch.from_numpy(np.stack([scene.c2w for scene in described])).to(device)
    K = torch.from_numpy(np.stack([scene.K for scene in described])).to(device)
    K = K[:, None].expand(-1, config.views, -1, -1).contiguous()
    owner = torch.arange(len(described), device=device).repeat_interleave(config.views)
    worlds = Worlds.stack([scene.world for scene in described], device).select(owner)
    exposure = torch.tensor([scene.exposure for scene in described], device=device)
    images, depth = render(WorldViews(worlds, c2w.flatten(0, 1), K.flatten(0, 1)), exposure, config)
    points, rgb = _surface_points([scene.seed for scene in described], images, depth, c2w, K, config)
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
def cast(
    described: Sequence[DescribedScene], config: ProceduralConfig, device: torch.device | str = "cpu"
) -> ProceduralBatch:
    """Images, depth and points of described scenes.

    Args:
        described: by ``describe`` with the same config.
    """
    device = torch.device(device)
    group = (
        1 if device.type == "cpu" else max(1, 4 * RAYS_AT_ONCE["cuda"] // (config.views * config.height * config.width))
    )
    made = [_cast_group(described[k : k + group], config, device) for k in range(0, len(described), group)]
    names = ProceduralBatch.__dataclass_fields__
    return ProceduralBatch(**{name: torch.cat([getattr(part, name) for part in made]) for name in names})


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
    if len(seeds) == 0 or min(seeds) < 0:
        raise ConfigError(f"The seeds {list(seeds)} were given.", expected="at least one integer, 0 or more")
    return cast([describe(seed, config) for seed in seeds], config, device)


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
