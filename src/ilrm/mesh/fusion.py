"""From Gaussians to a coloured triangle mesh: render depth in many views, fuse it, clean and simplify the mesh."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ilrm.core.cameras import Cameras
from ilrm.core.errors import ConfigError, GaussiansError, MissingExtraError
from ilrm.core.gaussians import Gaussians
from ilrm.mesh.tsdf import CHUNK, DepthViews, FloatArray, IntArray, Surface, colour_points, find_chunks, fuse
from ilrm.render import render

# The truncation distance is this multiple of the disagreement of the views, within limits in voxels.
_TRUNCATION_DISAGREEMENTS = 4.0
_TRUNCATION_VOXELS = (4.0, 8.0)
# A voxel is an eighth of the wanted truncation, within limits in units of the median width of a pixel on the surface.
_VOXEL_PIXELS = (1.5, 4.0)
# Side of the median filter on depth, in pixels. It removes the individual depth errors of Gaussians.
_MEDIAN_SIDE = 5
# Every N-th point is enough to estimate the disagreement of views.
_COMPARED = 37
# A pixel that is wider than this many voxels has too little information about each of them.
_WIDEST_PIXEL_VOXELS = 8.0
# Limit on the number of lattice points; if more are needed, the voxel is enlarged.
MOST_VOXELS = 1 << 25
# Limit on the pixels of all views, at 7 bytes each; beyond it, an even subset of the views is used.
MOST_PIXELS = 1 << 26
_LEAST_ALPHA = 0.5
# If the cosine between ray and normal is smaller, the depth of a pixel is unreliable.
_LEAST_COSINE = 0.1


@dataclass(frozen=True, eq=False)
class Lattice:
    """The lattice in which the surface is extracted.

    Attributes:
        views: the views without depth that is unreliable at this truncation.
        voxel: distance between lattice points in world units.
        truncation: see ``fuse``.
        chunks: (C, 3), see ``find_chunks``.
    """

    views: DepthViews
    voxel: float
    truncation: float
    chunks: IntArray


def see_surface(
    gaussians: Gaussians, cameras: Cameras, *, near: float = 0.01, progress: Callable[[], object] = lambda: None
) -> DepthViews:
    """Render depth and colour of N Gaussians in V cameras.

    Depth is the expected z-depth of a pixel, filtered by a median. Pixels with less than half coverage have none.

    Args:
        near: near plane in world units.
        progress: called after each view.

    Raises:
        GaussiansError: there are no Gaussians.
    """
    if len(gaussians) == 0:
        raise GaussiansError("There are no Gaussians to make a mesh of.", expected="at least one")
    origin, gaussians, cameras = gaussians.origin, gaussians.local(), cameras.relative_to(gaussians.origin)
    most = max(1, MOST_PIXELS // (cameras.width * cameras.height))
    if len(cameras) > most:
        cameras = cameras[np.linspace(0, len(cameras) - 1, most).round().astype(int).tolist()]
    depth = np.zeros((len(cameras), cameras.height, cameras.width), np.float32)
    rgb = np.zeros((*depth.shape, 3), np.uint8)
    for view in range(len(cameras)):
        with torch.no_grad():
            seen = render(gaussians, cameras[view], background=(0, 0, 0), near=near)
        solid = seen.alpha[0] >= _LEAST_ALPHA
        depth[view] = _smoothed(torch.where(solid, seen.depth[0], torch.nan).cpu()).numpy()
        own = seen.rgb[0] / seen.alpha[0, ..., None].clamp_min(_LEAST_ALPHA)  # remove the black background
        rgb[view] = own.clamp(0, 1).mul(255).round().byte().cpu().numpy()
        progress()
    K = cameras.K.double().cpu().numpy()
    pinhole = np.stack([K[:, 0, 0], K[:, 1, 1], K[:, 0, 2], K[:, 1, 2]], axis=1)
    w2c = np.ascontiguousarray(cameras.c2w.double().cpu().inverse().numpy()[:, :3])
    views = DepthViews(depth, np.zeros_like(depth), rgb, w2c, pinhole, origin.numpy())
    return replace(views, weight=pixel_weights(views))


def _smoothed(depth: torch.Tensor) -> torch.Tensor:
    """Median filter of depth (H, W) over known pixels; NaN (unknown) becomes 0."""
    reach = _MEDIAN_SIDE // 2
    padded = torch.nn.functional.pad(depth, (reach,) * 4, value=torch.nan)
    around = padded.unfold(0, _MEDIAN_SIDE, 1).unfold(1, _MEDIAN_SIDE, 1).flatten(2)  # (H, W, 25)
    return torch.where(depth.isnan(), 0.0, around.nanmedian(dim=-1).values)


def disagreement(views: DepthViews) -> float:
    """Median difference in depth between a point of one view and a farther surface that another view sees there.

    Points behind the surface of the other view may simply be occluded and are not counted. 0 if no points remain.
    """
    height, width = views.depth.shape[1:]
    gaps = [np.zeros(0)]
    for view in range(len(views.depth)):
        points = views.points(view)[::_COMPARED]
        for other in set(range(len(views.depth))) - {view}:
            x, y, z = views.w2c[other, :, :3] @ points.T + views.w2c[other, :, 3:]
            fx, fy, cx, cy = views.pinhole[other]
            with np.errstate(divide="ignore", invalid="ignore"):
                column, row = np.floor(fx * x / z + cx), np.floor(fy * y / z + cy)
            inside = (z > 0) & (column >= 0) & (row >= 0) & (column < width) & (row < height)
            seen = views.depth[other, row[inside].astype(int), column[inside].astype(int)]
            gaps.append(seen[seen > z[inside]] - z[inside][seen > z[inside]])
    every = np.concatenate(gaps)
    return float(np.median(every)) if len(every) else 0.0


def pixel_weights(views: DepthViews) -> FloatArray:
    """(V, H, W) float32 weights (cosine / footprint)^2: depth is most reliable for close, frontal surfaces.

    The cosine is between the ray and the surface normal, which follows from the depth of the neighbouring pixels.
    """
    footprints, weights = views.footprints(), np.zeros_like(views.depth)
    for own, footprint, weight in zip(views.depth, footprints, weights, strict=True):
        steps = [after - before for before, after in (_neighbours(_inverse(own), axis) for axis in (0, 1))]
        slope = np.hypot(*steps) / 2 * own**2
        known = own > 0
        weight[known] = 1 / (footprint[known] ** 2 + slope[known] ** 2)
    return weights


def plan(views: DepthViews, voxel: float | None = None, *, most_voxels: int = MOST_VOXELS) -> Lattice:
    """Choose the voxel size from the views, unless it is given, and find the chunks that contain the surface.

    Raises:
        ConfigError: a voxel that is not a positive number, or too small for the limit on lattice points.
        GaussiansError: the views see no surface.
    """
    if voxel is not None and not 0 < voxel < np.inf:
        raise ConfigError(f"A voxel of {voxel} was given.", expected="a positive length in world units")
    footprints = views.footprints()
    if not (footprints > 0).any():
        raise GaussiansError(
            "No surface was found: in all views every pixel is covered by less than half.",
            expected="cameras in the world of the Gaussians that look at them",
            fix="give the cameras that the scene was made from",
        )
    median = float(np.median(footprints[footprints > 0]))
    # The truncation has to exceed the disagreement of the views, or a surface would be doubled. The voxel follows from
    # it, and is enlarged until the lattice is small enough.
    wanted = _TRUNCATION_DISAGREEMENTS * disagreement(views)
    size = voxel or median * float(np.clip(wanted / _TRUNCATION_VOXELS[1] / median, *_VOXEL_PIXELS))
    while True:
        truncation = size * float(np.clip(wanted / size, *_TRUNCATION_VOXELS))
        trusted = _trusted(views, footprints, truncation, max(_WIDEST_PIXEL_VOXELS * size, median))
        chunks = find_chunks(trusted, size, truncation)
        count = len(chunks) * (CHUNK + 1) ** 3
        if count <= most_voxels:
            return Lattice(trusted, size, truncation, chunks)
        if voxel is not None:
            raise ConfigError(
                f"A voxel of {voxel:.6g} would need {count / 1e6:.0f} million voxels around the surface.",
                expected=f"at most {most_voxels / 1e6:.0f} million",
                fix=f"raise it to about {voxel * (count / most_voxels) ** 0.5:.3g}, or leave it out",
            )
        size *= 1.05 * (count / most_voxels) ** 0.5


def _trusted(views: DepthViews, footprints: FloatArray, truncation: float, widest: float) -> DepthViews:
    """The views without depth at silhouettes, at grazing angles, and of pixels wider than ``widest``.

    A pixel on a silhouette mixes the depths of foreground and background. Along a line in the image, 1 / depth of any
    plane is linear. A pixel where it bends by more than the truncation, in depth, is therefore on a silhouette.
    """
    depth = views.depth.copy()
    for own, footprint, weight in zip(depth, footprints, views.weight, strict=True):
        inverse = _inverse(own)
        limit = np.maximum(truncation, footprint)
        bad = (footprint > widest) | (weight * footprint**2 < _LEAST_COSINE**2)
        for axis in (0, 1):
            before, after = _neighbours(inverse, axis)
            bent = np.abs((before + after) / 2 - inverse) * own**2 > limit
            bad |= _dilated(bent)
        own[bad] = 0
    return replace(views, depth=depth)


def _inverse(depth: FloatArray) -> FloatArray:
    """1 / depth; NaN where depth is unknown."""
    return np.where(depth > 0, 1 / np.where(depth > 0, depth, 1), np.nan)


def _neighbours(image: FloatArray, axis: int) -> tuple[FloatArray, FloatArray]:
    """The neighbours before and after each pixel, as images (H, W); the pixel itself where a neighbour is missing."""
    padded = np.pad(image, [(1, 1) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
    before, after = (
        np.take(padded, range(image.shape[axis]), axis),
        np.take(padded, range(2, image.shape[axis] + 2), axis),
    )
    return np.where(np.isnan(before), image, before), np.where(np.isnan(after), image, after)


def _dilated(mask: np.ndarray) -> np.ndarray:
    """A mask (H, W) dilated by one pixel."""
    padded = np.pad(mask, 1)
    height, width = mask.shape
    return np.logical_or.reduce([padded[i : i + height, j : j + width] for i in range(3) for j in range(3)])


def fuse_surface(
    lattice: Lattice,
    *,
    min_piece: float = 0.001,
    faces: int | None = None,
    progress: Callable[[], object] = lambda: None,
) -> Surface:
    """Extract the coloured surface in a lattice.

    Args:
        min_piece: remove connected components with a smaller share of all faces.
        faces: simplify to about this many faces.
        progress: called after each chunk.

    Raises:
        GaussiansError: the surface is empty.
        MissingExtraError: a package of the extra "mesh" is missing.
    """
    views, truncation = lattice.views, lattice.truncation
    vertices, triangles = fuse(views, lattice.voxel, truncation, lattice.chunks, progress)
    vertices, triangles = without_small_pieces(vertices, triangles, min_piece)
    if len(triangles) == 0:
        raise GaussiansError(
            "No surface was found in the depth of the views.",
            expected="surfaces that some view does not see at a grazing angle",
            fix="give more or other cameras, or another --voxel",
        )
    dense = Surface(vertices, triangles, colour_vertices(views, vertices, truncation), views.origin)
    return dense if faces is None or faces >= len(triangles) else simplify(dense, faces)


def colour_vertices(views: DepthViews, vertices: FloatArray, truncation: float) -> FloatArray:
    """(N, 3) colours of vertices; those that no view sees get the colour of the nearest visible vertex."""
    from scipy.spatial import KDTree

    colours, seen = colour_points(views, vertices, truncation)
    if seen.any() and not seen.all():
        _, nearest = KDTree(vertices[seen]).query(vertices[~seen])
        colours[~seen] = colours[seen][nearest]
    return colours


def without_small_pieces(vertices: FloatArray, faces: IntArray, min_piece: float) -> tuple[FloatArray, IntArray]:
    """The mesh without connected components that have less than the share ``min_piece`` of all faces.

    Raises:
        ConfigError: a share outside [0, 1).
    """
    if not 0 <= min_piece < 1:
        raise ConfigError(f"min_piece = {min_piece} was given.", expected="a share of all faces, 0 to 1")
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    ends = faces[:, [0, 1, 1, 2]].reshape(-1, 2).T
    links = coo_matrix((np.ones(ends.shape[1], np.bool_), ends), shape=(len(vertices), len(vertices)))
    _, piece = connected_components(links, directed=False)
    sizes = np.bincount(piece[faces[:, 0]], minlength=1)
    kept = faces[sizes[piece[faces[:, 0]]] >= min_piece * len(faces)]
    used, kept = np.unique(kept, return_inverse=True)
    return vertices[used], kept.reshape(-1, 3)


def simplify(surface: Surface, faces: int) -> Surface:
    """Simplify to about ``faces`` faces by quadric edge collapse. Vertices get the colour of the nearest old vertex.

    Raises:
        ConfigError: fewer than 4 faces.
        MissingExtraError: without fast-simplification.
    """
    if faces < 4:
        raise ConfigError(f"A mesh of {faces} faces was requested.", expected="at least 4")
    try:
        import fast_simplification
    except ImportError as error:
        raise MissingExtraError("fast-simplification", "mesh", "Simplifying a mesh") from error
    from scipy.spatial import KDTree

    middle = surface.vertices.mean(axis=0)  # relative to it, the single precision of the package is enough
    points, triangles, *_ = fast_simplification.simplify(
        (surface.vertices - middle).astype(np.float32), surface.faces.astype(np.int32), target_count=faces
    )
    vertices = points.astype(np.float64) + middle
    _, nearest = KDTree(surface.vertices).query(vertices)
    return replace(surface, vertices=vertices, faces=triangles.astype(np.int64), colours=surface.colours[nearest])


def is_watertight(surface: Surface) -> bool:
    """Whether every edge belongs to exactly two faces, so that the mesh encloses a volume."""
    edges: Any = np.sort(surface.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    _, counts = np.unique(edges, axis=0, return_counts=True)
    return bool((counts == 2).all())
