"""Gaussians to files that other programs open, and back."""

from ilrm.export.ply import load_ply, save_ply

__all__ = ["load_ply", "save_ply"]
