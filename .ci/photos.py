"""Makes src/ilrm/assets/photos from public-domain photos that scikit-image and viser ship; see the NOTICE there.

python .ci/photos.py
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from PIL import Image

OUTPUT = Path(__file__).resolve().parents[1] / "src" / "ilrm" / "assets" / "photos"
TILE, COLUMNS = 256, 5

# Ten surfaces, then ten pictures. Parts of photos: file, and left, top, right, bottom as shares. Views into panoramas:
# file, azimuth, elevation and field of view in degrees.
TILES = (
    ("brick.png", (0.0, 0.0, 1.0, 1.0)),
    ("grass.png", (0.0, 0.0, 0.6, 0.6)),
    ("gravel.png", (0.0, 0.0, 0.6, 0.6)),
    ("coffee.png", (0.77, 0.0, 1.0, 0.42)),
    ("forest_slope", (20, -60, 70)),
    ("kiara_1_dawn", (30, -50, 70)),
    ("empty_warehouse_01", (10, -50, 70)),
    ("venice_sunset", (130, -60, 60)),
    ("st_fagans_interior", (180, -75, 50)),
    ("rooitou_park", (45, -60, 70)),
    ("coffee.png", (0.1, 0.0, 0.77, 1.0)),
    ("chelsea.png", (0.15, 0.0, 0.82, 1.0)),
    ("hubble_deep_field.jpg", (0.3, 0.3, 0.7, 0.76)),
    ("rocket.jpg", (0.2, 0.0, 0.87, 1.0)),
    ("retina.jpg", (0.1, 0.1, 0.9, 0.9)),
    ("forest_slope", (250, 5, 60)),
    ("empty_warehouse_01", (60, 8, 60)),
    ("potsdamer_platz", (350, 12, 55)),
    ("venice_sunset", (335, 10, 45)),
    ("st_fagans_interior", (100, -10, 70)),
)
PANORAMAS = ("forest_slope", "kiara_1_dawn", "potsdamer_platz", "rooitou_park", "venice_sunset")


def _folder(package: str, *parts: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent.joinpath(*parts)


def _panorama(name: str) -> Image.Image:
    return Image.open(_folder("viser", "_assets", "hdri") / f"{name}_1k.jpg").convert("RGB")


def _part(name: str, box: tuple[float, float, float, float]) -> Image.Image:
    photo = Image.open(_folder("skimage", "data") / name).convert("RGB")
    width, height = photo.size
    corners = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
    return photo.resize((TILE, TILE), Image.Resampling.LANCZOS, box=corners)


def _view(name: str, azimuth: float, elevation: float, fov: float) -> Image.Image:
    panorama = torch.from_numpy(np.array(_panorama(name))).permute(2, 0, 1)[None].float()
    edge = np.tan(np.radians(fov) / 2)
    y, x = torch.meshgrid(*[torch.linspace(-edge, edge, TILE)] * 2, indexing="ij")
    rise, turn = np.radians(elevation), np.radians(azimuth)
    forward, up = np.cos(rise) + np.sin(rise) * y, np.sin(rise) - np.cos(rise) * y
    longitude = torch.atan2(x, forward) + turn
    latitude = torch.atan2(up, torch.hypot(x, forward))
    u = (longitude / (2 * np.pi)) % 1.0 * 2 - 1
    grid = torch.stack([u, -latitude / (np.pi / 2)], dim=-1)[None]
    seen = torch.nn.functional.grid_sample(panorama, grid, padding_mode="border", align_corners=False)[0]
    return Image.fromarray(seen.permute(1, 2, 0).round().byte().numpy())


def main() -> None:
    """Write tiles.jpg and panoramas.jpg."""
    tiles = [_part(name, where) if len(where) == 4 else _view(name, *where) for name, where in TILES]
    atlas = Image.new("RGB", (COLUMNS * TILE, -(-len(tiles) // COLUMNS) * TILE))
    for k, tile in enumerate(tiles):
        atlas.paste(tile, (k % COLUMNS * TILE, k // COLUMNS * TILE))
    atlas.save(OUTPUT / "tiles.jpg", quality=82)
    far = Image.new("RGB", (1024, 512 * len(PANORAMAS)))
    for k, name in enumerate(PANORAMAS):
        far.paste(_panorama(name), (0, 512 * k))
    far.save(OUTPUT / "panoramas.jpg", quality=80)


if __name__ == "__main__":
    main()
