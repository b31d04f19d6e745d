"""Baking a texture: charts are laid out by xatlas, and each texel is coloured from the views that see it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ilrm.core.errors import ConfigError, MissingExtraError
from ilrm.mesh.fusion import colour_vertices
from ilrm.mesh.tsdf import DepthViews, FloatArray, IntArray, Surface
from ilrm.render.compiling import kernel

# Laying out charts takes about a minute for this many faces.
MOST_FACES = 200_000
_GUTTER = 4  # texels around each chart that repeat its border, for filtering and mipmaps


@dataclass(frozen=True, eq=False)
class Texture:
    """A surface cut into charts.

    Attributes:
        vertices: (N, 3) in the world; those on seams are duplicated.
        faces: (F, 3).
        uv: (N, 2) in [0, 1], v up.
        image: (S, S, 3) uint8.
    """

    vertices: FloatArray
    faces: IntArray
    uv: FloatArray
    image: NDArray[np.uint8]


def bake(surface: Surface, views: DepthViews, truncation: float, side: int = 2048) -> Texture:
    """Bake a texture of side x side texels.

    Raises:
        ConfigError: too many faces to lay out charts in reasonable time.
        MissingExtraError: xatlas is missing.
    """
    if len(surface.faces) > MOST_FACES:
        raise ConfigError(
            f"A texture was requested on {len(surface.faces)} faces.",
            expected=f"at most {MOST_FACES}",
            fix="simplify the mesh with --faces 50000",
        )
    try:
        import xatlas
    except ImportError as error:
        raise MissingExtraError("xatlas", "mesh", "Making a texture") from error
    middle = surface.vertices.mean(axis=0)
    atlas = xatlas.Atlas()
    atlas.add_mesh((surface.vertices - middle).astype(np.float32), surface.faces.astype(np.uint32))
    packing = xatlas.PackOptions()
    packing.resolution, packing.padding = side, 2 * _GUTTER
    atlas.generate(pack_options=packing)
    source, faces, uv = atlas[0]
    vertices, faces = surface.vertices[source], faces.astype(np.int64)
    owner = np.full((side, side), -1, np.int64)
    weights = np.zeros((side, side, 3))
    _rasterise(uv * side, faces, owner, weights)
    texels = np.argwhere(owner >= 0)
    rows, columns = texels.T
    places = np.einsum("nk,nkc->nc", weights[rows, columns], vertices[faces[owner[rows, columns]]])
    image = np.zeros((side, side, 3), np.float32)
    image[rows, columns] = colour_vertices(views, places, truncation)
    filled = _grown(image, owner >= 0)
    # Row 0 of an image is its top, where v is 1.
    return Texture(vertices, faces, np.stack([uv[:, 0], 1 - uv[:, 1]], axis=1), (filled * 255).round().astype(np.uint8))


@kernel()
def _rasterise(corners, faces, owner, weights):
    """Store the face and the barycentric weights of each texel whose centre is in a face."""
    height, width = owner.shape
    for f in range(len(faces)):
        ax, ay = corners[faces[f, 0]]
        bx, by = corners[faces[f, 1]]
        cx, cy = corners[faces[f, 2]]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0.0:
            continue
        for row in range(max(0, int(min(ay, by, cy))), min(height, int(max(ay, by, cy)) + 1)):
            for column in range(max(0, int(min(ax, bx, cx))), min(width, int(max(ax, bx, cx)) + 1)):
                x, y = column + 0.5, row + 0.5
                b = ((x - ax) * (cy - ay) - (y - ay) * (cx - ax)) / area
                c = ((bx - ax) * (y - ay) - (by - ay) * (x - ax)) / area
                if b >= 0.0 and c >= 0.0 and b + c <= 1.0:
                    owner[row, column] = f
                    weights[row, column, 0], weights[row, column, 1], weights[row, column, 2] = 1 - b - c, b, c


def _grown(image: FloatArray, known: NDArray[np.bool_]) -> FloatArray:
    """The image with every unknown texel set to the colour of the nearest known one."""
    from scipy.ndimage import distance_transform_edt

    if known.all():
        return image
    _, (row, column) = distance_transform_edt(~known, return_indices=True)  # type: ignore[misc]
    return image[row, column]
