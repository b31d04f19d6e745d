"""Scenes in: every kind of posed photos becomes a ``Scene``."""

from ilrm.scenes.check import Finding, check_scene
from ilrm.scenes.chunks import list_keys
from ilrm.scenes.indices import EvaluationViews, read_evaluation_index, read_kmeans_index
from ilrm.scenes.load import declared_holdout, load_scene
from ilrm.scenes.save import save_scene
from ilrm.scenes.views import farthest_points, select_inputs, split_holdout

__all__ = [
    "EvaluationViews",
    "Finding",
    "check_scene",
    "declared_holdout",
    "farthest_points",
    "list_keys",
    "load_scene",
    "read_evaluation_index",
    "read_kmeans_index",
    "save_scene",
    "select_inputs",
    "split_holdout",
]
