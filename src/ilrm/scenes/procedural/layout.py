"""What stands where: rooms and open ground with objects made of ellipsoids, boxes, cylinders and rods (z up)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ilrm.scenes.procedural import materials, paths, table
from ilrm.scenes.procedural.casting import HILL_WAVES
from ilrm.scenes.procedural.config import ProceduralConfig

Array = NDArray[np.float64]
ELLIPSOID, BOX, CYLINDER = range(3)
MOST = (12, 14, 14)  # primitives of each shape in a world
_NOWHERE = 1e5
_OBJECTS = (
    "ellipsoid",
    "bumpy",
    "box",
    "stack",
    "cylinder",
    "log",
    "table",
    "rods",
    "frame",
    "lamp",
    "floating",
    "panel",
)
_OBJECT_CHANCES = (0.12, 0.1, 0.16, 0.08, 0.12, 0.05, 0.08, 0.05, 0.04, 0.05, 0.07, 0.08)


@dataclass(frozen=True)
class Primitive:
    """One ellipsoid, box or cylinder: centre (3,), axes (3, 3) as columns, half extents (3,) and its table row."""

    shape: int
    centre: Array
    axes: Array
    half: Array
    row: NDArray[np.float32]

    def distance(self, points: Array) -> Array:
        """(V,) lower bound of the distance of points (V, 3) to the surface from outside; exact but for ellipsoids."""
        local = np.abs((points - self.centre) @ self.axes)
        if self.shape == BOX:
            return np.linalg.norm(np.maximum(local - self.half, 0.0), axis=1)
        if self.shape == CYLINDER:
            radial = np.hypot(local[:, 0], local[:, 1]) - self.half[0]
            return np.hypot(np.maximum(radial, 0.0), np.maximum(local[:, 2] - self.half[2], 0.0))
        to_ball = np.linalg.norm(local, axis=1) - self.half.max()
        return np.maximum(to_ball, (np.linalg.norm(local / self.half, axis=1) - 1.0) * self.half.min())


@dataclass(frozen=True)
class World:
    """All that a seed decides, before any tensor."""

    c2w: Array
    fov: float
    primitives: tuple[Primitive, ...]
    backdrop: NDArray[np.float32]  # (8, table.WIDTH) rows of the walls, the ground and the sky
    room_centre: Array
    room: Array
    dome: float
    ground: float
    hills: Array  # (HILL_WAVES, 4)
    lights: Array  # (2, 7): position, colour, radius
    ambient: Array  # (2, 3): from above and from below
    exposure: float


@dataclass
class _Builder:
    """Collects objects and leaves out those that would crowd a camera or overflow the tables."""

    rng: np.random.Generator
    cameras: Array
    clearance: float
    primitives: list[Primitive] = field(default_factory=list)

    def row(self, axes: Array, centre: Array, half: Array, shape: int, paint: dict[str, object]) -> Primitive:
        row = table.pack(
            paint
            | {
                "frame": (axes / half).T,
                "origin": centre,
                "shape": np.eye(3)[shape],
                "normal": np.zeros(3),
                "texture": materials.texture_map(self.rng, axes, centre),
            }
        )
        return Primitive(shape, centre, axes, half, row)

    def add(self, parts: list[tuple[int, Array, Array, Array]], paint: dict[str, object] | None = None) -> bool:
        """Add an object of (shape, centre, axes, half extents) parts in one paint; False if it does not fit."""
        size = max(float(part[3].max()) for part in parts)
        paint = paint or materials.material(self.rng, 2.0 * size)
        made = [self.row(axes, centre, np.maximum(half, 0.008), shape, paint) for shape, centre, axes, half in parts]
        margin = self.clearance + 0.25 * size
        if any(part.distance(self.cameras).min() < margin for part in made):
            return False
        counts = np.bincount([p.shape for p in (*self.primitives, *made)], minlength=3)
        if (counts > MOST).any():
            return False
        self.primitives += made
        return True


def _yaw(angle: float) -> Array:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _along(direction: Array) -> Array:
    """Axes whose third one is ``direction``."""
    z = direction / np.linalg.norm(direction)
    x = np.cross(z, [0.0, 0.0, 1.0] if abs(z[2]) < 0.9 else [1.0, 0.0, 0.0])
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z], axis=1)


Part = tuple[int, Array, Array, Array]


def _rod(a: Array, b: Array, radius: float) -> Part:
    return CYLINDER, (a + b) / 2, _along(b - a), np.array([radius, radius, np.linalg.norm(b - a) / 2])


def _standing(rng: np.random.Generator, kind: str, at: Array, size: float) -> list[Part]:
    """Parts of one object of about ``size`` whose foot is at ``at``."""
    axes = _yaw(rng.uniform(0, 2 * np.pi))
    half = size * rng.uniform(0.25, 0.6, 3)
    up = np.array([0.0, 0.0, 1.0])
    if kind == "ellipsoid":
        return [(ELLIPSOID, at + up * half[2] * rng.uniform(0.75, 1.0), axes, half)]
    if kind == "bumpy":
        centre = at + up * half[2]
        bumps: list[Part] = [(ELLIPSOID, centre, axes, half)]
        for _ in range(rng.integers(2, 5)):
            direction = rng.normal(size=3)
            direction /= np.linalg.norm(direction)
            bumps.append((ELLIPSOID, centre + axes @ (half * direction), axes, half * rng.uniform(0.15, 0.45)))
        return bumps
    if kind == "stack":
        parts: list[Part] = []
        for _ in range(rng.integers(2, 4)):
            parts.append((BOX, at + up * half[2], _yaw(rng.uniform(0, 2 * np.pi)), half))
            at = at + up * 2 * half[2] + 0.1 * half[0] * np.array([*rng.normal(size=2), 0.0])
            half = half * rng.uniform(0.5, 0.95, 3)
        return parts
    if kind == "cylinder":
        radius = half[0]
        return [(CYLINDER, at + up * half[2] * 1.3, axes, np.array([radius, radius, half[2] * 1.3]))]
    if kind == "log":
        radius = 0.5 * half[0]
        return [(CYLINDER, at + up * radius, _along(axes[:, 0]), np.array([radius, radius, half[2] * 1.8]))]
    if kind == "table":
        high, top = size * rng.uniform(0.5, 1.0), np.array([half[0] * 1.5, half[1] * 1.5, 0.03 + 0.03 * size])
        board: list[Part] = [(BOX, at + up * high, axes, top)]
        for sx, sy in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
            foot = at + axes @ np.array([sx * top[0] * 0.88, sy * top[1] * 0.88, 0.0])
            board.append(_rod(foot, foot + up * high, 0.03 * size + 0.01))
        return board
    if kind == "rods":
        parts = []
        for _ in range(rng.integers(2, 5)):
            foot = at + np.array([*rng.normal(0, 0.3 * size, 2), 0.0])
            tip = foot + size * np.array([*rng.normal(0, 0.4, 2), rng.uniform(0.8, 2.0)])
            parts.append(_rod(foot, tip, rng.uniform(0.012, 0.04)))
        return parts
    if kind == "frame":
        corners = [
            at + axes @ (half * 1.4 * np.array([sx, sy, 0.0])) for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1))
        ]
        top, radius = up * 2.8 * half[2], rng.uniform(0.012, 0.03)
        parts = [_rod(corner, corner + top, radius) for corner in corners]
        return parts + [_rod(corners[k] + top, corners[k - 1] + top, radius) for k in range(4)]
    if kind == "lamp":
        high, bulb = size * rng.uniform(1.0, 2.0), size * rng.uniform(0.12, 0.25)
        return [_rod(at, at + up * high, 0.02), (ELLIPSOID, at + up * high, axes, bulb * np.array([1, 1, 0.8]))]
    if kind == "floating":
        shape = int(rng.integers(3))
        half[1] = half[0] if shape == CYLINDER else half[1]
        return [(shape, at + up * (size + rng.uniform(0.0, 1.2)), materials.rotation(rng), 0.7 * half)]
    return [(BOX, at + up * half[2], axes, half)]


def _wall_panel(rng: np.random.Generator, room: Array, centre: Array) -> list[Part]:
    """A picture or shelf on one of the four walls."""
    axis, side = int(rng.integers(2)), rng.choice([-1.0, 1.0])
    half = np.array([rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8), rng.uniform(0.15, 0.5)])
    half[axis] = rng.choice([0.02, 0.05, 0.15], p=[0.5, 0.25, 0.25])
    at = centre + rng.uniform(-0.75, 0.75, 3) * room
    at[axis] = centre[axis] + side * (room[axis] - half[axis] * 0.9)
    return [(BOX, at, np.eye(3), half)]


def _furnish(
    builder: _Builder, world_config: ProceduralConfig, space: paths.Space, room: Array | None, spread: float
) -> None:
    """Place the objects: most of them around the focus, the others anywhere."""
    rng = builder.rng
    low, high = world_config.objects
    for _ in range(int(rng.integers(low, high + 1))):
        kind = str(rng.choice(_OBJECTS, p=_OBJECT_CHANCES))
        for _attempt in range(6):
            size = float(np.exp(rng.uniform(np.log(0.25), np.log(1.3))))
            near = space.focus[:2] + rng.normal(0.0, 0.9, 2)
            anywhere = rng.uniform(-spread, spread, 2)
            foot = np.array([*(near if rng.random() < 0.65 else anywhere), 0.0])
            if room is not None:
                foot[:2] = np.clip(foot[:2], -room[:2] + 0.4 * size, room[:2] - 0.4 * size)
            if kind == "panel" and room is not None:
                parts = _wall_panel(rng, room, np.array([0.0, 0.0, room[2]]))
            else:
                parts = _standing(rng, kind, foot, size)
            if builder.add(parts):
                break


def _backdrop_row(rng: np.random.Generator, normal: Array, size: float, glow: float = 0.0) -> NDArray[np.float32]:
    paint = materials.material(rng, size) | {"glow": (glow,)}
    geometric = {"frame": np.eye(3), "origin": np.zeros(3), "shape": np.zeros(3), "normal": normal}
    mapping = materials.texture_map(rng, np.eye(3), np.zeros(3))
    return table.pack(paint | geometric | {"texture": mapping})


def _sky_row(rng: np.random.Generator, dome: float) -> NDArray[np.float32]:
    """Clouds on a smooth sky; far enough away that only the largest features matter."""
    paint = materials.material(rng, dome, "clouds")
    blue = np.array([0.25, 0.45, 0.85]) * rng.uniform(0.7, 1.1) + rng.normal(0, 0.05, 3)
    white = np.full(3, rng.uniform(0.75, 0.95)) + rng.normal(0, 0.03, 3)
    dark = np.array([0.12, 0.16, 0.1]) * rng.uniform(0.4, 1.5)
    paint |= {"palette": np.clip([blue, white, dark, white], 0.02, 0.95), "noise": (rng.uniform(1.5, 4) / dome, 0.55)}
    paint |= {"ramp": (rng.uniform(0.3, 1.5), rng.uniform(-0.4, 0.2)), "patch": (0.0, 1.0, 0.0), "glow": (1.0,)}
    paint |= {"detail": (0.01, 0.05, 0.0, 0.0), "gloss": (0.0, 8.0)}
    geometric = {"frame": np.eye(3), "origin": np.zeros(3), "shape": np.zeros(3), "normal": np.array([0.0, 0.0, -1.0])}
    mapping = np.concatenate([np.diag([1.0, 1.0, 2.0]), rng.uniform(5, 40, (3, 1))], axis=1)
    return table.pack(paint | geometric | {"texture": mapping})


def _tinted(rng: np.random.Generator, strength: float) -> Array:
    """(3,) light of a slightly warm or cool white."""
    warmth = rng.normal(0.0, 0.12)
    return strength * np.array([1.0 + warmth, 1.0, 1.0 - warmth])


def _lights(rng: np.random.Generator, reach: Array, is_room: bool) -> tuple[Array, Array]:
    """Two lights (2, 7) and the ambient light (2, 3); a room's hang under the ceiling, the first outside is a sun."""
    lights = np.zeros((2, 7))
    share = rng.uniform(0.1, 0.6)
    for k, strength in enumerate((1.0 - share, share)):
        if is_room:
            position = reach * np.array([*rng.uniform(-0.8, 0.8, 2), rng.uniform(1.75, 1.95)])
            radius = rng.uniform(0.08, 0.5)
        else:
            azimuth, elevation = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 1.4)
            position = 60.0 * np.array(
                [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
            )
            radius = rng.uniform(1.0, 6.0)
        lights[k] = [*position, *_tinted(rng, strength), radius]
    level = rng.uniform(0.25, 0.7)
    return lights, np.stack([_tinted(rng, level), _tinted(rng, level * rng.uniform(0.4, 0.9))])


def sample_world(seed: int, config: ProceduralConfig) -> World:
    """The world of a seed: cameras first, then objects that keep clear of them."""
    rng = np.random.default_rng(seed)
    kind = config.kind if config.kind != "mixed" else str(rng.choice(["room", "open"], p=[0.65, 0.35]))
    path = config.path if config.path != "mixed" else str(rng.choice(["handheld", "orbit"], p=[0.65, 0.35]))
    is_room = kind == "room"
    if is_room:
        reach = np.array([rng.uniform(2.0, 4.0), rng.uniform(2.0, 4.0), rng.uniform(1.2, 1.8)])
    else:
        reach = np.array([rng.uniform(3.0, 6.0)] * 2 + [1.8])
    wall = config.clearance + 0.15
    focus = np.array([*rng.uniform(-0.3, 0.3, 2) * reach[:2], rng.uniform(0.2, 1.0)])
    if path == "orbit":
        focus[:2] *= 0.3
    amplitude = 0.0 if is_room or rng.random() < 0.4 else rng.uniform(0.03, 0.14)
    hills = np.zeros((HILL_WAVES, 4))
    wave = rng.uniform(0.25, 1.0, HILL_WAVES) * 2.0
    heading = rng.uniform(0, 2 * np.pi, HILL_WAVES)
    hills[:] = np.stack(
        [amplitude / wave, wave * np.cos(heading), wave * np.sin(heading), rng.uniform(0, 6, HILL_WAVES)], 1
    )
    least = 0.5 + (hills[:, 0].sum() if amplitude else 0.0)
    ceiling = 2 * reach[2] - wall
    space = paths.Space(
        np.array([*(wall - reach[:2]), least]), np.array([*(reach[:2] - wall), min(2.3, ceiling)]), focus
    )
    c2w = (paths.orbit if path == "orbit" else paths.handheld)(rng, space, config)
    builder = _Builder(rng, c2w[:, :3, 3], config.clearance)
    _furnish(builder, config, space, reach if is_room else None, float(reach[0]))
    dome = 1e6 if is_room else rng.uniform(10.0, 18.0)
    size = 2.0 * reach.mean()
    walls = [_backdrop_row(rng, sign * np.eye(3)[axis], size) for axis in range(3) for sign in (1.0, -1.0)]
    if rng.random() < 0.6:  # the four walls of most rooms share one paint
        walls[1:4] = [_with_normal(walls[0], row) for row in walls[1:4]]
    backdrop = np.stack([*walls, _backdrop_row(rng, np.array([0.0, 0.0, 1.0]), 4.0), _sky_row(rng, dome)])
    lights, ambient = _lights(rng, reach, is_room)
    return World(
        c2w=c2w,
        fov=float(rng.uniform(*config.fov)),
        primitives=tuple(sorted(builder.primitives, key=lambda p: p.shape)),
        backdrop=backdrop,
        room_centre=np.array([0.0, 0.0, reach[2]]),
        room=reach if is_room else np.full(3, _NOWHERE),
        dome=dome,
        ground=-_NOWHERE if is_room else 0.0,
        hills=hills,
        lights=lights,
        ambient=ambient,
        exposure=float(rng.uniform(0.3, 0.6)),
    )


def _with_normal(paint: NDArray[np.float32], own: NDArray[np.float32]) -> NDArray[np.float32]:
    """The row ``paint`` with the normal of the row ``own``."""
    row = paint.copy()
    row[15:18] = own[15:18]
    return row
