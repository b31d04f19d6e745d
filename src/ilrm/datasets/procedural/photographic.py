"""How scenes in the style "photographic" differ: photos on their surfaces, furniture, windows, all sorts of light.

Everything here is drawn from a generator of its own, so that a seed has the same cameras in both styles.
"""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray

from ilrm.datasets.procedural import materials, photos, table
from ilrm.datasets.procedural.furniture import Part, Role
from ilrm.datasets.procedural.objects import BOX, Array, Primitive

# ellipsoids, boxes and cylinders in a world: as many as the index has room for
MOST = (18, 22, 16)
_STREAM = 2  # 0 is the world's, 1 the surface points'
_WALLS = (photos.BRICK, photos.CONCRETE, photos.WOOD, photos.ROCK, photos.PAVING)
_FLOORS = (photos.WOOD, photos.FLOOR, photos.CONCRETE, photos.PAVING, photos.BRICK)
_GROUNDS = (photos.GRASS, photos.GRAVEL, photos.FOREST, photos.ROCK, photos.PAVING, photos.LAWN, photos.BRICK)


class Dresser:
    """Chooses paints, photos and light for one world."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng([seed, _STREAM])

    # --- paints and photos of parts ---

    def paint(self, part: Part) -> table.Row:
        """The paint of a part by its role."""
        size = 2.0 * float(part.primitive.half.max())
        match part.role:
            case "wood" | "bark":
                return materials.material(self.rng, size, "wood") | {"palette": self._shades(0.07, 0.45, 0.55)}
            case "leaf":
                return materials.material(self.rng, size, "clouds") | {"palette": self._shades(0.26, 0.5, 0.4)}
            case "metal":
                return materials.material(self.rng, size, "plain") | {"gloss": (0.3, 40.0)}
            case "frame":
                white = np.full((4, 3), self.rng.choice([0.8, 0.7, 0.3, 0.05]))
                return materials.material(self.rng, size, "plain") | {"palette": white}
            case "books":
                return self._books(part.primitive)
            case _:
                return materials.material(self.rng, size)

    def _shades(self, hue: float, saturation: float, value: float) -> Array:
        """(4, 3) linear colours around one."""
        rng = self.rng
        hue, value = hue + rng.normal(0, 0.03), value * rng.uniform(0.5, 1.5)
        made = [
            colorsys.hsv_to_rgb(
                (hue + rng.normal(0, 0.015)) % 1.0,
                float(np.clip(saturation * rng.uniform(0.6, 1.3), 0, 1)),
                float(np.clip(value * rng.uniform(0.7, 1.3), 0.05, 0.95)),
            )
            for _ in range(4)
        ]
        return np.array(made) ** 2.2

    def _books(self, primitive: Primitive) -> table.Row:
        """Spines of many colours, a few to a shelf's board."""
        thick = self.rng.uniform(0.02, 0.045)
        return materials.material(self.rng, 0.2, "mosaic") | {
            "cell": (1.0 / thick, 0.0, 0.0, 0.0),
            "line": (self.rng.uniform(0.03, 0.08), 0.9),
            "patch": (0.3, 12.0, 0.5),
            "detail": (0.05, 0.05, 0.9, 0.03),
        }

    def mapping(self, part: Part) -> Array | None:
        """(3, 4) texture map where the role asks for one of its own."""
        if part.role != "books":
            return None
        # Cells along the shelf only: one row of spines. Rows of the map are texture axes.
        axes, centre = part.primitive.axes, part.primitive.centre
        linear = np.stack([axes[:, 0], 1e-3 * axes[:, 1], 1e-3 * axes[:, 2]])
        return np.concatenate([linear, (self.rng.uniform(5.0, 40.0, 3) - linear @ centre)[:, None]], axis=1)

    def photo(self, primitive: Primitive, role: Role = "any") -> photos.Row:
        """The photo of a primitive, or none."""
        rng = self.rng
        if role == "window":
            return photos.pack(kind=photos.PORTAL)
        if role == "picture" or (role == "any" and primitive.shape == BOX and rng.random() < 0.2):
            half = np.sort(primitive.half)
            picture = int(rng.choice(photos.PICTURES))
            tint = self._tint(picture)
            return self._tile(picture, tint, np.full(3, 0.5), np.full(2, 0.5), 0.5 / half[1], share=1.0)
        tiles, chance = {
            "wood": ((photos.WOOD, photos.FLOOR), 0.5),
            "leaf": ((photos.GRASS, photos.LAWN, photos.FOREST), 0.4),
            "bark": ((photos.ROCK, photos.FOREST), 0.5),
            "any": (photos.SURFACES, 0.35),
        }.get(role, ((), 0.0))
        if rng.random() >= chance:
            return photos.no_photo()
        tile, often = int(rng.choice(tiles)), 1.0 / rng.uniform(0.3, 1.2)
        tint = self._tint(tile, green=role == "leaf")
        return self._tile(tile, tint, primitive.half * often, rng.uniform(0, 2, 2), often, rng.uniform(0.6, 1.0))

    def _tint(self, tile: int, green: bool = False) -> Array:
        """(3,) factors: colour for grey photos, a change of light for others."""
        rng = self.rng
        if tile not in photos.GREY:
            neutral = np.array([0.75, 1.1, 0.95]) if tile == photos.ROCK else np.ones(3)  # taken at dawn
            return rng.uniform(0.7, 1.4) * np.exp(rng.normal(0, 0.1, 3)) * neutral
        hue = {photos.BRICK: 0.04, photos.GRASS: 0.25, photos.GRAVEL: 0.09}[tile]
        hue, saturation = (0.27, 0.6) if green else (hue + rng.normal(0, 0.04), rng.uniform(0.0, 0.6))
        colour = np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, 1.0)) ** 2.2
        return rng.uniform(1.2, 2.6) * colour

    @staticmethod
    def _tile(tile: int, tint: Array, size: Array, offset: Array, density: float, share: float) -> photos.Row:
        return photos.pack(
            kind=photos.TILE, photo=tile, share=share, size=size, offset=offset, density=density, tint=tint
        )

    def calm(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same rows (S, table.WIDTH) with less vivid colours, each by chance."""
        where = table.place("palette")
        palette = rows[:, where].reshape(-1, 4, 3)
        grey = palette.mean(-1, keepdims=True)
        less = self.rng.uniform(0.0, 0.8, (len(rows), 1, 1)).astype(np.float32)
        out = rows.copy()
        out[:, where] = (palette + less * (grey - palette)).reshape(-1, 12)
        return out

    # --- the backdrop ---

    def backdrop(self, is_room: bool, windows: int) -> list[photos.Row]:
        """Photos of the six walls, the ground and the sky."""
        rng = self.rng
        shared = self._large(_WALLS, 0.5)
        walls = [self._large(_WALLS, 0.6) if rng.random() < 0.3 else shared for _ in range(4)]
        floor, ceiling = self._large(_FLOORS, 0.7), self._large(_WALLS, 0.15)
        ground = self._large(_GROUNDS, 0.8)
        sky = photos.no_photo()
        if windows or (not is_room and rng.random() < 0.75):
            sky = photos.pack(
                kind=photos.PANORAMA,
                photo=int(rng.integers(photos.PANORAMAS)),
                share=1.0,
                offset=(rng.random(), 0.0),
                tint=rng.uniform(0.5, 2.5 if is_room else 1.4) * np.exp(rng.normal(0, 0.08, 3)),
            )
        return [*walls, floor, ceiling, ground, sky]

    def _large(self, tiles: tuple[int, ...], chance: float) -> photos.Row:
        """A photo that repeats over a wall or the ground, or none."""
        rng = self.rng
        if rng.random() >= chance:
            return photos.no_photo()
        tile, often = int(rng.choice(tiles)), 1.0 / rng.uniform(0.5, 2.2)
        offset = rng.uniform(0, 2, 2)
        return self._tile(tile, self._tint(tile), np.full(3, often), offset, often, rng.uniform(0.6, 1.0))

    def dome(self) -> float:
        """Radius of the sky: what is seen through windows and behind the ground is far."""
        return float(self.rng.uniform(12.0, 24.0))

    # --- light ---

    def light(self, lights: Array, ambient: Array) -> tuple[Array, Array, float]:
        """Lights (2, 7), ambient (2, 3) and exposure: from flat to harsh, from candles to a blue hour."""
        rng = self.rng
        lights, ambient = lights.copy(), ambient.copy()
        warmth = rng.normal(0.0, 0.25)
        warm = np.array([1.0 + warmth, 1.0, 1.0 - warmth]).clip(0.4, 1.6)
        lights[0, 3:6] *= warm * rng.uniform(0.5, 2.0)
        lights[1, 3:6] *= warm[::-1] if rng.random() < 0.4 else warm
        lights[:, 6] *= rng.uniform(0.3, 2.0, 2)
        ambient = ambient * rng.uniform(0.3, 1.6)
        return lights, ambient, float(rng.uniform(0.15, 0.65))
