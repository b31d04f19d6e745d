"""Reading and writing splat files that other programs use."""

from ilrm.splats.colmap import save_colmap
from ilrm.splats.formats import load_gaussians, save_gaussians
from ilrm.splats.ply import load_ply, save_ply

__all__ = ["load_gaussians", "load_ply", "save_colmap", "save_gaussians", "save_ply"]
