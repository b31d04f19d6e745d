"""Fusing depth maps into a truncated signed distance function, and extracting its zero level set.

The method is that of Curless and Levoy, "A Volumetric Method for Building Complex Models from Range Images" (1996).
Space is a lattice of voxels anchored at the world's origin. Only chunks of the lattice near a visible surface are
visited, one after the other, and each is discarded once its triangles are extracted. Memory therefore holds the depth
maps, the triangles and a single chunk, independently of the extent of the scene.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numba import prange
from numpy.typing import NDArray

from ilrm.core.errors import MissingExtraError
from ilrm.render.compiling import kernel

FloatArray = NDArray[np.floating]
IntArray = NDArray[np.integer]

CHUNK = 32  # cubes along each side of a chunk, which therefore has CHUNK + 1 lattice points per side
# Distances are kept at least this far from 0 (in truncation distances), so that no vertex coincides with a lattice
# point. There, triangles would be degenerate, and adjacent chunks could assign the vertex to different edges.
_LEAST_DISTANCE = 1e-4
_jit = kernel()
_parallel = kernel(parallel=True)


@dataclass(frozen=True, eq=False)
class DepthViews:
    """Depth and colour of a surface in V cameras.

    Attributes:
        depth: (V, H, W) float32 z-depth in world units, 0 where it is unknown or unreliable.
        weight: (V, H, W) float32 weight of each pixel.
        rgb: (V, H, W, 3) uint8.
        w2c: (V, 3, 4) float64 world-to-camera, in a world whose origin is ``origin``.
        pinhole: (V, 4) float64: fx, fy, cx, cy in pixels.
        origin: (3,) float64 point of the world that all positions here are relative to.
    """

    depth: FloatArray
    weight: FloatArray
    rgb: NDArray[np.uint8]
    w2c: FloatArray
    pinhole: FloatArray
    origin: FloatArray = field(default_factory=lambda: np.zeros(3))

    def points(self, view: int) -> FloatArray:
        """(P, 3) world points of the pixels of one view that have a depth."""
        row, column = np.nonzero(self.depth[view])
        z = self.depth[view, row, column].astype(np.float64)
        fx, fy, cx, cy = self.pinhole[view]
        local = np.stack([(column + 0.5 - cx) / fx * z, (row + 0.5 - cy) / fy * z, z], axis=1)
        rotation, translation = self.w2c[view, :, :3], self.w2c[view, :, 3]
        return (local - translation) @ rotation

    def footprints(self) -> FloatArray:
        """(V, H, W) width of a pixel on a surface that faces the camera, in world units; 0 where depth is unknown."""
        return self.depth / np.sqrt(self.pinhole[:, 0] * self.pinhole[:, 1])[:, None, None].astype(np.float32)


@dataclass(frozen=True, eq=False)
class Surface:
    """Triangles.

    Attributes:
        vertices: (N, 3) float64, relative to ``origin``, which is that of the Gaussians.
        faces: (F, 3) int64, counter-clockwise seen from the side the cameras are on.
        colours: (N, 3) float32 in [0, 1].
        origin: (3,) float64 point of the world.
    """

    vertices: FloatArray
    faces: IntArray
    colours: FloatArray
    origin: FloatArray = field(default_factory=lambda: np.zeros(3))

    @property
    def world_vertices(self) -> FloatArray:
        """(N, 3) float64 in the world."""
        return self.vertices + self.origin


def find_chunks(views: DepthViews, voxel: float, truncation: float) -> IntArray:
    """(C, 3) int64 indices of chunks of ``CHUNK`` voxels per side within ``truncation`` of a visible surface."""
    side, found = CHUNK * voxel, np.zeros((0, 3), np.int64)
    corners = np.array(np.meshgrid(*[(-truncation, truncation)] * 3)).reshape(3, 8).T
    for view in range(len(views.depth)):
        # Points are first merged in cells of a quarter of the truncation, because neighbouring pixels mostly share one.
        # The margin of 1.125 covers the rounding.
        cells = np.unique(np.round(views.points(view) / (0.25 * truncation)).astype(np.int64), axis=0)
        near = np.floor((cells[:, None] * (0.25 * truncation) + 1.125 * corners) / side).astype(np.int64)
        found = np.unique(np.concatenate([found, near.reshape(-1, 3)]), axis=0)
    return found


def fuse(
    views: DepthViews,
    voxel: float,
    truncation: float,
    chunks: IntArray,
    progress: Callable[[], object] = lambda: None,
) -> tuple[FloatArray, IntArray]:
    """Vertices (N, 3) in the world and faces (F, 3) of the surface in the given chunks.

    Args:
        voxel: distance between lattice points in world units.
        truncation: largest distance to a surface that is stored; larger ones are clamped.
        chunks: a result of ``find_chunks``.
        progress: called after each chunk.

    Raises:
        MissingExtraError: without scikit-image.
    """
    marching_cubes = _marching_cubes()
    vertices: list[FloatArray] = [np.zeros((0, 3))]
    faces: list[IntArray] = [np.zeros((0, 3), np.int64)]
    count = 0
    for chunk in chunks:
        first = chunk * CHUNK
        distance, weight = fuse_block(views, first, (CHUNK + 1, CHUNK + 1, CHUNK + 1), voxel, truncation)
        part = _triangles(marching_cubes, distance, weight)
        if part is not None:
            vertices.append(part[0] + first)
            faces.append(part[1] + count)
            count += len(part[0])
        progress()
    lattice, triangles = _joined(np.concatenate(vertices), np.concatenate(faces))
    return lattice * voxel, triangles


def fuse_block(
    views: DepthViews, first: IntArray, shape: tuple[int, int, int], voxel: float, truncation: float
) -> tuple[FloatArray, FloatArray]:
    """Signed distance in truncation distances (positive towards the cameras) and weight of a block of the lattice.

    Args:
        first: (3,) the lattice point with the smallest coordinates.
        shape: number of lattice points along each axis.

    Returns:
        two float32 arrays of that shape; the weight is 0 where no view contributes.
    """
    distance, weight = np.empty(shape, np.float32), np.empty(shape, np.float32)
    chosen = _seen_by(views, first * voxel, (first + shape) * voxel)
    start = np.asarray(first, np.float64)
    _fuse(start, voxel, truncation, chosen, views.depth, views.weight, views.w2c, views.pinhole, distance, weight)
    return distance, weight


def colour_points(views: DepthViews, points: FloatArray, truncation: float) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Colours (P, 3) in [0, 1] of points (P, 3) on the surface, and whether any view sees them (P,).

    The colour is the mean over the views whose surface is within ``truncation`` of the point in depth, with the weights
    of the fusion.
    """
    colours = np.zeros((len(points), 3), np.float32)
    seen = np.zeros(len(points), np.bool_)
    _colour(
        np.ascontiguousarray(points),
        truncation,
        views.depth,
        views.weight,
        views.rgb,
        views.w2c,
        views.pinhole,
        colours,
        seen,
    )
    return colours, seen


def _seen_by(views: DepthViews, low: FloatArray, high: FloatArray) -> IntArray:
    """The views whose frustum may intersect the bounding sphere of a box."""
    height, width = views.depth.shape[1:]
    radius = float(np.linalg.norm(high - low)) / 2
    x, y, z = (views.w2c[:, :, :3] @ ((low + high) / 2) + views.w2c[:, :, 3]).T
    fx, fy, cx, cy = views.pinhole.T
    inside = z > -radius
    # Signed distances to the four sides of the view frustum.
    for along, focal, border in ((x, fx, width - cx), (-x, fx, cx), (y, fy, height - cy), (-y, fy, cy)):
        inside &= (along * focal - z * border) / np.hypot(focal, border) < radius
    return np.flatnonzero(inside)


@_jit
def _sample(depth, weight, x, y):
    """Depth and weight at image coordinates; 0, 0 unless all four surrounding pixels have a depth.

    Bilinear in the weight and in 1 / depth, because 1 / depth is linear on planes.
    """
    height, width = depth.shape
    column, row = x - 0.5, y - 0.5
    left, top = int(np.floor(column)), int(np.floor(row))
    if left < 0 or top < 0 or left + 1 >= width or top + 1 >= height:
        return 0.0, 0.0
    a, b = column - left, row - top
    inverse, counts = 0.0, 0.0
    for j in range(2):
        for i in range(2):
            share = (a if i else 1.0 - a) * (b if j else 1.0 - b)
            if depth[top + j, left + i] == 0.0:
                return 0.0, 0.0
            inverse += share / depth[top + j, left + i]
            counts += share * weight[top + j, left + i]
    return 1.0 / inverse, counts


@_jit
def _project(w2c, pinhole, x, y, z):
    """Image coordinates and z-depth of a world point."""
    depth = w2c[2, 0] * x + w2c[2, 1] * y + w2c[2, 2] * z + w2c[2, 3]
    right = w2c[0, 0] * x + w2c[0, 1] * y + w2c[0, 2] * z + w2c[0, 3]
    down = w2c[1, 0] * x + w2c[1, 1] * y + w2c[1, 2] * z + w2c[1, 3]
    return pinhole[0] * right / depth + pinhole[2], pinhole[1] * down / depth + pinhole[3], depth


@_parallel
def _fuse(first, voxel, truncation, chosen, depth, trust, w2c, pinhole, distance, weight):
    """Fill distance and weight (X, Y, Z); see ``fuse_block_reference`` for the rule."""
    for i in prange(distance.shape[0]):
        for j in range(distance.shape[1]):
            for k in range(distance.shape[2]):
                x, y, z = (first[0] + i) * voxel, (first[1] + j) * voxel, (first[2] + k) * voxel
                total, value = 0.0, 0.0
                for v in chosen:
                    px, py, own = _project(w2c[v], pinhole[v], x, y, z)
                    if own <= 0.0:
                        continue
                    seen, share = _sample(depth[v], trust[v], px, py)
                    gap = seen - own
                    if seen == 0.0 or gap <= -truncation:
                        continue
                    if gap < 0.0:
                        share *= 1.0 + gap / truncation
                    total += share
                    value += share * min(gap / truncation, 1.0)
                weight[i, j, k] = total
                distance[i, j, k] = value / total if total > 0.0 else 1.0


@_parallel
def _colour(points, truncation, depth, trust, rgb, w2c, pinhole, colours, found):
    for n in prange(len(points)):
        total, red, green, blue = 0.0, 0.0, 0.0, 0.0
        for v in range(len(depth)):
            px, py, own = _project(w2c[v], pinhole[v], points[n, 0], points[n, 1], points[n, 2])
            if own <= 0.0:
                continue
            seen, share = _sample(depth[v], trust[v], px, py)
            if seen == 0.0 or abs(seen - own) >= truncation:
                continue
            u, t = int(px - 0.5), int(py - 0.5)
            a, b = px - 0.5 - u, py - 0.5 - t
            corners = ((0, 0, (1 - a) * (1 - b)), (0, 1, a * (1 - b)), (1, 0, (1 - a) * b), (1, 1, a * b))
            for down, right, part in corners:
                pixel = rgb[v, t + down, u + right]
                red += share * part * pixel[0]
                green += share * part * pixel[1]
                blue += share * part * pixel[2]
            total += share
        if total > 0.0:
            found[n] = True
            colours[n, 0], colours[n, 1], colours[n, 2] = (
                red / total / 255.0,
                green / total / 255.0,
                blue / total / 255.0,
            )


def fuse_block_reference(
    views: DepthViews, first: IntArray, shape: tuple[int, int, int], voxel: float, truncation: float
) -> tuple[FloatArray, FloatArray]:
    """The same as ``fuse_block`` in plain numpy, slow but readable; the oracle of its tests."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    points = (index.reshape(-1, 3) + first) * voxel
    value, total = np.zeros(len(points)), np.zeros(len(points))
    height, width = views.depth.shape[1:]
    for depth, trust, w2c, (fx, fy, cx, cy) in zip(views.depth, views.weight, views.w2c, views.pinhole, strict=True):
        x, y, z = (points @ w2c[:, :3].T + w2c[:, 3]).T
        column, row = fx * x / z + cx - 0.5, fy * y / z + cy - 0.5
        visible = (z > 0) & (column >= 0) & (column < width - 1) & (row >= 0) & (row < height - 1)
        top, left = (np.floor(np.where(visible, x, 0)).astype(int) for x in (row, column))
        inverse, counts, known = np.zeros(len(points)), np.zeros(len(points)), visible.copy()
        for down, right in np.ndindex(2, 2):
            i, j = np.minimum(top + down, height - 1), np.minimum(left + right, width - 1)
            bilinear = (1 - np.abs(row - i)) * (1 - np.abs(column - j))
            known &= depth[i, j] > 0
            inverse += bilinear / np.where(depth[i, j] > 0, depth[i, j], 1)
            counts += bilinear * trust[i, j]
        seen = 1 / np.where(known, inverse, 1)
        gap = (seen - z) / truncation
        # Behind the surface the weight of a view decreases linearly, because nothing is known about points there.
        weight = np.where(known & (gap > -1), counts * np.minimum(1, 1 + gap), 0)
        total += weight
        value += weight * np.minimum(gap, 1)
    distance = np.where(total > 0, value / np.where(total > 0, total, 1), 1)
    return distance.reshape(shape).astype(np.float32), total.reshape(shape).astype(np.float32)


def _marching_cubes() -> Callable:
    try:
        from skimage.measure import marching_cubes
    except ImportError as error:
        raise MissingExtraError("scikit-image", "mesh", "Making a mesh") from error
    return marching_cubes


def _triangles(
    marching_cubes: Callable, distance: FloatArray, weight: FloatArray
) -> tuple[FloatArray, IntArray] | None:
    """Triangles of a block in lattice units from its first point; cubes with an unobserved corner are skipped."""
    seen = weight > 0
    if not (seen & (distance < 0)).any() or not (seen & (distance > 0)).any():
        return None
    x, y, z = (n - 1 for n in seen.shape)
    whole = np.logical_and.reduce([seen[i : i + x, j : j + y, k : k + z] for i, j, k in np.ndindex(2, 2, 2)])
    mask = np.zeros_like(seen)
    mask[1:, 1:, 1:] = whole  # scikit-image reads the mask at the last corner of each cube
    level = np.where(distance < 0, np.minimum(distance, -_LEAST_DISTANCE), np.maximum(distance, _LEAST_DISTANCE))
    try:
        vertices, faces, _, _ = marching_cubes(level, 0.0, mask=mask)
    except (RuntimeError, ValueError):  # no completely observed cube contains a part of the surface
        return None
    return vertices.astype(np.float64), faces.astype(np.int64)


def _joined(vertices: FloatArray, faces: IntArray) -> tuple[FloatArray, IntArray]:
    """Join the meshes of all chunks, in lattice units: vertices on the borders between chunks are merged.

    A vertex on a border is on an edge of the lattice: two of its coordinates are integers, the third is not. The edge
    identifies the vertex exactly, without a tolerance on positions.
    """
    nearest = np.round(vertices)
    whole = np.abs(vertices - nearest) < 1e-9
    border = np.flatnonzero((whole & (nearest % CHUNK == 0)).any(axis=1))
    edge = np.where(whole[border], nearest[border], np.floor(vertices[border])).astype(np.int64)
    key = np.concatenate([edge, whole[border] @ np.array([[1], [2], [4]])], axis=1)
    _, kept, group = np.unique(key, axis=0, return_index=True, return_inverse=True)
    same = np.arange(len(vertices))
    same[border] = border[kept][group.reshape(-1)]
    used, faces = np.unique(same[faces], return_inverse=True)
    return vertices[used], faces.reshape(-1, 3).astype(np.int64)
