"""Choosing views: held-out ones, representative ones, and ones that see the scene together."""

from ilrm.scenes.views.covisibility import choose_inputs
from ilrm.scenes.views.selection import evenly_spaced, farthest_points, select_inputs, split_holdout

__all__ = ["choose_inputs", "evenly_spaced", "farthest_points", "select_inputs", "split_holdout"]
