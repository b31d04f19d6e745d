"""Small procedural rooms, as photos with poses, depth and points."""

from __future__ import annotations

from ilrm.core.scene import Scene
from ilrm.datasets.procedural import ProceduralConfig, make_scene

VIEWS, WIDTH, HEIGHT = 8, 96, 72
WORLD = ProceduralConfig(
    views=VIEWS, width=WIDTH, height=HEIGHT, kind="room", specular=0.0, baseline=(0.2, 0.4), points=800
)


def world(seed: int) -> Scene:
    return make_scene(seed, WORLD)
