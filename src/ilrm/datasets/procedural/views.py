"""Rendering whole views: pixels to rays, supersampled silhouettes, CPU threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from ilrm.core.compiling import CompiledOnGPU
from ilrm.datasets.procedural.config import ProceduralConfig
from ilrm.datasets.procedural.rendering import Lighting, develop, radiance, sizes_of_radiance
from ilrm.datasets.procedural.worlds import Worlds

# Rays per batch: as many as fit a CPU's cache, or keep a GPU busy.
RAYS_AT_ONCE = {"cpu": 2**14, "cuda": 2**20}
# Together with the pixel's centre, four well-spread samples for silhouette pixels.
_SILHOUETTE_OFFSETS = ((0.38, 0.1), (-0.28, 0.28), (-0.1, -0.38))
cast_rays = CompiledOnGPU(radiance, sizes_of_radiance)


@dataclass(frozen=True, eq=False)
class WorldViews:
    """N views, each in its own world: c2w (N, 4, 4) and K (N, 3, 3)."""

    worlds: Worlds
    c2w: Tensor
    K: Tensor

    def select(self, index: Tensor) -> WorldViews:
        """The views at ``index`` (N',)."""
        return WorldViews(self.worlds.select(index), self.c2w[index], self.K[index])

    def trace(self, pixels: Tensor, config: ProceduralConfig) -> tuple[Tensor, Tensor, Tensor]:
        """Light (N, 3, R), z-depth (N, R) and surface (N, R) at image coordinates (N or 1, 2, R)."""
        focal = self.K[:, 0, 0]
        x, y = ((pixels[:, k] - self.K[:, k, 2, None]) / focal[:, None] for k in range(2))
        right, down, forward = (self.c2w[:, :3, k, None] for k in range(3))
        directions = right * x[:, None] + down * y[:, None] + forward
        lighting = Lighting(config.shadows, config.specular)
        pixel = 1.0 / (focal * config.samples)
        return cast_rays(self.c2w.device, self.worlds, self.c2w[:, :3, 3:], directions, pixel, lighting)

    def trace_all(self, pixels: Tensor, config: ProceduralConfig) -> tuple[Tensor, Tensor, Tensor]:
        """As ``trace``, for any number of pixels, in batches."""
        step = max(1, RAYS_AT_ONCE[self.c2w.device.type] // self.c2w.shape[0])
        parts = [self.trace(part, config) for part in pixels.split(step, dim=-1)]
        light, depth, index = (torch.cat(part, dim=-1) for part in zip(*parts, strict=True))
        return light, depth, index


def _silhouettes(index: Tensor, width: int) -> Tensor:
    """(N, H * W) True where a pixel shows another surface than a neighbour: all edges, as surfaces are convex."""
    grid = index.view(index.shape[0], -1, width)
    edge = torch.zeros_like(grid, dtype=torch.bool)
    across, along = grid[:, :, 1:] != grid[:, :, :-1], grid[:, 1:] != grid[:, :-1]
    edge[:, :, 1:] |= across
    edge[:, :, :-1] |= across
    edge[:, 1:] |= along
    edge[:, :-1] |= along
    return edge.flatten(1)


def _refine(views: WorldViews, centres: Tensor, light: Tensor, index: Tensor, config: ProceduralConfig) -> Tensor:
    """Light with the pixels on silhouettes replaced by the mean of four samples."""
    edge = _silhouettes(index, config.width)
    most = int(edge.sum(1).max())
    if most == 0:
        return light
    # All views trace the same number of pixels again; for views with fewer edges, some results are not used.
    place = edge.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
    corners = centres[0][:, place].transpose(0, 1)  # (N, 2, most)
    every = torch.cat([corners + corners.new_tensor(offset)[:, None] for offset in _SILHOUETTE_OFFSETS], dim=-1)
    extra = views.trace_all(every, config)[0].unflatten(-1, (len(_SILHOUETTE_OFFSETS), most)).sum(2)
    slot = place[:, None].expand(-1, 3, -1)
    old = light.gather(2, slot)
    mean = (old + extra) / (1 + len(_SILHOUETTE_OFFSETS))
    return light.scatter(2, slot, torch.lerp(old, mean, edge.gather(1, place)[:, None].to(old)))


def _render(views: WorldViews, config: ProceduralConfig) -> tuple[Tensor, Tensor]:
    place = torch.arange(config.width * config.height, device=views.c2w.device)
    centres = torch.stack([place % config.width + 0.5, place // config.width + 0.5])[None]
    light, depth, index = views.trace_all(centres, config)
    if config.samples == 1:
        light = _refine(views, centres, light, index, config)
    else:
        steps = (torch.arange(config.samples, device=place.device) + 0.5) / config.samples - 0.5
        offsets = torch.cartesian_prod(steps, steps)[:, :, None]
        light = torch.stack([views.trace_all(centres + offset, config)[0] for offset in offsets]).mean(0)
    size = (config.height, config.width)
    return light.transpose(1, 2).unflatten(1, size), depth.unflatten(1, size)


def _each(job: Callable[[Tensor], tuple[Tensor, ...]], items: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Run a job on every item and concatenate the results along their first axis.

    On the CPU the items are distributed over as many threads as torch may use, each of which runs torch serially. This
    scales better than threads within operations, and results do not depend on the number of threads.
    """
    job = torch.no_grad()(job)
    if items[0].device.type == "cpu":
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            done = list(pool.map(job, items))
        # set_num_threads in a worker also changes the default for threads that start later.
        torch.set_num_threads(threads)
    else:
        done = [job(item) for item in items]
    return tuple(torch.cat(part) for part in zip(*done, strict=True))


def render(views: WorldViews, exposure: Tensor, config: ProceduralConfig) -> tuple[Tensor, Tensor]:
    """Images (B, V, H, W, 3) and z-depth (B, V, H, W) of B * V views, with one exposure (B,) per scene."""
    count, scenes = views.c2w.shape[0], exposure.shape[0]
    together = max(1, RAYS_AT_ONCE[views.c2w.device.type] // (config.width * config.height))
    chunks = torch.arange(count, device=views.c2w.device).split(together)

    def cast(chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        light, depth = _render(views.select(chosen), config)
        return light, depth, light.flatten(1).mean(1)

    light, depth, brightness = _each(cast, chunks)
    gain = exposure / brightness.view(scenes, -1).mean(1).clamp_min(1e-4)
    gains = gain.repeat_interleave(count // scenes)
    (images,) = _each(lambda chosen: (develop(light[chosen], gains[chosen]),), chunks)
    return images.unflatten(0, (scenes, -1)), depth.unflatten(0, (scenes, -1))
