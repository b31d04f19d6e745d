"""The basic values of the package (cameras, Gaussians, scenes) and its errors."""
