"""Synthetic scenes with true cameras, depth and surface points, made from a seed by casting rays in plain torch."""

from ilrm.datasets.procedural.batch import DescribedScene, ProceduralBatch, cast, describe, make_batch, make_scene
from ilrm.datasets.procedural.config import ProceduralConfig

__all__ = ["DescribedScene", "ProceduralBatch", "ProceduralConfig", "cast", "describe", "make_batch", "make_scene"]
