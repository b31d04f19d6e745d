"""World axes of other programs and formats, as similarities from the scene's own world frame."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ilrm.core.cameras import Cameras, Similarity

Frame = Literal["world", "opengl", "y-up", "z-up"]


def _half_turn(*signs: float) -> Similarity:
    return Similarity(1.0, torch.diag(torch.tensor(signs, dtype=torch.float64)), torch.zeros(3, dtype=torch.float64))


# From x right, y down, z forward. Half turns are their own inverse.
OPENGL = _half_turn(1.0, -1.0, -1.0)  # x right, y up, z backwards
GLTF = _half_turn(-1.0, -1.0, 1.0)  # x left, y up, z forward

_DEGENERATE = 1e-3


def to_frame(frame: Frame, cameras: Cameras | None = None) -> Similarity:
    """The rotation from the scene's world frame into another one.

    "world" changes nothing. "opengl" flips y and z, which converts an OpenCV world (y down, z forward) to OpenGL axes.
    "y-up" and "z-up" make the scene upright: the mean up direction of the cameras becomes +y (and their mean viewing
    direction -z), or +z (and +y). Without cameras, the world is assumed to have OpenCV axes.
    """
    if frame == "world":
        return Similarity.identity()
    if frame == "opengl":
        return OPENGL
    up, forward = _up_and_forward(cameras)
    right = torch.linalg.cross(forward, up)
    rows = [right, up, -forward] if frame == "y-up" else [right, forward, up]
    return Similarity(1.0, torch.stack(rows), torch.zeros(3, dtype=torch.float64))


def to_written_axes(
    frame: Frame, scale: float = 1.0, cameras: Cameras | None = None, prescribed: Similarity | None = None
) -> Similarity | None:
    """From the scene's world to the one to pass to a writer, so that a file has the wanted axes and scale.

    Args:
        frame, cameras: see ``to_frame``. "world" keeps the axes of the input, or those that the format prescribes.
        scale: factor on the world.
        prescribed: the axes that the writer itself applies (``Format.axes``); undone here if others are wanted.

    Returns:
        None if nothing changes.
    """
    if frame == "world" and scale == 1:
        return None
    turn = to_frame(frame, cameras)
    if prescribed is not None and frame != "world":
        turn = prescribed.inverse().compose(turn)
    return Similarity(scale, turn.rotation, turn.translation)


def _up_and_forward(cameras: Cameras | None) -> tuple[Tensor, Tensor]:
    """Orthogonal unit directions (3,), float64."""
    down, ahead = torch.eye(3, dtype=torch.float64)[1:]
    candidates = [ahead, down]
    if cameras is not None:
        c2w = cameras.c2w.double().cpu()
        if c2w[:, :3, 1].mean(0).norm() > _DEGENERATE:
            down = F.normalize(c2w[:, :3, 1].mean(0), dim=0)
        # Cameras that look in all directions have no mean viewing direction; then the first camera's is used.
        candidates = [c2w[:, :3, 2].mean(0), c2w[0, :3, 2], *candidates]
    level = [direction - (direction @ down) * down for direction in candidates]
    return -down, next(F.normalize(direction, dim=0) for direction in level if direction.norm() > _DEGENERATE)
