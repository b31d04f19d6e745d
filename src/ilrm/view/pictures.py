"""What our own renderer sees: colours with all of their spherical harmonics, depth, normals, opacity."""

from __future__ import annotations

import threading
from typing import Literal

from ilrm.core.cameras import Cameras
from ilrm.core.gaussians import Gaussians
from ilrm.pictures.frames import Panel, Picture, render_frame
from ilrm.pictures.video import as_image8
from ilrm.view.splats import Array

Kind = Literal["colour", "depth", "normals", "opacity"]

_PANELS: dict[Kind, Panel] = {"colour": "rgb", "depth": "depth", "normals": "normals", "opacity": "opacity"}
# The threads of a compiled kernel must not be asked from two places at once.
_ONE_AT_A_TIME = threading.Lock()


def picture(gaussians: Gaussians, camera: Cameras, kind: Kind, near: float) -> Array:
    """One view as (H, W, 3) uint8, in the colours of ``ilrm render --what``; depth is scaled to the view.

    Args:
        gaussians: N Gaussians; N may be 0.
        camera: one camera.
        near: the near plane in world units.
    """
    with _ONE_AT_A_TIME:
        return as_image8(render_frame(gaussians, camera, Picture((_PANELS[kind],), near=near)))
