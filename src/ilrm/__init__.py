"""iLRM: photos with cameras in, 3D Gaussians out, in one forward pass.

import ilrm

result = ilrm.run("my_capture", "out")                      # everything, as the command does it

scene = ilrm.load_scene("my_capture")                       # or step by step
gaussians = ilrm.reconstruct(scene, ilrm.ILRM.from_pretrained("ilrm-small"))
images = ilrm.render(gaussians, scene.cameras).rgb
"""

import os
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

# By default OpenMP threads spin while they wait for each other. On a CPU that also does other work, this costs far more
# than it saves. The setting takes effect only if it is made before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from ilrm.core.cameras import Cameras, Similarity, normalise
    from ilrm.core.errors import IlrmError
    from ilrm.core.gaussians import Gaussians
    from ilrm.evaluate import psnr, ssim
    from ilrm.mesh.files import save_surface
    from ilrm.mesh.make_mesh import mesh_gaussians
    from ilrm.model import ILRM, ILRMConfig
    from ilrm.model.reconstruct import reconstruct
    from ilrm.pictures.render_video import render_video
    from ilrm.pipeline.refine import RefineConfig, refine
    from ilrm.pipeline.run import run
    from ilrm.render import Rendering, render
    from ilrm.results import Result, load_result
    from ilrm.scenes import Scene, load_scene
    from ilrm.scenes.capture import Captured, capture
    from ilrm.splats import load_gaussians, load_ply, save_gaussians, save_ply
    from ilrm.view import save_page

__version__ = "0.1.0"

_HOMES = {
    "core.cameras": ("Cameras", "Similarity", "normalise"),
    "core.errors": ("IlrmError",),
    "evaluate": ("psnr", "ssim"),
    "splats": ("load_gaussians", "load_ply", "save_gaussians", "save_ply"),
    "core.gaussians": ("Gaussians",),
    "model": ("ILRM", "ILRMConfig"),
    "pipeline.run": ("run",),
    "model.reconstruct": ("reconstruct",),
    "pipeline.refine": ("RefineConfig", "refine"),
    "render": ("Rendering", "render"),
    "results": ("Result", "load_result"),
    "mesh.files": ("save_surface",),
    "mesh.make_mesh": ("mesh_gaussians",),
    "pictures.render_video": ("render_video",),
    "scenes": ("Scene", "load_scene"),  # not scenes.load: only the package registers the readers
    "scenes.capture": ("Captured", "capture"),
    "view": ("save_page",),
}

__all__ = [
    "ILRM",
    "Cameras",
    "Captured",
    "Gaussians",
    "ILRMConfig",
    "IlrmError",
    "RefineConfig",
    "Rendering",
    "Result",
    "Scene",
    "Similarity",
    "capture",
    "load_gaussians",
    "load_ply",
    "load_result",
    "load_scene",
    "mesh_gaussians",
    "normalise",
    "psnr",
    "reconstruct",
    "refine",
    "render",
    "render_video",
    "run",
    "save_gaussians",
    "save_page",
    "save_ply",
    "save_surface",
    "ssim",
]


class _Package(ModuleType):
    """The class of this package, which imports each public name on first use.

    The command can therefore be interrupted, and can report errors, before torch is loaded. The names are properties
    because ``render`` is also a subpackage. Importing the subpackage would otherwise replace the function.
    """

    def __getattr__(self, name: str) -> object:
        """A module of the package, as if all of them had been imported."""
        try:
            if not name.startswith("_"):
                return import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=self)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


def _imported(home: str, name: str) -> property:
    def get(_: ModuleType) -> object:
        return getattr(import_module(f"{__name__}.{home}"), name)

    def keep(_: ModuleType, value: object) -> None:
        if not isinstance(value, ModuleType):
            raise AttributeError(f"{__name__}.{name} cannot be replaced; replace it in {__name__}.{home}")

    return property(get, keep)


for _home, _names in _HOMES.items():
    for _name in _names:
        setattr(_Package, _name, _imported(_home, _name))
sys.modules[__name__].__class__ = _Package
