"""Names of lenses for people, and COLMAP's models for them. Does not import torch, because the help reads it."""

from __future__ import annotations

from typing import Literal

LensName = Literal["radial", "opencv", "fisheye"]
COLMAP_MODELS: dict[LensName, str] = {"radial": "SIMPLE_RADIAL", "opencv": "OPENCV", "fisheye": "OPENCV_FISHEYE"}
