"""How many operations a GPU would have to launch, counted on any machine.

    python benchmarks/launches.py

Views of tensors do not count; a call of the CPU's rasteriser counts as one. Four samples of eight views for the
matching, four samples of eight inputs and four targets for the training step; its optimiser is left out.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from ilrm.core.cameras import Cameras, normalise
from ilrm.datasets.procedural import ProceduralConfig, make_batch
from ilrm.model import ILRM
from ilrm.train.data.batch import Batch
from ilrm.train.losses import losses
from ilrm.train.presets import preset

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.devices.launches import Launches

SIDE = 128


def normalised(made: Batch, inputs: int) -> torch.Tensor:
    """(B, V, 4, 4) in the frame of each sample's inputs."""
    frames = []
    for c2w, K in zip(made.c2w, made.K, strict=True):
        _, to_world = normalise(Cameras(c2w[:inputs], K[:inputs], SIDE, SIDE))
        frames.append(Cameras(c2w, K, SIDE, SIDE).transform(to_world.inverse()).c2w)
    return torch.stack(frames).float()


def main() -> None:
    config = preset("synthetic-small")
    torch.manual_seed(0)
    model = ILRM(config.model)
    made = make_batch(range(4), ProceduralConfig(views=12, width=SIDE, height=SIDE))
    c2w = normalised(made, 8)  # type: ignore[arg-type]
    batch = Batch(made.images, c2w, made.K, inputs=8, names=("",) * 4, depth=made.depth)
    with torch.no_grad(), Launches() as matching:
        model.decoder_inputs(made.images[:, :8], c2w[:, :8], made.K[:, :8])
    with Launches() as step:
        losses(model, batch, config.loss, 0, model_config=config.model, precision="fp32").total.backward()
    print(f"matching and cross-checks: {matching.count}")
    print(f"training step, forward and backward: {step.count}")


if __name__ == "__main__":
    # All planes at a time, as on a GPU.
    import ilrm.model.matching.view_geometry as geometry

    geometry._MOST_VALUES = dict.fromkeys(geometry._MOST_VALUES, 1 << 28)
    main()
