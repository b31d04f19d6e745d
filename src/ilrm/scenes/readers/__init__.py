"""Readers of camera files and models that other programs write."""
