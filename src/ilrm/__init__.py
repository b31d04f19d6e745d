"""iLRM: photos with cameras in, 3D Gaussians out, in one forward pass.

from ilrm import ILRM, load_scene, reconstruct, render, save_ply

scene = load_scene("my_capture")
gaussians = reconstruct(scene, ILRM.from_pretrained("ilrm-small"))
save_ply(gaussians, "scene.ply")
images = render(gaussians, scene.cameras).rgb
"""

import os

# OpenMP's threads spin while they wait for each other, unless told otherwise before torch is loaded. On a CPU that
# does anything else at the same time that costs far more than it saves.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from ilrm.cameras import Cameras, Similarity, normalise
from ilrm.errors import IlrmError
from ilrm.export import load_ply, save_ply
from ilrm.gaussians import Gaussians
from ilrm.model import ILRM, ILRMConfig
from ilrm.reconstruct import reconstruct
from ilrm.refine import RefineConfig, refine
from ilrm.render import Rendering, render
from ilrm.scene import Scene
from ilrm.scenes import load_scene

__version__ = "0.1.0"

__all__ = [
    "ILRM",
    "Cameras",
    "Gaussians",
    "ILRMConfig",
    "IlrmError",
    "RefineConfig",
    "Rendering",
    "Scene",
    "Similarity",
    "load_ply",
    "load_scene",
    "normalise",
    "reconstruct",
    "refine",
    "render",
    "save_ply",
]
