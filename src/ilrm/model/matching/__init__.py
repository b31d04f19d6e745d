"""Matching between the input views: a plane sweep, the network that weighs it, and cross-checks of its depths."""

from ilrm.model.matching.sweep import Match, match_depth

__all__ = ["Match", "match_depth"]
