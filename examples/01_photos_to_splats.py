"""Photos with poses to a PLY that any splat viewer opens, in five lines.

python examples/01_photos_to_splats.py [CAPTURE] [scene.ply]
"""

import sys
from pathlib import Path

import ilrm

capture = sys.argv[1] if len(sys.argv) > 1 else Path(ilrm.__file__).parent / "assets" / "capture"
target = sys.argv[2] if len(sys.argv) > 2 else "scene.ply"

scene = ilrm.load_scene(capture, max_side=256)
model = ilrm.ILRM.from_pretrained("ilrm-small")
gaussians = ilrm.reconstruct(scene, model)
ilrm.save_ply(gaussians, target)
print(f"{len(gaussians)} Gaussians from {len(scene)} photos: {target}")
