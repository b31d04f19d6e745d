"""Choosing views: held-out ones, representative ones, and ones that see the scene together."""

from ilrm.scenes.views.covisibility import choose_inputs, covered_share
from ilrm.scenes.views.selection import evenly_spaced, farthest_points, select_inputs, split_holdout

__all__ = ["choose_inputs", "covered_share", "evenly_spaced", "farthest_points", "select_inputs", "split_holdout"]
