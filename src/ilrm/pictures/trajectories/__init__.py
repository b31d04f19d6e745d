"""Functions that generate camera paths: interpolation, orbits, spirals, smoothing."""

from ilrm.pictures.trajectories.interpolation import interpolate, interpolate_evenly, interpolate_pair, smooth_time
from ilrm.pictures.trajectories.orbits import focus_point, looks_from_all_around, orbit
from ilrm.pictures.trajectories.smoothing import stabilise
from ilrm.pictures.trajectories.spirals import middle_view, spin, spiral, wobble, wobble_about

__all__ = [
    "focus_point",
    "interpolate",
    "interpolate_evenly",
    "interpolate_pair",
    "looks_from_all_around",
    "middle_view",
    "orbit",
    "smooth_time",
    "spin",
    "spiral",
    "stabilise",
    "wobble",
    "wobble_about",
]
