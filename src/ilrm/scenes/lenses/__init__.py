"""Lenses with distortion, and how their photos become pinhole photos."""
