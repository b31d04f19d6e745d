"""Writing a scene and its Gaussians as a COLMAP project, as input for other splat trainers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ilrm.core.gaussians import Gaussians
from ilrm.core.scene import Scene
from ilrm.core.spherical_harmonics import C0
from ilrm.files import atomic_folder
from ilrm.scenes.lenses.signals import sigterm_kept
from ilrm.scenes.save import ImageFormat, encode_image, image_names
from ilrm.splats.checks import check_writable

if TYPE_CHECKING:
    import pycolmap
    from torch import Tensor

IMAGES, MODEL = "images", "sparse/0"


def save_colmap(
    scene: Scene,
    gaussians: Gaussians,
    folder: Path | str,
    *,
    image_format: ImageFormat = "png",
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Write photos, cameras, and the centres and colours of the Gaussians as points.

    ``images/`` contains the photos of the scene (undistorted, at its size). ``sparse/0`` contains the binary model:
    pinhole cameras, a single one if all views have the same intrinsics, and points without tracks, since the photos
    have no keypoints.

    Args:
        scene: V photos with cameras, in the world of the Gaussians.
        gaussians: N Gaussians.
        folder: the project to write; files of an earlier export are replaced.
        overwrite: also replace files of the same names that no earlier export wrote.

    Returns:
        the V file names of the photos.

    Raises:
        GaussiansError: no Gaussians, batched ones, or NaN and infinite values.
        SceneError: a photo cannot be decoded.
        OutputError: the folder cannot be written, or holds other photos or models.
    """
    check_writable(gaussians, folder)
    files = image_names(scene.names, image_format)
    with atomic_folder(folder, (f"{IMAGES}/", "sparse/"), overwrite=overwrite) as out:
        (out / IMAGES).mkdir()
        for view, file in enumerate(files):
            (out / IMAGES / file).write_bytes(encode_image(scene, view, image_format))
        (out / MODEL).mkdir(parents=True)
        _model(scene, files, gaussians).write_binary(str(out / MODEL))
    return tuple(files)


def _model(scene: Scene, files: list[str], gaussians: Gaussians) -> pycolmap.Reconstruction:
    with sigterm_kept():
        import pycolmap

    model = pycolmap.Reconstruction()
    cameras = scene.cameras.to("cpu")
    K, c2w = cameras.K.double(), cameras.c2w.double().numpy()
    shared = bool((K[0] == K).all())
    for view, file in enumerate(files):
        camera_id = 1 if shared else view + 1
        if not model.exists_camera(camera_id):
            model.add_camera_with_trivial_rig(_pinhole(K[view], cameras.width, cameras.height, camera_id))
        image = pycolmap.Image(name=file, camera_id=camera_id, image_id=view + 1)
        # The translation is computed with the rotation as stored (a rounded quaternion): otherwise centres far from the
        # origin would shift.
        rotation = pycolmap.Rotation3d(c2w[view, :3, :3].T)
        pose = pycolmap.Rigid3d(rotation, -rotation.matrix() @ c2w[view, :3, 3])
        model.add_image_with_trivial_frame(image, pose)
    g = gaussians.detach().to("cpu")
    colours = ((0.5 + C0 * g.sh[:, 0].double()).clamp(0, 1) * 255).round().numpy().astype(np.uint8)
    for xyz, rgb in zip(g.world_means.numpy(), colours, strict=True):
        model.add_point3D(xyz, pycolmap.Track(), rgb)
    return model


def _pinhole(K: Tensor, width: int, height: int, camera_id: int) -> pycolmap.Camera:
    import pycolmap

    parameters = [K[0, 0].item(), K[1, 1].item(), K[0, 2].item(), K[1, 2].item()]
    return pycolmap.Camera(model="PINHOLE", width=width, height=height, params=parameters, camera_id=camera_id)
