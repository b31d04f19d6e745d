"""What each update layer adds: the scene is decoded after every one and rendered at a held-out view.

python examples/02_watch_the_layers.py
"""

from pathlib import Path

import ilrm
from ilrm.evaluate import psnr

scene = ilrm.load_scene(Path(ilrm.__file__).parent / "assets" / "capture", max_side=128)
inputs, target = scene.select([0, 3, 6, 8, 11]), scene.select([5])
model = ilrm.ILRM.from_pretrained("ilrm-small")
every = ilrm.reconstruct(inputs, model, iterations=True)
for layer in range(every.means.shape[0]):
    image = ilrm.render(every[layer], target.cameras).rgb
    print(f"after update layer {layer + 1}: {psnr(image, target.images[:]).item():.2f} dB on a held-out view")
