"""Synthetic scenes with true cameras, depth and surface points, made from a seed by casting rays in plain torch."""

from ilrm.datasets.procedural.batch import ProceduralBatch, make_batch, make_scene
from ilrm.datasets.procedural.config import ProceduralConfig

__all__ = ["ProceduralBatch", "ProceduralConfig", "make_batch", "make_scene"]
