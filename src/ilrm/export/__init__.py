"""Gaussians to files that other programs open, and back."""

from ilrm.export.colmap import save_colmap
from ilrm.export.ply import load_ply, save_ply
from ilrm.export.splats import load_gaussians, save_gaussians

__all__ = ["load_gaussians", "load_ply", "save_colmap", "save_gaussians", "save_ply"]
