"""Photographs on surfaces: tiles that repeat or show once, and panoramas that stand far away.

Each surface may have a row of ``COLUMNS`` beside its row in the surface table. Rays that hit a surface with a photo
look it up at a level of detail that fits the pixel; the others cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ilrm.datasets.procedural.table import Fetched
from ilrm.files.image_files import open_image

# The tiles of tiles.jpg: surfaces that repeat, the first three of them grey, then pictures.
SURFACES, PICTURES, GREY = tuple(range(10)), tuple(range(10, 20)), (0, 1, 2)
BRICK, GRASS, GRAVEL, WOOD, FOREST, ROCK, CONCRETE, PAVING, FLOOR, LAWN = SURFACES
PANORAMAS = 5
_TILE, _TILE_COLUMNS, _LEVELS = 256, 5, 6
_HORIZON = 512  # rows of a panorama
_GAMMA = 2.2
# What a surface's photo is.
NONE, TILE, PANORAMA, PORTAL = range(4)

# name -> how many numbers.
COLUMNS: dict[str, int] = {
    "kind": 1,  # NONE, TILE, PANORAMA, or PORTAL: an opening through which the panorama of the sky is seen
    "photo": 1,  # number of the tile or panorama
    "share": 1,  # of the photo in the surface's colour
    "size": 3,  # tiles along each axis of the surface's own frame
    "offset": 2,  # in tiles; for panoramas the first is a turn
    "density": 1,  # tiles along a world unit at most
    "tint": 3,  # factors of the colours
}
WIDTH = sum(COLUMNS.values())
Row = NDArray[np.float32]


def pack(**values: object) -> Row:
    """(WIDTH,) numbers; columns that are left out are 0."""
    unknown = set(values) - set(COLUMNS)
    assert not unknown, unknown
    parts = [np.broadcast_to(np.asarray(values.get(name, 0.0), np.float32), size) for name, size in COLUMNS.items()]
    return np.concatenate(parts)


def no_photo() -> Row:
    return pack()


def _columns(rows: Tensor) -> Mapping[str, Tensor]:
    """(size, R) of each column of rows (R, WIDTH)."""
    return dict(zip(COLUMNS, rows.T.split(list(COLUMNS.values())), strict=True))


def _linear(name: str) -> Tensor:
    """(3, H, W) linear RGB of a photo of the package."""
    with open_image((files("ilrm") / "assets" / "photos" / name).read_bytes(), name) as image:
        pixels = np.array(image.convert("RGB"))
    return torch.from_numpy((pixels / 255.0) ** _GAMMA).float().permute(2, 0, 1)


@dataclass(frozen=True, eq=False)
class Photos:
    """All photos on one device.

    Attributes:
        tiles: (3, all) values of all tiles at all levels of detail.
        starts: (levels,) where each level starts.
        panoramas: (3, PANORAMAS * rows * columns), joined.
    """

    tiles: Tensor
    starts: Tensor
    panoramas: Tensor


@lru_cache(maxsize=4)
def load(device: torch.device) -> Photos:
    """The photos of the package."""
    sheet = _linear("tiles.jpg")
    rows = sheet.shape[1] // _TILE
    tiles = sheet.view(3, rows, _TILE, _TILE_COLUMNS, _TILE).permute(1, 3, 0, 2, 4).flatten(0, 1)  # (T, 3, H, W)
    levels, starts = [], []
    for level in range(_LEVELS):
        starts.append(sum(part.shape[1] for part in levels))
        levels.append((tiles if level == 0 else F.avg_pool2d(tiles, 2**level)).transpose(0, 1).flatten(1))
    values = (
        torch.cat(levels, dim=1).contiguous(),
        torch.tensor(starts),
        _linear("panoramas.jpg").flatten(1).contiguous(),
    )
    return Photos(*(x.to(device) for x in values))


def may_ask(values: Tensor) -> bool:
    """Whether it costs nothing to ask for values: on the CPU, where nothing is compiled."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def _bilinear(values: Tensor, start: Tensor, width: Tensor, x: Tensor, y: Tensor, height: Tensor) -> Tensor:
    """(3, R) of images that begin at ``start`` (R,) in values (3, all), at positions counted from pixel centres.

    Columns and rows beyond the border are those of the border.
    """
    left, top = x.floor(), y.floor()
    right_share, lower_share = x - left, y - top
    x0, x1 = (torch.minimum((left + step).clamp_min(0), width - 1).long() for step in (0, 1))
    y0, y1 = (torch.minimum((top + step).clamp_min(0), height - 1).long() for step in (0, 1))
    width = width.long()
    corner = [values.index_select(1, start + row * width + column) for row in (y0, y1) for column in (x0, x1)]
    upper = torch.lerp(corner[0], corner[1], right_share)
    return torch.lerp(upper, torch.lerp(corner[2], corner[3], right_share), lower_share)


def _tile_colours(
    photos: Photos, photo: Mapping[str, Tensor], surface: Fetched, points: Tensor, footprint: Tensor
) -> Tensor:
    """(3, R) of tiles at points (3, R): the side of a box or the wall says which two axes run along the photo."""
    frame = surface["frame"].view(3, 3, -1)
    offset = points - surface["origin"]
    local = torch.stack([(row * offset).sum(0) for row in frame])
    facing = local.abs() * surface["shape"].sum(0) + surface["normal"].abs() * 1e3
    side = facing.argmax(0)
    along = local * photo["size"]
    u = torch.where(side == 0, along[1], along[0]) + photo["offset"][0]
    v = torch.where(side == 2, along[1], -along[2]) + photo["offset"][1]
    # Every other tile is mirrored, so that no seams are seen.
    u, v = (1.0 - (x % 2.0 - 1.0).abs() for x in (u, v))
    level = (footprint * photo["density"][0] * _TILE).clamp_min(1.0).log2().round().clamp_max(_LEVELS - 1).long()
    side_pixels = (_TILE >> level).to(points)
    start = photos.starts[level] + photo["photo"][0].long() * (_TILE >> level) ** 2
    return _bilinear(photos.tiles, start, side_pixels, u * side_pixels - 0.5, v * side_pixels - 0.5, side_pixels)


def _far_colours(photos: Photos, photo: Mapping[str, Tensor], points: Tensor) -> Tensor:
    """(3, R) of panoramas in the directions of points (3, R) from the world's origin."""
    x, y, z = points
    longitude = (torch.atan2(y, x) / (2 * math.pi) + photo["offset"][0]) % 1.0
    latitude = torch.atan2(z, torch.hypot(x, y)) / math.pi
    width, height = torch.full_like(x, 2 * _HORIZON), torch.full_like(x, _HORIZON)
    start = photo["photo"][0].long() * (2 * _HORIZON * _HORIZON)
    # Half a pixel at the seam is not interpolated.
    at = longitude * 2 * _HORIZON - 0.5, (0.5 - latitude) * _HORIZON - 0.5
    return _bilinear(photos.panoramas, start, width, *at, height)


def lay_on(photos: Photos, albedo: Tensor, rows: Tensor, surface: Fetched, points: Tensor, footprint: Tensor) -> Tensor:
    """Albedo (3, R) with the photos of the surfaces that R rays hit.

    Args:
        rows: (R, WIDTH) of the surfaces.
        surface, points, footprint: as for ``textures.evaluate``.
    """
    if not may_ask(rows):
        return _lay_on_all(photos, albedo, rows, surface, points, footprint)
    out = albedo.clone()
    for kind in (TILE, PANORAMA):
        chosen = (rows[:, 0] == kind).nonzero()[:, 0]
        if len(chosen) == 0:
            continue
        photo = _columns(rows[chosen])
        here = points[:, chosen]
        if kind == TILE:
            colours = _tile_colours(photos, photo, Fetched(surface.columns[:, chosen]), here, footprint[chosen])
            colours = (colours * photo["tint"]).clamp(0.01, 0.95)
        else:
            colours = _far_colours(photos, photo, here) * photo["tint"]
        out[:, chosen] = torch.lerp(albedo[:, chosen], colours, photo["share"])
    return out


def _lay_on_all(
    photos: Photos, albedo: Tensor, rows: Tensor, surface: Fetched, points: Tensor, footprint: Tensor
) -> Tensor:
    """The same, looking up tiles and panoramas for every ray: a GPU would wait to learn which rays need which."""
    photo = _columns(rows)
    is_tile, is_panorama = (rows[:, 0] == kind for kind in (TILE, PANORAMA))
    # Numbers of tiles are not those of panoramas.
    as_tile, as_panorama = ({**photo, "photo": photo["photo"] * chosen} for chosen in (is_tile, is_panorama))
    tiles = (_tile_colours(photos, as_tile, surface, points, footprint) * photo["tint"]).clamp(0.01, 0.95)
    colours = torch.where(is_tile, tiles, _far_colours(photos, as_panorama, points) * photo["tint"])
    return torch.lerp(albedo, colours, photo["share"] * (is_tile | is_panorama))
