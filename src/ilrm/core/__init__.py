"""The values that everything is made of: cameras, Gaussians, scenes, and the errors of the package."""
