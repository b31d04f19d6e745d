"""Solid textures: the colour depends only on the surface point, so that it is the same in every view."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from ilrm.datasets.procedural.table import Fetched

_VOLUME = 48  # voxels along one period of the noise
_PERIOD = 12.0  # noise cells along one period
_OCTAVES = 6
_CELL_COLOURS = 4096
# Ratio of frequencies between octaves; not 2, so that their periods do not align.
_LACUNARITY = 2.07


@dataclass(frozen=True, eq=False)
class Tables:
    """Numbers that all textures are made of, on one device.

    Attributes:
        noise: (1, 3, D, D, D) smooth periodic noise of unit deviation, with one voxel repeated at the far end.
        cells: (3, _CELL_COLOURS) uniform numbers for the cells of tilings.
    """

    noise: Tensor
    cells: Tensor


@lru_cache(maxsize=4)
def tables(device: torch.device) -> Tables:
    """The same on every device."""
    return Tables(_noise_volume().to(device), _cell_table().to(device))


def _noise_volume() -> Tensor:
    generator = torch.Generator().manual_seed(20240607)
    white = torch.randn(3, _VOLUME, _VOLUME, _VOLUME, generator=generator)
    frequency = torch.fft.fftfreq(_VOLUME)
    radius = (frequency[:, None, None] ** 2 + frequency[:, None] ** 2 + frequency**2).sqrt()
    peak = _PERIOD / _VOLUME / 1.6
    band = torch.exp(-0.5 * ((radius - peak) / (0.45 * peak)) ** 2) * (radius > 0)
    smooth = torch.fft.ifftn(torch.fft.fftn(white, dim=(1, 2, 3)) * band, dim=(1, 2, 3)).real
    smooth = smooth / smooth.flatten(1).std(1)[:, None, None, None]
    return F.pad(smooth[None], (0, 1, 0, 1, 0, 1), mode="circular").float()


def _cell_table() -> Tensor:
    generator = torch.Generator().manual_seed(77)
    return torch.rand(3, _CELL_COLOURS, generator=generator)


@dataclass(frozen=True, eq=False)
class Surface:
    """The unlit surface at R rays: albedo (3, R), noise (3, R) and fine noise (3, R)."""

    albedo: Tensor
    noise: Tensor
    fine: Tensor


def _lookup(volume: Tensor, position: Tensor) -> Tensor:
    """(3, R) noise of a volume at positions (3, R) in noise cells."""
    where = position / _PERIOD
    where = ((where - where.floor()) * 2.0 - 1.0).T
    return F.grid_sample(volume, where[None, None, None], align_corners=True).view(3, -1)


def _fractal(
    volume: Tensor, position: Tensor, footprint: Tensor, frequency: Tensor, gain: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums of noise over all octaves and over the finer half; octaves finer than two pixels are faded out."""
    total, fine = torch.zeros_like(position), torch.zeros_like(position)
    weight, energy = torch.ones_like(gain), torch.zeros_like(gain)
    for octave in range(_OCTAVES):
        shift = 3.17 * octave
        fade = ((0.75 - footprint * frequency) * 2.5).clamp_(0.0, 1.0)
        value = _lookup(volume, position * frequency + shift) * fade
        total = torch.addcmul(total, value, weight)
        if octave >= _OCTAVES // 2:
            fine += value
        energy = torch.addcmul(energy, weight, weight)
        weight = weight * gain
        frequency = frequency * _LACUNARITY
    return total * energy.rsqrt(), fine


def _cells(table: Tensor, position: Tensor, shift: Tensor, solid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tiling by unit cells: offsets from cell centres (3, R), parity (R,), three random numbers per cell (3, R)."""
    x, y, z = position
    row = y.floor()
    layer = (z * solid).floor()
    x = x + shift * row
    column = x.floor()
    offset = torch.stack([x - column, y - row, z * solid - layer]) - 0.5
    offset[2] *= solid
    i, j, k = column.int(), row.int(), layer.int()
    parity = ((i + j + k) & 1).to(position)
    label = (i * 73 + j * 1193 + k * 3571) & (_CELL_COLOURS - 1)
    return offset, parity, table[:, label.long()]


def evaluate(tables: Tables, surface: Fetched, points: Tensor, footprint: Tensor) -> Surface:
    """Colour of surface points.

    Args:
        surface: columns of the R surfaces.
        points: (3, R) in the world.
        footprint: (R,) width of a pixel on the surface in world units.
    """
    affine = surface["texture"].view(3, 4, -1)
    position = affine[:, 3] + (affine[:, :3] * points).sum(1)
    footprint = footprint * affine[:, :3].square().sum(1).amax(0).sqrt()
    frequency, gain = surface["noise"]
    noise, fine = _fractal(tables.noise, position, footprint, frequency, gain)

    density, warp, shift, solid = surface["cell"]
    offset, parity, chance = _cells(tables.cells, torch.addcmul(position * density, noise, warp), shift, solid)
    blur = (footprint * density * 1.2).clamp_min_(1e-3)
    legible = (1.6 - 2.0 * blur).clamp_(0.0, 1.0)
    edge = 0.5 - torch.maximum(torch.maximum(offset[0].abs(), offset[1].abs()), offset[2].abs())
    stripe = ((offset[0].abs() - 0.25) / blur.clamp_min(0.05)).clamp_(-0.5, 0.5)
    checker = (parity - 0.5) * (edge / blur).clamp_(0.0, 1.0)

    by_noise, by_stripe, by_checker, by_cell = surface["mix"]
    contrast, bias = surface["ramp"]
    blend = by_noise * noise[0] + legible * 2.0 * (
        by_stripe * stripe + by_checker * checker + by_cell * (chance[0] - 0.5)
    )
    first, second, third, fourth = surface["palette"].view(4, 3, -1)
    sharpest = 1.0 / (footprint * frequency * 2.0 + 1e-3)
    blend = ((blend + bias) * contrast.minimum(sharpest) + 0.5).clamp_(0.0, 1.0)
    albedo = first + (second - first) * blend

    threshold, patch_contrast, patch = surface["patch"]
    albedo += (third - albedo) * (((noise[1] - threshold) * patch_contrast).clamp_(0.0, 1.0) * patch)
    half_width, line = surface["line"]
    albedo += (fourth - albedo) * (((half_width - edge) / blur + 0.5).clamp_(0.0, 1.0) * line * legible)
    radius, dot = surface["dot"]
    distance = offset.square().sum(0).sqrt()
    albedo += (fourth - albedo) * (((radius - distance) / blur + 0.5).clamp_(0.0, 1.0) * dot * legible)

    grain, stain, tint, _ = surface["detail"]
    shade = 1.0 + grain * fine[2] + stain * noise[2] + tint * legible * (chance[1] - 0.5)
    return Surface((albedo * shade.clamp_(0.25, 2.0)).clamp_(0.01, 0.95), noise, fine)
