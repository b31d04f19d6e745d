"""Shading of procedural scenes: textures, lights, soft shadows, highlights, exposure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ilrm.datasets.procedural import casting, photos, textures
from ilrm.datasets.procedural.casting import Geometry
from ilrm.datasets.procedural.table import Fetched
from ilrm.datasets.procedural.worlds import Worlds

_SUN = 40.0  # lights farther away than this do not fall off with distance
_DISPLAY_GAMMA = 2.2
# Only the first light casts shadows; the second, weaker one is a fill light.
KEY_LIGHT = 0


@dataclass(frozen=True)
class Lighting:
    """Soft shadows on or off, and the strength of highlights."""

    shadows: bool
    specular: float


def _unit(vectors: Tensor, dim: int = 0) -> Tensor:
    # Written out, because torch's norm along a leading axis is 20 times slower on the CPU.
    x, y, z = vectors.unbind(dim)
    return vectors * (x * x + y * y + z * z).clamp_min(1e-20).rsqrt().unsqueeze(dim)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(R,) dot products of vectors (3, R)."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _flat(vectors: Tensor) -> Tensor:
    """(3, N * R) of (N, 3, R)."""
    return vectors.transpose(0, 1).flatten(1)


def _spread(values: Tensor, rays: int) -> Tensor:
    """(C, N * R) of per-world values (N, C)."""
    return values.T[:, :, None].expand(-1, -1, rays).flatten(1)


def _is_largest(value: Tensor, largest: Tensor) -> Tensor:
    """1 where value equals the largest, else 0."""
    return ((value - largest) * 1e6 + 1.0).clamp_(0.0, 1.0)


def _normals(surface: Fetched, points: Tensor) -> Tensor:
    """(3, R) unit normals at points (3, R)."""
    frame = surface["frame"].view(3, 3, -1)
    offset = points - surface["origin"]
    local = torch.stack([_dot(row, offset) for row in frame])
    of_ellipsoid, of_box, of_cylinder = surface["shape"]
    size = local.abs()
    on_box = local.sign() * _is_largest(size, size.amax(0))
    radial = (local[0] ** 2 + local[1] ** 2).sqrt()
    cap = _is_largest(size[2], torch.maximum(radial, size[2]))
    on_cylinder = torch.stack([local[0] * (1 - cap), local[1] * (1 - cap), local[2].sign() * cap])
    unit = of_ellipsoid * local + of_box * on_box + of_cylinder * on_cylinder
    return _unit((frame * unit[:, None]).sum(0) + surface["normal"])


def _openness(geometry: Geometry, points: Tensor) -> Tensor:
    """(N, R) ambient light that reaches points (N, 3, R), reduced near walls and floor: cheap ambient occlusion."""
    gap = (geometry.room[..., None] - (points - geometry.room_centre[..., None]).abs()).clamp_min_(0.0)
    x, y, z = (1.0 - 0.4 * torch.exp(-4.0 * gap)).unbind(1)
    floor = torch.exp(-4.0 * (points[:, 2] - geometry.ground[:, None]).clamp_min(0.0))
    return x * y * z * (1.0 - 0.3 * floor)


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
    depth, index = casting.nearest(worlds.geometry, origins, directions)
    if worlds.laid is not None:
        depth, index = _through_windows(worlds, origins, directions, depth, index)
    points = origins + depth[:, None] * directions
    surface = Fetched.fetch(worlds.surfaces, index)
    where, view = _flat(points), _unit(_flat(directions))
    normal = _normals(surface, where)
    facing = _dot(normal, view)
    footprint = (depth * pixel[:, None]).flatten() * facing.abs().clamp_min(0.15).rsqrt()
    paint = textures.evaluate(worlds.tables, surface, where, footprint)
    if worlds.laid is not None and worlds.photos is not None:
        rows = _rows(worlds.laid, index)
        albedo = photos.lay_on(worlds.photos, paint.albedo, rows, surface, where, footprint)
        paint = replace(paint, albedo=albedo)
    normal = _unit(normal + surface["detail"][3] * paint.fine)
    diffuse, highlight = _illuminate(worlds, points, index, normal, view, surface, lighting)
    glow = surface["glow"]
    light = (paint.albedo * diffuse + lighting.specular * highlight) * (1.0 - glow) + glow * paint.albedo
    return light.view(3, *depth.shape).transpose(0, 1), depth, index


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """(N * R, WIDTH) rows of the surfaces index (N, R) in a table (N, S, WIDTH)."""
    offset = torch.arange(table.shape[0], device=index.device)[:, None] * table.shape[1]
    return table.flatten(0, 1).index_select(0, (index + offset).flatten())


def _through_windows(
    worlds: Worlds, origins: Tensor, directions: Tensor, depth: Tensor, index: Tensor
) -> tuple[Tensor, Tensor]:
    """Depth and surface (N, R) of rays that go on to the sky where they meet a window."""
    assert worlds.laid is not None
    window = worlds.laid[:, :, 0] == photos.PORTAL
    if photos.may_ask(window) and not window.any():
        return depth, index
    open_ = window.gather(1, index)
    sky = worlds.geometry.primitives + casting.SKY
    far = casting.sky_distance(worlds.geometry, origins, directions)
    return torch.where(open_, far, depth), torch.where(open_, sky, index)


def sizes_of_radiance(
    worlds: Worlds, origins: Tensor, directions: Tensor, pixel: Tensor, lighting: Lighting
) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
    """Arguments of ``radiance`` whose numbers of views and rays vary, with those dimensions."""
    geometry = worlds.geometry
    of_geometry = (getattr(geometry, f.name) for f in fields(geometry) if f.name != "counts")
    laid = () if worlds.laid is None else (worlds.laid,)
    for tensor in (*of_geometry, *laid, worlds.surfaces, worlds.lights, worlds.ambient, origins, pixel):
        yield tensor, (0,)
    yield directions, (0, 2)


def _illuminate(
    worlds: Worlds, points: Tensor, index: Tensor, normal: Tensor, view: Tensor, surface: Fetched, lighting: Lighting
) -> tuple[Tensor, Tensor]:
    """Diffuse light and highlights, each (3, N * R), at points (N, 3, R) with normals and view rays (3, N * R)."""
    rays, where = points.shape[2], _flat(points)
    above, below = (_spread(worlds.ambient[:, k], rays) for k in range(2))
    openness = _openness(worlds.geometry, points).flatten()
    diffuse = torch.lerp(below, above, 0.5 + 0.5 * normal[2]) * openness
    highlight = torch.zeros_like(diffuse)
    strength, exponent = surface["gloss"]
    for k in range(worlds.lights.shape[1]):
        position, colour, radius = worlds.lights[:, k].split([3, 3, 1], dim=1)
        toward = _spread(position, rays) - where
        distance = _dot(toward, toward).sqrt()
        toward = toward / distance
        # Inverse-square falloff, softened near the lamp.
        falloff = 2.2 / (1.0 + (0.35 * distance) ** 2 * (distance < _SUN))
        arriving = _dot(normal, toward).relu() * falloff
        if lighting.shadows and k == KEY_LIGHT:
            seen = casting.visibility(worlds.geometry, points, index, position, radius[:, 0])
            arriving = arriving * seen.flatten()
        lit = arriving * _spread(colour, rays)
        glint = torch.exp(_dot(normal, _unit(toward - view)).clamp_min(1e-3).log() * exponent)
        diffuse = diffuse + lit
        highlight = highlight + lit * (glint * strength)
    return diffuse, highlight


def develop(light: Tensor, gain: Tensor) -> Tensor:
    """Tone mapping of linear light (N, ...) to images in [0, 1]: gain (N,), a soft shoulder, display gamma."""
    scaled = light * gain.view(-1, *[1] * (light.ndim - 1))
    return (1.0 - torch.exp(-1.25 * scaled)).clamp(0.0, 1.0) ** (1.0 / _DISPLAY_GAMMA)
