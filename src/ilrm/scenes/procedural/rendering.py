"""Worlds as tensors, and the light that reaches each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ilrm.scenes.procedural import casting, table, textures
from ilrm.scenes.procedural.casting import Geometry
from ilrm.scenes.procedural.layout import World
from ilrm.scenes.procedural.table import Fetched


@dataclass(frozen=True, eq=False)
class Worlds:
    """N worlds on one device, with the primitives of each shape padded to the same number.

    Attributes:
        geometry: what rays hit.
        surfaces: (N, P + BACKDROP, table.WIDTH).
        lights: (N, 2, 7) position, colour, radius.
        ambient: (N, 2, 3) light from above and from below.
    """

    geometry: Geometry
    surfaces: Tensor
    lights: Tensor
    ambient: Tensor

    def select(self, index: Tensor) -> Worlds:
        """The worlds at ``index`` (N',)."""
        return Worlds(self.geometry.select(index), self.surfaces[index], self.lights[index], self.ambient[index])

    @staticmethod
    def stack(worlds: Sequence[World], device: torch.device) -> Worlds:
        """Tensors of several worlds; missing primitives become specks far outside."""
        counts = [max(1, *(sum(p.shape == k for p in w.primitives) for w in worlds)) for k in range(3)]
        to_local, centre, thickness, surfaces = [], [], [], []
        for world in worlds:
            groups = [[p for p in world.primitives if p.shape == k] for k in range(3)]
            frame = np.tile(np.eye(3, dtype=np.float32) * 1e2, (sum(counts), 1, 1))
            middle = np.full((sum(counts), 3), 3e4, dtype=np.float32)
            depth = np.full(sum(counts), 1e-2, dtype=np.float32)
            rows = np.zeros((sum(counts), table.WIDTH), dtype=np.float32)
            for k, group in enumerate(groups):
                for slot, p in enumerate(group, start=sum(counts[:k])):
                    frame[slot], middle[slot], rows[slot] = (p.axes / p.half).T, p.centre, p.row
                    depth[slot] = np.median(p.half)
            to_local.append(frame)
            centre.append(middle)
            thickness.append(depth)
            surfaces.append(np.concatenate([rows, world.backdrop]))

        def tensor(values: Sequence[object]) -> Tensor:
            return torch.from_numpy(np.stack([np.asarray(v, dtype=np.float32) for v in values])).to(device)

        geometry = Geometry(
            to_local=tensor(to_local),
            centre=tensor(centre),
            thickness=tensor(thickness),
            room=tensor([w.room for w in worlds]),
            room_centre=tensor([w.room_centre for w in worlds]),
            dome=tensor([w.dome for w in worlds]),
            ground=tensor([w.ground for w in worlds]),
            hills=tensor([w.hills for w in worlds]),
            counts=(counts[0], counts[1], counts[2]),
            hilly=any(float(w.hills[:, 0].max()) > 0 for w in worlds),
        )
        return Worlds(
            geometry, tensor(surfaces), tensor([w.lights for w in worlds]), tensor([w.ambient for w in worlds])
        )


def _unit(vectors: Tensor, dim: int = 0) -> Tensor:
    # Sums of three squares by hand: the library's norm along a leading axis is 20 times slower on the CPU.
    x, y, z = vectors.unbind(dim)
    return vectors * (x * x + y * y + z * z).clamp_min(1e-20).rsqrt().unsqueeze(dim)


def _facing(value: Tensor, most: Tensor) -> Tensor:
    """1 where value equals the maximum, else 0."""
    return ((value - most) * 1e6 + 1.0).clamp_(0.0, 1.0)


def _normals(geometry: Geometry, surface: Fetched, points: Tensor) -> Tensor:
    """(3, N * R) unit normals at points (N, 3, R)."""
    flat = points.transpose(0, 1).flatten(1)
    frame = surface["frame"].view(3, 3, -1)
    local = (frame * (flat - surface["origin"])).sum(1)
    round_, box, cylinder = surface["shape"]
    size = local.abs()
    most = size.amax(0)
    on_box = local.sign() * _facing(size, most)
    radial = (local[0] ** 2 + local[1] ** 2).sqrt()
    cap = _facing(size[2], torch.maximum(radial, size[2]))
    on_cylinder = torch.stack([local[0] * (1 - cap), local[1] * (1 - cap), local[2].sign() * cap])
    unit = round_ * local + box * on_box + cylinder * on_cylinder
    normal = (frame * unit[:, None]).sum(0) + surface["normal"]
    if geometry.hilly:
        _, slope_x, slope_y = casting.hill_height(geometry.hills, points[:, 0], points[:, 1])
        # Only the ground's constant normal points up and bears waves; rooms have waves of no height.
        ground = (surface["normal"][2] > 0.5).to(normal)
        normal[0] -= ground * slope_x.flatten()
        normal[1] -= ground * slope_y.flatten()
    return _unit(normal)


def _openness(geometry: Geometry, points: Tensor) -> Tensor:
    """(N, R) how little corners and the floor darken a point: a stand-in for ambient occlusion."""
    room = geometry.room[..., None] - (points - geometry.room_centre[..., None]).abs()
    darkness = torch.exp(-room.clamp_min(0.0) * 4.0)
    floor = torch.exp(-(points[:, 2] - geometry.ground[:, None]).clamp_min(0.0) * 4.0)
    return (1.0 - 0.4 * darkness).prod(1) * (1.0 - 0.3 * floor)


@dataclass(frozen=True, eq=False)
class Lighting:
    """Switches of the light: soft shadows, and the strength of highlights."""

    shadows: bool
    specular: float


def radiance(
    worlds: Worlds, origins: Tensor, directions: Tensor, pixel: Tensor, lighting: Lighting
) -> tuple[Tensor, Tensor, Tensor]:
    """Linear light along rays.

    Args:
        origins: (N, 3, 1).
        directions: (N, 3, R) with unit depth (z = 1 in the camera), so that the ray parameter is the z-depth.
        pixel: (N,) width of a pixel at depth 1.

    Returns:
        light (N, 3, R), z-depth (N, R) and surface index (N, R).
    """
    geometry = worlds.geometry
    depth, index = casting.nearest(geometry, origins, directions)
    points = origins + depth[:, None] * directions
    surface = Fetched.fetch(worlds.surfaces, index)
    normal = _normals(geometry, surface, points)
    view = _unit(directions, 1).transpose(0, 1).flatten(1)
    normal = normal * -((normal * view).sum(0)).sign()
    slant = (normal * view).sum(0).abs().clamp_min(0.15)
    footprint = (depth * pixel[:, None]).flatten() * slant.rsqrt()
    flat = points.transpose(0, 1).flatten(1)
    paint = textures.evaluate(surface, flat, footprint)
    *_, bump = surface["detail"]
    normal = _unit(normal + bump * paint.fine)
    strength, exponent = surface["gloss"]
    shape = depth.shape

    def spread(values: Tensor) -> Tensor:
        """(3, N * R) of per-world values (N, 3)."""
        return values.T[:, :, None].expand(-1, -1, shape[1]).flatten(1)

    up = 0.5 + 0.5 * normal[2]
    above, below = worlds.ambient.unbind(1)
    ambient = spread(below) + (spread(above) - spread(below)) * up
    diffuse = ambient * _openness(geometry, points).flatten()
    highlight = torch.zeros_like(diffuse)
    for k in range(worlds.lights.shape[1]):
        position, colour, radius = worlds.lights[:, k].split([3, 3, 1], dim=1)
        toward = spread(position) - flat
        reach = toward.square().sum(0).sqrt()
        toward = toward / reach
        seen = (normal * toward).sum(0).relu()
        # Inverse-square decay, softened near the lamp; a sun at 60 units decays by nothing visible.
        seen = seen * (2.2 / (1.0 + (reach * 0.35) ** 2 * (reach < 40.0)))
        if lighting.shadows:
            shadow = casting.visibility(geometry, points, index, position, radius[:, 0])
            seen = seen * shadow.flatten()
        diffuse = diffuse + seen * spread(colour)
        half = _unit(toward - view)
        glint = ((normal * half).sum(0).clamp_min(1e-3).log() * exponent).exp()
        highlight = highlight + (seen * glint * strength * lighting.specular) * spread(colour)
    glow = surface["glow"][0]
    light = (paint.albedo * diffuse + highlight) * (1.0 - glow) + glow * paint.albedo
    return light.view(3, *shape).transpose(0, 1), depth, index


def develop(light: Tensor, exposure: Tensor) -> Tensor:
    """Images in [0, 1] of linear light (B, ..., 3): one exposure for each scene, a soft shoulder, display gamma."""
    mean = light.flatten(1).mean(1)
    gain = exposure / mean.clamp_min(1e-4)
    scaled = light * gain.view(-1, *[1] * (light.ndim - 1))
    return (1.0 - torch.exp(-1.25 * scaled)).clamp(0.0, 1.0) ** (1.0 / 2.2)
