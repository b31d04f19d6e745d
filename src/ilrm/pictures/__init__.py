"""Images and videos of scenes, and the camera paths they are taken from."""
