"""Lens models with distortion, and undistorting photos."""
