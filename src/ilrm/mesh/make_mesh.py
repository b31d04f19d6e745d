"""``mesh_gaussians`` and ``make_mesh``: from Gaussians to a mesh in one call."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ilrm.core.cameras import Cameras
from ilrm.core.checks import LARGEST_SIDE, check_at_least
from ilrm.core.errors import ConfigError, warn
from ilrm.core.gaussians import Gaussians
from ilrm.core.reporting import Reporter, Silent
from ilrm.mesh.fusion import fuse_surface, plan, see_surface
from ilrm.mesh.texture import Texture, bake
from ilrm.mesh.tsdf import Surface
from ilrm.pictures.options import at_most
from ilrm.pictures.viewpoints import cameras_from_all_sides


@dataclass(frozen=True)
class MeshOptions:
    """The options of a mesh, the same for Python and ``ilrm mesh``.

    Attributes:
        voxel: distance between lattice points in world units; by default 1.5 to 4 pixels on the surface, depending on
            how well the views agree.
        min_piece: remove connected components with a smaller share of all faces.
        faces: simplify to about this many faces.
        texture: side of a texture in texels; None gives colours at the vertices.
    """

    voxel: float | None = None
    min_piece: float = 0.001
    faces: int | None = None
    texture: int | None = None

    def check(self) -> None:
        """Refuse invalid values before any work. Raises ConfigError."""
        if self.voxel is not None and not 0 < self.voxel < math.inf:
            raise ConfigError(f"--voxel {self.voxel} was given.", expected="a length above 0, in world units")
        if not 0 <= self.min_piece < 1:
            raise ConfigError(f"--min-piece {self.min_piece} was given.", expected="a share of all faces, 0 to 1")
        if self.faces is not None:
            check_at_least("--faces", self.faces, 4)
        if self.texture is not None and not 64 <= self.texture <= 8192:
            raise ConfigError(f"--texture {self.texture} was given.", expected="64 to 8192 texels")


@dataclass(frozen=True, eq=False)
class MadeMesh:
    """A mesh and how it was made.

    Attributes:
        surface: the mesh, with colours at the vertices.
        texture: the same mesh with a texture, if one was requested.
        voxel: distance between lattice points in world units.
        views: number of views whose depth was fused.
    """

    surface: Surface
    texture: Texture | None
    voxel: float
    views: int


def make_mesh(
    gaussians: Gaussians,
    cameras: Cameras | None = None,
    options: MeshOptions | None = None,
    *,
    near: float | None = None,
    reporter: Reporter | None = None,
) -> MadeMesh:
    """Make a coloured mesh of N Gaussians from depth rendered in cameras.

    Args:
        cameras: V cameras in the world of the Gaussians; images larger than 4096 pixels are reduced. By default cameras
            on a sphere around the Gaussians, which see objects but not the inside of rooms.
        options: ``MeshOptions()`` by default.
        near: near plane in world units; by default 1 % of the cameras' extent.
        reporter: receives messages and progress.

    Raises:
        GaussiansError: no Gaussians, or no surface.
        ConfigError: invalid options.
        MissingExtraError: a package of the extra "mesh" is missing.
    """
    options, reporter = options or MeshOptions(), reporter or Silent()
    options.check()
    seen_by = cameras_from_all_sides(gaussians) if cameras is None else at_most(LARGEST_SIDE, cameras)
    with reporter.progress("rendering depth", len(seen_by)) as advance:
        views = see_surface(gaussians, seen_by, near=seen_by.near_plane() if near is None else near, progress=advance)
    used = len(views.depth)
    if used < len(seen_by):
        warn(f"{len(seen_by)} cameras would take too much memory; used {used} of them")
    lattice = plan(views, options.voxel)
    reporter.say(f"{used} views, voxel {lattice.voxel:.4g}, {len(lattice.chunks)} chunks of 32 cubed")
    with reporter.progress("fusing", len(lattice.chunks)) as advance:
        surface = fuse_surface(lattice, min_piece=options.min_piece, faces=options.faces, progress=advance)
    texture = None
    if options.texture is not None:
        reporter.say(f"laying out a texture on {len(surface.faces):,} faces")
        texture = bake(surface, lattice.views, lattice.truncation, options.texture)
    return MadeMesh(surface, texture, lattice.voxel, used)


def mesh_gaussians(
    gaussians: Gaussians,
    cameras: Cameras | None = None,
    *,
    voxel: float | None = None,
    min_piece: float = 0.001,
    faces: int | None = None,
    near: float | None = None,
) -> Surface:
    """A coloured mesh of N Gaussians; see ``make_mesh`` and ``MeshOptions`` for arguments and errors."""
    options = MeshOptions(voxel=voxel, min_piece=min_piece, faces=faces)
    return make_mesh(gaussians, cameras, options, near=near).surface
