"""Pictures by our own renderer: colours with all spherical harmonics, depth, normals, opacity."""

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
# Compiled kernels that use threads must not be called from two threads at once.
_ONE_AT_A_TIME = threading.Lock()


def picture(gaussians: Gaussians, camera: Cameras, kind: Kind, near: float) -> Array:
    """Render one view as (H, W, 3) uint8, with the colours of ``ilrm render --what``; depth is scaled to the view.

    Args:
        gaussians: N Gaussians; N may be 0.
        camera: one camera.
        near: the near plane in world units.
    """
    with _ONE_AT_A_TIME:
        return as_image8(render_frame(gaussians, camera, Picture((_PANELS[kind],), near=near)))
