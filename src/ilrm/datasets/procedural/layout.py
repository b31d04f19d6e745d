"""Drawing a world from a seed: a room or open ground, cameras, and objects that do not block the cameras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ilrm.datasets.procedural import furniture, materials, objects, paths, photographic, photos, table
from ilrm.datasets.procedural.config import ProceduralConfig
from ilrm.datasets.procedural.furniture import Part
from ilrm.datasets.procedural.objects import Array, Primitive
from ilrm.datasets.procedural.photographic import Dresser

MOST = (16, 16, 16)  # ellipsoids, boxes and cylinders in a world
_NOWHERE = 1e5
_SUN_DISTANCE = 60.0
_DIRECTIONS = [sign * np.eye(3)[axis] for axis in range(3) for sign in (-1.0, 1.0)]  # of the walls, outwards
_WALL_STYLES = ("plain", "clouds", "tiles", "patches", "stripes", "marble", "mosaic")
_WALL_CHANCES = (0.25, 0.35, 0.12, 0.12, 0.05, 0.06, 0.05)
_FLOOR_STYLES = ("wood", "tiles", "clouds", "checker", "patches", "marble", "mosaic", "stripes")
_FLOOR_CHANCES = (0.28, 0.2, 0.18, 0.06, 0.12, 0.08, 0.04, 0.04)


@dataclass(frozen=True)
class World:
    """Everything that a seed determines, as numpy arrays.

    Attributes:
        c2w: (V, 4, 4) cameras.
        fov: horizontal field of view in degrees.
        primitives: sorted by shape, with ``rows`` (P, table.WIDTH) of the surface table.
        backdrop: (8, table.WIDTH) rows of the six walls, the ground and the sky.
        room, room_centre: (3,) half extents and centre of the room; huge outdoors.
        dome: radius of the sky; huge indoors, but where there are windows.
        ground: height of the ground; far down indoors.
        lights: (2, 7) position, colour, radius.
        ambient: (2, 3) light from above and from below.
        exposure: mean brightness of the images, in linear light.
        laid: (P + 8, photos.WIDTH) photos of the primitives and the backdrop; None in the plain style.
    """

    c2w: Array
    fov: float
    primitives: tuple[Primitive, ...]
    rows: NDArray[np.float32]
    backdrop: NDArray[np.float32]
    room: Array
    room_centre: Array
    dome: float
    ground: float
    lights: Array
    ambient: Array
    exposure: float
    laid: NDArray[np.float32] | None = None


@dataclass
class _Builder:
    """Collects objects, except those that would be too close to a camera or overflow the tables.

    Attributes:
        dresser: puts photos on them; None in the plain style.
    """

    rng: np.random.Generator
    cameras: Array  # (V, 3)
    clearance: float
    dresser: Dresser | None = None
    primitives: list[Primitive] = field(default_factory=list)
    rows: list[NDArray[np.float32]] = field(default_factory=list)
    laid: list[photos.Row] = field(default_factory=list)

    def add(self, made: Sequence[Primitive], paint: table.Row | None = None, mapping: Array | None = None) -> bool:
        """Add the parts of an object; return False if they do not fit.

        Args:
            paint: one paint for all parts. By default most objects get a single random paint, some one per part.
            mapping: (3, 4) texture map shared by all parts, instead of one that follows each part's axes.
        """
        size = max(float(part.half.max()) for part in made)
        if not self._fits(made, size):
            return False
        each = paint is None and self.rng.random() < 0.3
        shared = paint or materials.material(self.rng, 2.0 * size)
        for part in made:
            own = materials.material(self.rng, 2.0 * float(part.half.max())) if each else shared
            own_map = materials.texture_map(self.rng, part.axes, part.centre) if mapping is None else mapping
            self._append(part, own, own_map, self.dresser.photo(part) if self.dresser else photos.no_photo())
        return True

    def add_parts(self, made: Sequence[Part]) -> bool:
        """Add a piece of furniture, each part painted by its role; False if it does not fit."""
        assert self.dresser is not None
        primitives = [part.primitive for part in made]
        if not self._fits(primitives, max(float(part.half.max()) for part in primitives)):
            return False
        for part in made:
            mapping = self.dresser.mapping(part)
            if mapping is None:
                mapping = materials.texture_map(self.dresser.rng, part.primitive.axes, part.primitive.centre)
            paint, photo = self.dresser.paint(part), self.dresser.photo(part.primitive, part.role)
            self._append(part.primitive, paint, mapping, photo)
        return True

    def _fits(self, made: Sequence[Primitive], size: float) -> bool:
        margin = self.clearance + 0.5 * min(size, 1.5)
        counts = np.bincount([p.shape for p in (*self.primitives, *made)], minlength=3)
        most = MOST if self.dresser is None else photographic.MOST
        return not ((counts > most).any() or any(part.distance(self.cameras).min() < margin for part in made))

    def _append(self, part: Primitive, paint: table.Row, mapping: Array, photo: photos.Row) -> None:
        geometric = {
            "frame": (part.axes / part.half).T,
            "origin": part.centre,
            "shape": np.eye(3)[part.shape],
            "normal": np.zeros(3),
            "texture": mapping,
        }
        self.primitives.append(part)
        self.rows.append(table.pack({**paint, **geometric}))
        self.laid.append(photo)


def _backdrop_row(paint: table.Row, normal: Array, mapping: Array) -> NDArray[np.float32]:
    geometric = {"frame": np.eye(3), "origin": np.zeros(3), "shape": np.zeros(3), "normal": normal}
    return table.pack({**paint, **geometric, "texture": mapping})


def _level_map(rng: np.random.Generator) -> Array:
    """(3, 4) texture map that keeps the third texture axis vertical, for floors and grounds."""
    linear = objects.yaw(rng.choice([0.0, rng.uniform(0, np.pi)])).T
    linear[int(rng.integers(2))] *= rng.choice([1.0, 0.25], p=[0.6, 0.4])
    return np.concatenate([linear, rng.uniform(5.0, 40.0, (3, 1))], axis=1)


def _walls(rng: np.random.Generator, size: float) -> list[NDArray[np.float32]]:
    """Rows of four walls, floor and ceiling; most walls of a room share one paint."""
    shared = materials.material(rng, size, str(rng.choice(_WALL_STYLES, p=_WALL_CHANCES)))
    mapping = materials.texture_map(rng, np.eye(3), np.zeros(3))
    rows = []
    for outward in _DIRECTIONS[:4]:
        own = materials.material(rng, size, str(rng.choice(_WALL_STYLES, p=_WALL_CHANCES)))
        rows.append(_backdrop_row(own if rng.random() < 0.25 else shared, -outward, mapping))
    floor = materials.material(rng, size, str(rng.choice(_FLOOR_STYLES, p=_FLOOR_CHANCES)))
    ceiling = materials.material(rng, size, str(rng.choice(_WALL_STYLES, p=_WALL_CHANCES)))
    for paint, outward in ((floor, _DIRECTIONS[4]), (ceiling, _DIRECTIONS[5])):
        rows.append(_backdrop_row(paint, -outward, _level_map(rng)))
    return rows


def _sky(rng: np.random.Generator, dome: float) -> NDArray[np.float32]:
    """Row of a sky with clouds, which emits its own light."""
    blue = np.array([0.25, 0.45, 0.85]) * rng.uniform(0.6, 1.1) + rng.normal(0, 0.05, 3)
    white = np.full(3, rng.uniform(0.7, 0.95)) + rng.normal(0, 0.03, 3)
    if rng.random() < 0.35:
        blue = 0.7 * white + 0.3 * blue  # overcast
    paint = materials.material(rng, dome, "clouds") | {
        "palette": np.clip([blue, white, white, white], 0.02, 0.95),
        "noise": (rng.uniform(1.0, 3.0) / dome, 0.55),
        "ramp": (rng.uniform(0.15, 0.8), rng.uniform(-0.6, 0.4)),
        "patch": (0.0, 1.0, 0.0),
        "detail": (0.01, 0.05, 0.0, 0.0),
        "gloss": (0.0, 8.0),
        "glow": (1.0,),
    }
    mapping = np.concatenate([np.diag([1.0, 1.0, 2.0]), rng.uniform(5, 40, (3, 1))], axis=1)
    return _backdrop_row(paint, np.array([0.0, 0.0, -1.0]), mapping)


def _tinted(rng: np.random.Generator, strength: float) -> Array:
    """(3,) colour of a warm or cool white light."""
    warmth = rng.normal(0.0, 0.12)
    return strength * np.array([1.0 + warmth, 1.0, 1.0 - warmth])


def _lights(rng: np.random.Generator, room: Array | None) -> tuple[Array, Array]:
    """Key and fill light (2, 7) and the ambient light (2, 3): lamps under the ceiling of a room, suns outside."""
    lights = np.zeros((2, 7))
    share = rng.uniform(0.1, 0.45)
    for k, strength in enumerate((1.0 - share, share)):
        if room is not None:
            position = room * np.array([*rng.uniform(-0.8, 0.8, 2), rng.uniform(1.75, 1.95)])
            radius = rng.uniform(0.08, 0.5)
        else:
            azimuth, elevation = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 1.4)
            level = np.array([np.cos(azimuth), np.sin(azimuth)]) * np.cos(elevation)
            position = _SUN_DISTANCE * np.array([*level, np.sin(elevation)])
            radius = rng.uniform(1.0, 6.0)
        lights[k] = [*position, *_tinted(rng, strength), radius]
    level = rng.uniform(0.25, 0.7)
    return lights, np.stack([_tinted(rng, level), _tinted(rng, level * rng.uniform(0.4, 0.9))])


def _furnish(builder: _Builder, config: ProceduralConfig, focus: Array, reach: Array, is_room: bool) -> None:
    """Add objects, most of them around the focus; also panels on a room's walls, or large distant objects outdoors."""
    rng = builder.rng
    count = int(rng.integers(config.objects[0], config.objects[1] + 1))
    if builder.dresser is not None:
        count = count // 2  # furniture takes the place of the others
    for k in range(count):
        backdrop = rng.random() < 0.25
        for _attempt in range(6):
            if is_room and backdrop:
                made = objects.wall_panel(rng, reach, np.array([0.0, 0.0, reach[2]]))
            elif backdrop:
                azimuth, radius = rng.uniform(0, 2 * np.pi), rng.uniform(1.1, 1.8) * reach[0]
                foot = np.array([radius * np.cos(azimuth), radius * np.sin(azimuth), 0.0])
                made = objects.sample_object(rng, foot, rng.uniform(1.0, 3.5))
            else:
                size = float(np.exp(rng.uniform(np.log(0.2), np.log(1.3))))
                around, anywhere = focus[:2] + rng.normal(0.0, 0.9, 2), rng.uniform(-reach[:2], reach[:2])
                limit = reach[:2] - 0.4 * size
                foot = np.array([*np.clip(around if k < 0.7 * count else anywhere, -limit, limit), 0.0])
                made = objects.sample_object(rng, foot, size)
            if builder.add(made):
                break


def _furniture(builder: _Builder, config: ProceduralConfig, focus: Array, reach: Array, is_room: bool) -> int:
    """Furniture around the focus, windows and posters on the walls; how many windows there are."""
    assert builder.dresser is not None
    rng, centre = builder.dresser.rng, np.array([0.0, 0.0, reach[2]])
    room = furniture.Room(reach, centre, focus - builder.cameras.mean(0))
    windows = 0
    if is_room:
        for _ in range(int(rng.choice([0, 1, 2], p=[0.25, 0.45, 0.3]))):
            windows += builder.add_parts(furniture.window(rng, room))
        for _ in range(int(rng.integers(0, 4))):
            builder.add_parts(furniture.poster(rng, room))
    most = max(1, round(config.objects[1] / 6)) if config.objects[1] else 0
    for _ in range(int(rng.integers(min(most, 1), most + 1))):
        for _attempt in range(6):
            foot = np.array([*(focus[:2] + rng.normal(0.0, 0.9, 2)).clip(0.5 - reach[:2], reach[:2] - 0.5), 0.0])
            if builder.add_parts(furniture.sample_furniture(rng, foot, rng.uniform(0.5, 1.2), is_room)):
                break
    return windows


def _space(rng: np.random.Generator, config: ProceduralConfig, reach: Array, path: str) -> paths.Space:
    """The space for the cameras, from table height to a raised arm."""
    focus = np.array([*rng.uniform(-0.35, 0.35, 2) * reach[:2], rng.uniform(0.1, 0.9)])
    if path == "orbit":
        focus[:2] *= 0.3
    wall = config.clearance + 0.15
    low, high = np.array([*(wall - reach[:2]), 0.5]), np.array([*(reach[:2] - wall), min(2.6, 2 * reach[2] - wall)])
    return paths.Space(low, high, focus)


def sample_world(seed: int, config: ProceduralConfig) -> World:
    """Draw the world of a seed: first the cameras, then the surfaces."""
    rng = np.random.default_rng(seed)
    is_room = config.kind == "room" or (config.kind == "mixed" and rng.random() < 0.65)
    path = config.path if config.path != "mixed" else str(rng.choice(["handheld", "orbit"], p=[0.65, 0.35]))
    reach = rng.uniform([2.0, 2.0, 1.2], [4.0, 4.0, 1.8]) if is_room else np.array([*[rng.uniform(2.5, 5.0)] * 2, 1.8])
    space = _space(rng, config, reach, path)
    c2w = (paths.orbit if path == "orbit" else paths.handheld)(rng, space, config)
    dresser = Dresser(seed) if config.style == "photographic" else None
    builder = _Builder(rng, c2w[:, :3, 3], config.clearance, dresser)

    dome = 1e6 if is_room else rng.uniform(9.0, 16.0)
    ground_paint = materials.material(rng, 4.0, str(rng.choice(_FLOOR_STYLES, p=_FLOOR_CHANCES)))
    ground_map = _level_map(rng)
    if not is_room:
        for _ in range(int(rng.integers(0, 7))):
            at = np.array([*rng.uniform(-1.5, 1.5, 2) * reach[0], 0.0])
            builder.add(objects.mound(rng, at), ground_paint, ground_map)
    windows = 0 if dresser is None else _furniture(builder, config, space.focus, reach, is_room)
    _furnish(builder, config, space.focus, reach, is_room)
    ground = _backdrop_row(ground_paint, np.array([0.0, 0.0, 1.0]), ground_map)
    backdrop = np.stack([*_walls(rng, 2.0 * float(reach.mean())), ground, _sky(rng, dome)])
    lights, ambient = _lights(rng, reach if is_room else None)
    order = sorted(range(len(builder.primitives)), key=lambda k: builder.primitives[k].shape)
    world = World(
        c2w=c2w,
        fov=float(rng.uniform(*config.fov)),
        primitives=tuple(builder.primitives[k] for k in order),
        rows=np.stack([builder.rows[k] for k in order]) if order else np.zeros((0, table.WIDTH), np.float32),
        backdrop=backdrop,
        room=reach if is_room else np.full(3, _NOWHERE),
        room_centre=np.array([0.0, 0.0, reach[2]]),
        dome=dome,
        ground=-_NOWHERE if is_room else 0.0,
        lights=lights,
        ambient=ambient,
        exposure=float(rng.uniform(0.3, 0.6)),
    )
    if dresser is None:
        return world
    lights, ambient, exposure = dresser.light(lights, ambient)
    laid = np.stack([*(builder.laid[k] for k in order), *dresser.backdrop(is_room, windows)])
    dome = dresser.dome() if windows or not is_room else dome
    rows, backdrop = dresser.calm(world.rows), dresser.calm(world.backdrop)
    return replace(
        world, rows=rows, backdrop=backdrop, laid=laid, lights=lights, ambient=ambient, exposure=exposure, dome=dome
    )
