"""Gaussians along a camera path, as pictures: colour, depth, normals, opacity, one beside the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ilrm.core.cameras import Cameras
from ilrm.core.gaussians import Gaussians
from ilrm.render import Rendering, render
from ilrm.render.depth_colours import colour_depth, depth_range
from ilrm.render.normals import colour_normals, normals
from ilrm.scenes.views import evenly_spaced

Panel = Literal["rgb", "depth", "normals", "opacity"]

# Pixels less opaque than this have a colour, but hardly a surface.
_SURFACE_ALPHA = 0.5
# Standard deviation of the smoothing of depth before its slopes are taken, as a share of the longer side.
_SMOOTHING = 0.01
# Enough views and pixels of a path to know how deep it looks.
_PROBES, _PROBE_SIDE = 8, 96
# Nothing nearer than this share of the nearest surface that the photos show is drawn: it hangs before the lens.
_CLEARANCE, _NEAREST_SURFACE = 0.5, 0.02


@dataclass(frozen=True)
class Picture:
    """What a frame shows.

    Attributes:
        panels: from left to right.
        background: red, green, blue in [0, 1], where colour and opacity end.
        near: nearest z that is drawn, in world units.
        depth_limits: ends of the depth colours, shared by all frames; by default each frame has its own.
    """

    panels: tuple[Panel, ...] = ("rgb",)
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)
    near: float = 0.01
    depth_limits: tuple[float, float] | None = None


@torch.no_grad()
def render_frame(gaussians: Gaussians, camera: Cameras, picture: Picture) -> Tensor:
    """(H, P W, 3) in [0, 1] on the CPU: the P panels of what one camera sees."""
    seen = render(gaussians, camera, picture.background, near=picture.near)
    return torch.cat([_panel(name, seen, camera, picture) for name in picture.panels], dim=1).clamp(0, 1).cpu()


def render_path(gaussians: Gaussians, cameras: Cameras, picture: Picture | None = None) -> Iterator[Tensor]:
    """Frames (H, P W, 3) along a path, one at a time, made when they are asked for.

    By default they show colour on white; depth colours span the whole path.
    """
    picture = picture or Picture()
    if "depth" in picture.panels and picture.depth_limits is None:
        limits = path_depth_range(gaussians, cameras, picture.near)
        picture = Picture(picture.panels, picture.background, picture.near, limits)
    for view in range(len(cameras)):
        yield render_frame(gaussians, cameras[view], picture)


def _panel(name: Panel, seen: Rendering, camera: Cameras, picture: Picture) -> Tensor:
    """(H, W, 3) of one camera's rendering."""
    background = seen.rgb.new_tensor(picture.background)
    if name == "rgb":
        return seen.rgb[0]
    if name == "opacity":
        return seen.alpha[0, :, :, None].expand(-1, -1, 3)
    surface = seen.alpha > _SURFACE_ALPHA
    depth = torch.where(surface, seen.depth, 0.0)
    if name == "depth":
        colours = colour_depth(depth[0], picture.depth_limits)
    else:
        normal = normals(_smoothed(depth), camera.to(depth.device))[0]
        surface = surface & (normal != 0).any(-1)
        colours = colour_normals(normal)
    return torch.where(surface[0, :, :, None], colours, background)


def _smoothed(depth: Tensor) -> Tensor:
    """(V, H, W) depth averaged over its known neighbours: Gaussians are too rough for slopes from pixel to pixel."""
    radius = max(1, round(_SMOOTHING * max(depth.shape[1:])))
    place = torch.arange(-2 * radius, 2 * radius + 1, device=depth.device, dtype=depth.dtype)
    weights = torch.exp(-0.5 * (place / radius) ** 2)
    known = (depth > 0).to(depth)
    sums = torch.stack([depth, known], dim=1)  # (V, 2, H, W)
    for shape in ((1, 1, 1, -1), (1, 1, -1, 1)):
        sums = F.conv2d(sums, weights.view(shape).expand(2, 1, -1, -1), padding="same", groups=2)
    return torch.where(depth > 0, sums[:, 0] / sums[:, 1].clamp_min(1e-6), 0.0)


def path_depth_range(gaussians: Gaussians, cameras: Cameras, near: float) -> tuple[float, float] | None:
    """Near and far end of what a path shows, but for outliers, in world units; None if it shows nothing."""
    return depth_range(surface_depths(gaussians, cameras, near))


def clear_near_plane(gaussians: Gaussians, cameras: Cameras, near: float) -> float:
    """A near plane for paths that leave the photos' own places.

    Reconstructions hang specks before the cameras, which no photo shows but a moving camera runs into. What is nearer
    than half of the nearest surface that the cameras of the photos see is not drawn.

    Args:
        cameras: those of the photos.
        near: the near plane at their own places, in world units.
    """
    depths = surface_depths(gaussians, cameras, near)
    if depths.numel() == 0:
        return near
    nearest = torch.quantile(depths[:: max(1, depths.numel() // 10_000)], _NEAREST_SURFACE).item()
    return max(near, _CLEARANCE * nearest)


@torch.no_grad()
def surface_depths(gaussians: Gaussians, cameras: Cameras, near: float) -> Tensor:
    """(P,) depths of opaque pixels in a few small views along a path."""
    probes = cameras[evenly_spaced(len(cameras), _PROBES)]
    factor = min(1.0, _PROBE_SIDE / max(cameras.width, cameras.height))
    probes = probes.resize(max(1, round(cameras.width * factor)), max(1, round(cameras.height * factor)))
    depths = []
    for view in range(len(probes)):
        seen = render(gaussians, probes[view], near=near)
        depths.append(seen.depth[seen.alpha > _SURFACE_ALPHA].cpu())
    return torch.cat(depths) if depths else torch.zeros(0)
