"""Scenes in: every kind of posed photos becomes a ``Scene``."""

from ilrm.scenes.check import Finding, check_scene
from ilrm.scenes.load import declared_holdout, load_scene
from ilrm.scenes.readers.chunks import list_keys
from ilrm.scenes.save import save_scene
from ilrm.scenes.views import farthest_points, select_inputs, split_holdout

__all__ = [
    "Finding",
    "check_scene",
    "declared_holdout",
    "farthest_points",
    "list_keys",
    "load_scene",
    "save_scene",
    "select_inputs",
    "split_holdout",
]
