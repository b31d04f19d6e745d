"""Sparse points that hide each other: a point clearly behind others in the same part of an image is not seen.

Shape suffixes: V views, P points.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# How much farther than the nearest point around it a seen one may be: oblique ground varies this much.
_FARTHER = 1.3


def unhidden_points(xy_VP2: Tensor, z_VP: Tensor, inside_VP: Tensor, size: tuple[int, int], cell: float) -> Tensor:
    """(V, P) bool: inside the image, and not behind the points in the same cell or in one of its eight neighbours.

    Args:
        xy_VP2: (V, P, 2) places in the images in pixels; what they are outside does not matter.
        z_VP: (V, P) depths along the viewing axis.
        inside_VP: (V, P) bool, which points lie in front of the camera and within the frame.
        size: width and height of the images in pixels.
        cell: side of a cell of the depth buffer in pixels.
    """
    columns, rows = (int(side / cell) + 1 for side in size)
    column = (xy_VP2[..., 0] / cell).clamp(0, columns - 1).long()
    row = (xy_VP2[..., 1] / cell).clamp(0, rows - 1).long()
    cell_VP = row * columns + column
    empty = z_VP.new_full((len(z_VP), rows * columns), torch.inf)
    nearest = empty.scatter_reduce(1, cell_VP, torch.where(inside_VP, z_VP, torch.inf), "amin")
    around = -F.max_pool2d(-nearest.view(-1, 1, rows, columns), 3, 1, 1)
    return inside_VP & (z_VP <= _FARTHER * around.flatten(1).gather(1, cell_VP))
