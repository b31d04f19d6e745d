"""The configuration of procedural scenes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ilrm.core.errors import ConfigError
from ilrm.core.typed_config import check_range

Kind = Literal["mixed", "room", "open"]
Path = Literal["mixed", "handheld", "orbit"]
Style = Literal["plain", "photographic"]


@dataclass(frozen=True)
class ProceduralConfig:
    """The distribution from which a seed draws a scene.

    Attributes:
        views: cameras along the path, in the order of a video.
        width, height: image size in pixels.
        kind: closed rooms, open ground under a sky dome, or either.
        path: a hand-held walk, an orbit around the objects, or either.
        baseline: range of the path's length as a share of the distance to what the cameras look at.
        fov: range of the horizontal field of view in degrees.
        objects: range of the number of objects; one that would block a camera is left out.
        clearance: smallest distance between a camera and any surface, in world units (a room is 4 to 8 wide).
        shadows: cast soft shadows.
        specular: strength of the highlights; 0 makes all surfaces diffuse.
        samples: rays along each side of a pixel; 1 supersamples only silhouettes, 2 and more every pixel.
        points: surface points per scene.
        style: "plain" has painted surfaces only. "photographic" has photos on surfaces, furniture and plants, windows
            with distant views, and a wider range of light. A seed has the same cameras in both.
    """

    views: int = 12
    width: int = 128
    height: int = 128
    kind: Kind = "mixed"
    path: Path = "mixed"
    baseline: tuple[float, float] = (0.1, 1.2)
    fov: tuple[float, float] = (45.0, 70.0)
    objects: tuple[int, int] = (6, 18)
    clearance: float = 0.2
    shadows: bool = True
    specular: float = 1.0
    samples: int = 1
    points: int = 2048
    style: Style = "plain"

    def __post_init__(self) -> None:
        for name, choices in (("kind", get_args(Kind)), ("path", get_args(Path)), ("style", get_args(Style))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} = {getattr(self, name)!r} is unknown.", expected=f"one of {choices}")
        for name in ("views", "width", "height", "samples", "points"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} was given.", expected="at least 1")
        check_range(self, 1, 10_000, "views")
        check_range(self, 1, 16_384, "width", "height")
        check_range(self, 1, 64, "samples")
        check_range(self, 1, 10**8, "points")
        self._check_range("baseline", 0.0, 4.0)
        self._check_range("fov", 10.0, 120.0)
        self._check_range("objects", 0, 24)
        if not 0.15 <= self.clearance <= 0.5:
            raise ConfigError(
                f"clearance = {self.clearance} is out of range.",
                expected="0.15 to 0.5: nearer surfaces fill the image, farther ones do not fit a room",
            )
        if not 0.0 <= self.specular <= 4.0:
            raise ConfigError(f"specular = {self.specular} is out of range.", expected="0 to 4")

    def _check_range(self, name: str, least: float, most: float) -> None:
        low, high = getattr(self, name)
        if not least <= low <= high <= most:
            raise ConfigError(
                f"{name} = ({low}, {high}) is not a usable range.",
                expected=f"{least} <= low <= high <= {most}",
                fix="order the two values and keep them inside the limits",
            )
