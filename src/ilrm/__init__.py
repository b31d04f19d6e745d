"""iLRM: photos with cameras in, 3D Gaussians out, in one forward pass."""
