"""Posed photos to Gaussians in one forward pass, in the photos' own world frame."""

from __future__ import annotations

import torch

from ilrm.cameras import normalise
from ilrm.errors import SceneError
from ilrm.gaussians import Gaussians
from ilrm.model.ilrm import ILRM
from ilrm.precision import Precision, autocast, resolve
from ilrm.scene import Scene


@torch.no_grad()
def reconstruct(scene: Scene, model: ILRM, *, precision: Precision = "auto", iterations: bool = False) -> Gaussians:
    """Gaussians of all views of a scene.

    The cameras are moved into the frame the network was trained in and the result is moved back, so that a
    scene in another world frame gives the same Gaussians in that frame. Far from the world's origin their means are
    counted from a point among the cameras (``Gaussians.origin``, chosen by ``Cameras.local_origin``).

    Args:
        scene: the input views. Sizes that patches do not divide are stretched to the nearest that they do.
        model: the network, on the device to compute on.
        precision: "auto" is bf16 where the hardware has it and it pays, else fp32.
        iterations: also return the state after every earlier update layer.

    Returns:
        N Gaussians in the scene's world frame on the model's device, in the order view, row, column;
        with ``iterations`` (layers, N), the last one being the result.

    Raises:
        SceneError: the scene has no view.
        CameraError: a pose or intrinsic is impossible.
    """
    if len(scene) == 0:
        raise SceneError("The scene has no view.", expected="at least one posed photo, better two or more")
    scene.cameras.check(scene.names)
    origin = scene.cameras.local_origin()
    cameras, to_local = normalise(scene.cameras.relative_to(origin), rule=model.config.normalisation)
    parameter = next(model.parameters())
    device = parameter.device
    images = scene.images[:].to(device, torch.float32)
    cameras = cameras.to(device, torch.float32)
    with autocast(resolve(precision, device, model.parameter_count()), device):
        gaussians = model(images[None], cameras.c2w[None], cameras.K[None], iterations=iterations)
    states = gaussians[:, 0] if iterations else gaussians[0]
    return states.to(dtype=torch.float32).transform(to_local).at(origin)
