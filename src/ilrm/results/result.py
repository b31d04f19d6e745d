"""``Result``: a reconstruction in memory and as a folder of splats, cameras, photos and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ilrm.core.cameras import Cameras, Similarity
from ilrm.core.checks import MAX_PIXELS
from ilrm.core.errors import CameraError, SceneError, warn
from ilrm.core.gaussians import Gaussians
from ilrm.files import atomic_folder, paths, settle, write_bytes, write_json
from ilrm.files.image_files import open_image
from ilrm.files.reading import read_json
from ilrm.results.beside import CAMERAS_FILE, SCENE_FILE, cameras_beside, find_splats, folder_of
from ilrm.scenes.save import encode_photo, image_names
from ilrm.splats import load_gaussians, save_ply
from ilrm.splats.cameras import find_names, save_cameras

Array = NDArray[Any]

METRICS_FILE, INPUTS, RENDERS = "metrics.json", "inputs", "renders"
# Largest side of photos and of renderings at the cameras; larger photos are reduced.
_LARGEST_SIDE = 4096
_MESHES = ("mesh.glb", "mesh.ply")
_LONGEST_LINE = 120  # letters


@dataclass(frozen=True, eq=False)
class Result:
    """A reconstruction with its cameras, photos and metrics.

    Attributes:
        path: the splat file, or the path it would have if it was not written (see "files" in ``metrics``).
        gaussians: N Gaussians in the world of the cameras.
        cameras: V input cameras, if known.
        names: of the V inputs.
        photos: V input photos (H, W, 3) uint8 of the cameras' size, None for missing ones; empty if all are missing.
        metrics: the content of metrics.json.
        mesh: a mesh file of the same scene, if there is one.
    """

    path: Path
    gaussians: Gaussians
    cameras: Cameras | None = None
    names: tuple[str, ...] = ()
    photos: tuple[Array | None, ...] = ()
    metrics: dict[str, Any] = field(default_factory=dict)
    mesh: Path | None = None

    @staticmethod
    def load(path: Path | str, antialiased: bool | None = None, *, photos: Path | str | None = None) -> Result:
        """Read a result; the same as ``load_result``."""
        return load_result(path, antialiased, photos=photos)

    def save(self, folder: Path | str, *, overwrite: bool = False) -> None:
        """Write scene.ply, cameras.json, metrics.json and inputs/ (the photos as JPEG), all of them or none.

        Raises:
            OutputError: the folder cannot be written, or contains files of these names that we did not write.
        """
        names = (SCENE_FILE, CAMERAS_FILE, METRICS_FILE, f"{INPUTS}/")
        with atomic_folder(folder, names, overwrite=overwrite) as temporary:
            self.write_splats(temporary)
            write_json(temporary / METRICS_FILE, self.metrics)

    def write_splats(self, folder: Path) -> None:
        """Write scene.ply, cameras.json and inputs/ into a folder that ``atomic_folder`` has opened."""
        save_ply(self.gaussians, folder / SCENE_FILE)
        if self.cameras is None:
            return
        save_cameras(self.cameras, self.names, folder / CAMERAS_FILE, self.gaussians.origin)
        for photo, name in zip(self.photos, image_names(self.names, "jpg"), strict=False):
            if photo is not None:
                write_bytes(folder / INPUTS / name, encode_photo(torch.from_numpy(photo), "jpg"))

    def local(self) -> Result:
        """The same result in a local world: Gaussians and cameras relative to ``gaussians.origin``."""
        cameras = None if self.cameras is None else self.cameras.relative_to(self.gaussians.origin)
        return replace(self, gaussians=self.gaussians.local(), cameras=cameras)

    def transform(self, similarity: Similarity | None) -> Result:
        """The same result in another world frame; None changes nothing."""
        if similarity is None:
            return self
        cameras = None if self.cameras is None else self.cameras.transform(similarity)
        return replace(self, gaussians=self.gaussians.transform(similarity), cameras=cameras)

    @property
    def title(self) -> str:
        """The name of the folder, or of a splat file that is not part of a result folder."""
        path = paths.absolute(self.path)
        return plain(path.parent.name if path.name == SCENE_FILE else path.stem)

    @property
    def labels(self) -> list[str]:
        """Printable, unique names of the V inputs, for a menu."""
        names = [plain(name) for name in self.names]
        return [name if names.count(name) == 1 else f"{i + 1}: {name}" for i, name in enumerate(names)]

    @property
    def numbers(self) -> dict[str, str]:
        """The main numbers as text, for display."""
        found = {"Gaussians": f"{len(self.gaussians):,}"}
        if self.cameras is not None:
            found["photos"] = f"{len(self.cameras)} of {self.cameras.width}x{self.cameras.height}"
        for name, label, form in (("psnr", "held-out PSNR", "{:.2f} dB"), ("ssim", "held-out SSIM", "{:.3f}")):
            if (value := _number(self.metrics.get(name))) is not None:
                found[label] = form.format(value)
        if isinstance(weights := self.metrics.get("weights"), str) and weights:
            found["weights"] = plain(weights)
        if steps := _number(self.metrics.get("refine_steps_done")):
            found["refinement steps"] = f"{steps:.0f}"
        return found


def plain(text: str) -> str:
    """Untrusted text as one short line of printable characters.

    Bytes of names that are not UTF-8 become \\xNN. The line is plain text and must still be escaped where markup is
    interpreted.
    """
    line = "".join(letter if letter.isprintable() else "\ufffd" for letter in paths.shown(text))
    return line if len(line) <= _LONGEST_LINE else line[:_LONGEST_LINE] + "..."


def _number(value: Any) -> float | None:
    """A finite number, or None: metrics.json may contain anything."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:
        return None
    return float(value)


def load_result(
    path: Path | str,
    antialiased: bool | None = None,
    *,
    photos: Path | str | None = None,
    max_pixels: int | None = MAX_PIXELS,
) -> Result:
    """Read a folder of results, or a splat file with the files beside it.

    cameras.json, metrics.json, inputs/ and mesh.glb or mesh.ply are read from the folder of the splat file if they
    exist; cameras.json may also come from INRIA's trainer. Unreadable ones are left out with a warning.

    Args:
        antialiased: see ``load_gaussians``.
        photos: the scene that the result was made from, to read the input photos from instead of inputs/.
        max_pixels: of these photos, see ``load_scene``.

    Raises:
        GaussiansError: no Gaussians.
        SceneError: ``photos`` is given, but the scene lacks some of them or there is no cameras.json.
        CameraError: the photos have another shape than the cameras.
    """
    settle(path)
    path = find_splats(path)
    result = result_of(path, load_gaussians(path, antialiased))
    if photos is None:
        return result
    if result.cameras is None:
        raise SceneError(
            f"There is no cameras.json beside {path} to say which photos were inputs.",
            fix="leave --photos out, or give the folder that `ilrm reconstruct` has written",
        )
    return replace(result, photos=photos_of(photos, result.names, result.cameras, max_pixels))


def result_of(path: Path, gaussians: Gaussians) -> Result:
    """A result of Gaussians that were read from a splat file, with the files beside it as in ``load_result``."""
    folder = folder_of(path)
    cameras, names, photos = None, (), ()
    if (beside := cameras_beside(path)) is not None:
        cameras, names = beside
        cameras, photos = _photos_beside(folder / INPUTS, names, cameras)
    mesh = next((folder / name for name in _MESHES if paths.is_file(folder / name)), None)
    return Result(path, gaussians, cameras, names, photos, _metrics(folder / METRICS_FILE), mesh)


def _metrics(path: Path) -> dict[str, Any]:
    if not paths.is_file(path):
        return {}
    try:
        metrics = read_json(path)
    except SceneError as error:
        warn(f"left out the numbers beside the splats: {error.problem}")
        return {}
    if not isinstance(metrics, dict):
        warn(f"left out the numbers beside the splats: {path} is not a JSON object")
        return {}
    return metrics


def _photos_beside(folder: Path, names: Sequence[str], cameras: Cameras) -> tuple[Cameras, tuple[Array | None, ...]]:
    """The cameras resized for display, and the photos beside the splats at that size.

    Photos have the names that ``ilrm reconstruct`` gives them. They are never enlarged to the size in a camera file,
    which may be wrong; the cameras are reduced instead.
    """
    files = [folder / file for file in image_names(names, "jpg")]
    photos = [_read_photo(file, _LARGEST_SIDE) if paths.is_file(file) else None for file in files]
    known = [max(photo.shape[:2]) for photo in photos if photo is not None]
    longest = max(cameras.width, cameras.height)
    shown = min(longest, _LARGEST_SIDE, *known) if known else min(longest, _LARGEST_SIDE)
    if shown < longest:
        sides = (max(1, round(side * shown / longest)) for side in (cameras.width, cameras.height))
        cameras = cameras.resize(*sides)
    if not known:
        return cameras, ()
    return cameras, tuple(None if photo is None else _resized(photo, cameras) for photo in photos)


def _read_photo(path: Path, longest: int) -> Array | None:
    """Read a photo (H, W, 3) uint8 with a longer side of at most ``longest``; None with a warning if unreadable."""
    try:
        with open_image(path) as image:
            image.thumbnail((longest, longest))
            return np.asarray(image.convert("RGB"))
    except SceneError as error:
        warn(f"left out a photo beside the splats: {error.problem}")
        return None


def _resized(photo: Array, cameras: Cameras) -> Array:
    from PIL import Image

    size = (cameras.width, cameras.height)
    return photo if photo.shape[1::-1] == size else np.asarray(Image.fromarray(photo).resize(size))


def photos_of(
    scene_path: Path | str, names: Sequence[str], cameras: Cameras, max_pixels: int | None = MAX_PIXELS
) -> tuple[Array, ...]:
    """Read the photos of the named cameras from the original scene, at the size of the cameras.

    See ``load_scene`` for ``max_pixels``.

    Raises:
        SceneError: the scene cannot be read, or lacks some of the photos.
        CameraError: the photos have another shape than the cameras.
    """
    from ilrm.scenes import load_scene

    scene = load_scene(scene_path, max_side=max(cameras.width, cameras.height), max_pixels=max_pixels)
    places = find_names(names, scene.names)
    if missing := [name for name, place in zip(names, places, strict=True) if place is None]:
        raise SceneError(
            f"{scene_path} lacks {len(missing)} of {len(names)} input photos, the first is {missing[0]}.",
            fix="give the scene that the result was made from",
        )
    if (scene.cameras.width, scene.cameras.height) != (cameras.width, cameras.height):
        raise CameraError(
            f"The photos of {scene_path} are {scene.cameras.width}x{scene.cameras.height}, those of the result were "
            f"{cameras.width}x{cameras.height}.",
            fix="give the scene that the result was made from",
        )
    images = scene.select([place for place in places if place is not None]).images[:]
    return tuple(images.mul(255).round().byte().cpu().numpy())
