"""Photos or a video without cameras become a scene: frames, features, structure from motion, a report."""

from ilrm.scenes.capture.run import Captured, CaptureOptions, capture

__all__ = ["CaptureOptions", "Captured", "capture"]
