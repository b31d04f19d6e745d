"""Reading scenes: photos with poses in any supported format become a ``Scene``."""

from ilrm.core.scene import Scene, open_photos_with
from ilrm.scenes.check import Finding, check_scene
from ilrm.scenes.load import declared_holdout, load_scene
from ilrm.scenes.open_photos import open_photos
from ilrm.scenes.readers.chunks import list_keys
from ilrm.scenes.save import save_scene
from ilrm.scenes.views import farthest_points, select_inputs, split_holdout

__all__ = [
    "Finding",
    "Scene",
    "check_scene",
    "declared_holdout",
    "farthest_points",
    "list_keys",
    "load_scene",
    "save_scene",
    "select_inputs",
    "split_holdout",
]

open_photos_with(open_photos)  # core must not import the code that reads files
