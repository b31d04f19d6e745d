"""Triangle meshes from Gaussians."""
