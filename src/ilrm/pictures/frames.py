"""Rendering frames with one or more panels: colour, depth, normals, opacity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ilrm.core.cameras import Cameras
from ilrm.core.gaussians import Gaussians
from ilrm.render import Rendering, background_of, render
from ilrm.render.depth_colours import colour_depth, depth_range
from ilrm.render.normals import colour_normals, normals
from ilrm.scenes.views import evenly_spaced

Panel = Literal["rgb", "depth", "normals", "opacity"]

# Pixels less opaque than this have a colour but no reliable surface.
_SURFACE_ALPHA = 0.5
# Standard deviation of the blur of depth before normals are computed, as a share of the longer side.
_SMOOTHING = 0.01
# Number of views and their longer side for estimating the range of depths along a path.
_PROBES, _PROBE_SIDE = 8, 96
# ``clear_near_plane``: the share of the nearest surface's depth, which is this quantile of all depths.
_CLEARANCE, _NEAREST_SURFACE = 0.5, 0.02


@dataclass(frozen=True)
class Picture:
    """The content of a frame.

    Attributes:
        panels: from left to right.
        background: red, green, blue in [0, 1] behind the Gaussians; by default their own, else white.
        near: near plane in world units.
        depth_limits: range of the depth colours for all frames; by default each frame has its own range.
    """

    panels: tuple[Panel, ...] = ("rgb",)
    background: tuple[float, float, float] | None = None
    near: float = 0.01
    depth_limits: tuple[float, float] | None = None


@torch.no_grad()
def render_frame(gaussians: Gaussians, camera: Cameras, picture: Picture) -> Tensor:
    """Render P panels for one camera: (H, P W, 3) in [0, 1] on the CPU."""
    seen = render(gaussians, camera, picture.background, near=picture.near)
    behind = background_of(gaussians, picture.background)
    return torch.cat([_panel(name, seen, camera, picture, behind) for name in picture.panels], dim=1).clamp(0, 1).cpu()


def render_path(gaussians: Gaussians, cameras: Cameras, picture: Picture | None = None) -> Iterator[Tensor]:
    """Render frames (H, P W, 3) along a path lazily, one at a time.

    By default they show colour, on the background of the Gaussians. The range of depth colours is that of the whole
    path.
    """
    picture = picture or Picture()
    if "depth" in picture.panels and picture.depth_limits is None:
        limits = path_depth_range(gaussians, cameras, picture.near)
        picture = Picture(picture.panels, picture.background, picture.near, limits)
    for view in range(len(cameras)):
        yield render_frame(gaussians, cameras[view], picture)


def _panel(name: Panel, seen: Rendering, camera: Cameras, picture: Picture, behind: Sequence[float] | Tensor) -> Tensor:
    """(H, W, 3) of one panel."""
    background = torch.as_tensor(behind).to(seen.rgb)
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
    """Blur depth (V, H, W) over known pixels, because depth of Gaussians is too noisy for differences of neighbours."""
    radius = max(1, round(_SMOOTHING * max(depth.shape[1:])))
    place = torch.arange(-2 * radius, 2 * radius + 1, device=depth.device, dtype=depth.dtype)
    weights = torch.exp(-0.5 * (place / radius) ** 2)
    known = (depth > 0).to(depth)
    sums = torch.stack([depth, known], dim=1)  # (V, 2, H, W)
    for shape in ((1, 1, 1, -1), (1, 1, -1, 1)):
        sums = F.conv2d(sums, weights.view(shape).expand(2, 1, -1, -1), padding="same", groups=2)
    return torch.where(depth > 0, sums[:, 0] / sums[:, 1].clamp_min(1e-6), 0.0)


def path_depth_range(gaussians: Gaussians, cameras: Cameras, near: float) -> tuple[float, float] | None:
    """Smallest and largest depth along a path without outliers, in world units; None if no surface is visible."""
    return depth_range(surface_depths(gaussians, cameras, near))


def clear_near_plane(gaussians: Gaussians, cameras: Cameras, near: float) -> float:
    """A near plane for paths that leave the positions of the photos.

    Reconstructions contain floaters in front of the cameras, which no photo shows but into which a moving camera may
    run. This near plane is at half the depth of the nearest surface that the photos' cameras see.

    Args:
        cameras: those of the photos.
        near: the smallest near plane, in world units.
    """
    depths = surface_depths(gaussians, cameras, near)
    if depths.numel() == 0:
        return near
    nearest = torch.quantile(depths[:: max(1, depths.numel() // 10_000)], _NEAREST_SURFACE).item()
    return max(near, _CLEARANCE * nearest)


@torch.no_grad()
def surface_depths(gaussians: Gaussians, cameras: Cameras, near: float) -> Tensor:
    """(P,) depths of opaque pixels in a few small renderings along a path."""
    probes = cameras[evenly_spaced(len(cameras), _PROBES)]
    factor = min(1.0, _PROBE_SIDE / max(cameras.width, cameras.height))
    probes = probes.resize(max(1, round(cameras.width * factor)), max(1, round(cameras.height * factor)))
    depths = []
    for view in range(len(probes)):
        seen = render(gaussians, probes[view], near=near)
        depths.append(seen.depth[seen.alpha > _SURFACE_ALPHA].cpu())
    return torch.cat(depths) if depths else torch.zeros(0)
