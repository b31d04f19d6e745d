"""Rendering images and videos of Gaussians along camera paths."""
