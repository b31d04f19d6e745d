"""Errors of poses and photos on the inputs of a sample."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ilrm.core.cameras import Cameras
from ilrm.core.scene import Scene
from ilrm.train.data.options import DISPLAY_GAMMA, InputNoise

_MOST_FOCAL = 0.5


def disturb_inputs(scene: Scene, inputs: int, noise: InputNoise, rng: np.random.Generator) -> Scene:
    """The scene with errors on its first ``inputs`` views, or as it is; targets and depth stay as they are."""
    if rng.random() >= noise.share:
        return scene
    cameras = scene.cameras
    c2w = cameras.c2w.clone()
    centres = c2w[:inputs, :3, 3]
    extent = float((centres - centres.mean(0)).abs().max())
    turns = torch.from_numpy(rng.normal(0.0, noise.rotation, (inputs, 3))).to(c2w)
    moves = torch.from_numpy(rng.normal(0.0, rng.uniform(*noise.position) * extent, (inputs, 3))).to(c2w)
    c2w[:inputs, :3, :3] = rotations(turns) @ c2w[:inputs, :3, :3]
    c2w[:inputs, :3, 3] += moves
    K = cameras.K.clone()
    K[:inputs, [0, 1], [0, 1]] *= 1.0 + float(np.clip(rng.normal(0.0, noise.focal), -_MOST_FOCAL, _MOST_FOCAL))
    gains = torch.from_numpy(2.0 ** (rng.normal(0.0, noise.exposure, inputs) / DISPLAY_GAMMA)).float()
    deviation = rng.uniform(0.0, noise.sensor)
    images = scene.images[:].clone()
    grain = torch.from_numpy(rng.standard_normal(images[:inputs].shape, dtype=np.float32)).to(images)
    images[:inputs] = (images[:inputs] * gains.to(images)[:, None, None, None] + deviation * grain).clamp_(0.0, 1.0)
    return replace(scene, images=images, cameras=Cameras(c2w, K, cameras.width, cameras.height))


def rotations(vectors: Tensor) -> Tensor:
    """(N, 3, 3) rotations about vectors (N, 3) by their lengths in radians."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    return torch.linalg.matrix_exp(skew)
