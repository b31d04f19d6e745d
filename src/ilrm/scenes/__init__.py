"""Scenes in: every kind of posed photos becomes a ``Scene``."""

from ilrm.scenes.load import declared_holdout, load_scene
from ilrm.scenes.views import farthest_points, select_inputs, split_holdout

__all__ = ["declared_holdout", "farthest_points", "load_scene", "select_inputs", "split_holdout"]
