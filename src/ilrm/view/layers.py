"""The states of a scene after each update layer, by running the network again on the photos of a result."""

from __future__ import annotations

import numpy as np
import torch

from ilrm.core.errors import ConfigError, SceneError
from ilrm.core.gaussians import Gaussians
from ilrm.core.scene import Scene
from ilrm.model.ilrm import ILRM
from ilrm.model.reconstruct import reconstruct
from ilrm.results.result import Result


def update_layers(result: Result, device: torch.device | str = "cpu") -> list[tuple[str, Gaussians]]:
    """(name, N Gaussians on the CPU) after every update layer and feedback iteration, without refinement.

    If the result was not refined and used no sparse points (results do not keep them), the last one equals it, up to
    rounding and the compression of the photos.

    Raises:
        SceneError: the cameras or some photos are missing.
        ConfigError: the result does not name its weights, or was made in groups of photos.
        WeightsError: these weights are not available.
    """
    if result.cameras is None or not result.photos or any(photo is None for photo in result.photos):
        raise SceneError(
            f"Some photos of {result.path} are missing, and the network needs them.",
            fix="give the scene that the result was made from with --photos",
        )
    weights = result.metrics.get("weights")
    if not isinstance(weights, str):
        raise ConfigError(
            f"No file beside {result.path} names the weights that it was made with.",
            expected="metrics.json with the field 'weights'",
        )
    if (groups := result.metrics.get("groups", 1)) != 1:
        raise ConfigError(
            f"The photos of {result.path} were reconstructed in {groups} groups: no layer holds all Gaussians.",
            fix="use fewer photos (--views), which one group holds",
        )
    images = torch.from_numpy(np.stack([photo for photo in result.photos if photo is not None])).float() / 255
    scene = Scene(images, result.cameras, result.names)
    model = ILRM.from_pretrained(weights).to(device)
    count = result.metrics.get("feedback")
    rounds = model.feedback_iterations(count if isinstance(count, int) else None)
    states = reconstruct(scene, model, feedback=rounds, iterations=True).to("cpu")
    layers = len(states) - rounds
    names = [*(f"update layer {i + 1}" for i in range(layers)), *(f"feedback {i + 1}" for i in range(rounds))]
    return list(zip(names, states, strict=True))
