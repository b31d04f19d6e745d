"""The picture of the README: held-out photos of the bundled capture, the forward pass, and after refinement.

python examples/make_readme_picture.py docs/images/held_out.png
"""

import sys
from pathlib import Path

import torch
from PIL import Image

import ilrm
from ilrm.scenes import declared_holdout

capture = Path(ilrm.__file__).parent / "assets" / "capture"
scene = ilrm.load_scene(capture)
test = set(declared_holdout(capture))
inputs = scene.select([i for i, name in enumerate(scene.names) if name not in test]).loaded()
held_out = scene.select([i for i, name in enumerate(scene.names) if name in test])

gaussians = ilrm.reconstruct(inputs, ilrm.ILRM.from_pretrained("ilrm-small"))
refined = ilrm.refine(gaussians, inputs, steps=100, config=ilrm.RefineConfig.long()).gaussians
rows = [held_out.images[:]]
with torch.no_grad():
    rows += [ilrm.render(g, held_out.cameras).rgb.clamp(0, 1) for g in (gaussians, refined)]
picture = torch.cat([torch.cat(list(row), dim=1) for row in rows])
Image.fromarray((picture * 255).round().byte().numpy()).save(sys.argv[1])
