"""Surfaces out of Gaussians."""
