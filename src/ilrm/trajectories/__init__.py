"""Camera paths: what a video of a scene is rendered along."""

from ilrm.trajectories.interpolation import interpolate, interpolate_evenly, interpolate_pair, smooth_time
from ilrm.trajectories.orbits import focus_point, look_at, looks_from_all_around, orbit
from ilrm.trajectories.smoothing import stabilise
from ilrm.trajectories.spirals import middle_view, spin, spiral, wobble, wobble_about

__all__ = [
    "focus_point",
    "interpolate",
    "interpolate_evenly",
    "interpolate_pair",
    "look_at",
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
