"""Preparing photos for structure from motion: upright copies of moderate size, and what is measured of each."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ilrm.core.errors import IlrmError
from ilrm.core.reporting import Reporter
from ilrm.files import write_bytes, write_json
from ilrm.files.image_files import check_budget, open_image
from ilrm.files.paths import exists
from ilrm.files.reading import read_json
from ilrm.scenes.capture.exif import PhotoData, photo_data
from ilrm.scenes.capture.sharpness import blur, thumbnail
from ilrm.scenes.photos.images import Photo, open_photo

PREPARED = "prepared"
_JPEG_QUALITY = 97
# Smaller photos have too few details to find cameras by.
LEAST_SIDE = 160


@dataclass(frozen=True, eq=False)
class Shot:
    """One photo, or one frame of a video, that may get a camera.

    Attributes:
        name: for people: its path below the given folder, or the frame's time.
        file: the photo, or the frame as it was written.
        prepared: name of the upright copy that cameras are found with.
        width, height: of that copy.
        blur: 0 (sharp) to 1, see ``sharpness``.
        brightness: mean grey level, 0 to 1.
        thumbnail: see ``sharpness``.
        data: what its EXIF data say.
    """

    name: str
    file: Path
    prepared: str
    width: int
    height: int
    blur: float
    brightness: float
    thumbnail: bytes
    data: PhotoData

    def photo(self) -> Photo:
        """The photo itself, upright, not decoded yet."""
        return open_photo(self.file)


def prepare(
    files: Sequence[Path],
    names: Sequence[str],
    folder: Path,
    side: int,
    max_pixels: int,
    reporter: Reporter,
) -> tuple[list[Shot], dict[str, str]]:
    """Prepare every photo that can be read; what is prepared already is kept.

    Args:
        folder: receives the copies, in ``PREPARED``.
        side: the longer side of copies in pixels.
        max_pixels: see ``load_scene``.

    Returns:
        the shots in the files' order, and the names of the others, each with the reason.
    """
    shots, refused = [], {}
    with reporter.progress("photos", len(files)) as advance:
        for number, (file, name) in enumerate(zip(files, names, strict=True)):
            note = folder / PREPARED / f"{number:05d}.json"
            if not exists(note):
                write_json(note, _prepare(file, folder / PREPARED / f"{number:05d}.jpg", side, max_pixels))
            found = read_json(note)
            if "refused" in found:
                refused[name] = found["refused"]
            else:
                shots.append(_shot(found, name, file))
            advance()
    return shots, refused


def _prepare(file: Path, copy: Path, side: int, max_pixels: int) -> dict[str, Any]:
    """Write the copy and return what is known of the photo, or why it cannot be used."""
    try:
        photo = open_photo(file)
        check_budget(photo.label, photo.header.cost, max_pixels)
        if max(photo.size) < LEAST_SIDE:
            return {"refused": f"only {photo.width}x{photo.height} pixels"}
        with open_image(file) as image:
            data = photo_data(image, photo.header.orientation)
        pixels = Image.fromarray(photo.decode(_reduction(max(photo.size), side)))
    except IlrmError as error:
        return {"refused": error.problem.removeprefix(f"{file} ").rstrip(".")}
    scale = min(1.0, side / max(photo.size))
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    small = pixels.resize(size, Image.Resampling.LANCZOS) if size != pixels.size else pixels
    if small is pixels and photo.header.orientation == 1 and _is_jpeg(file):
        write_bytes(copy, file.read_bytes())  # a second compression would cost matches
    else:
        stream = io.BytesIO()
        small.save(stream, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        write_bytes(copy, stream.getvalue())
    grey = np.asarray(small.convert("L"))
    return {
        "prepared": copy.name,
        "width": size[0],
        "height": size[1],
        "blur": round(blur(grey), 4),
        "brightness": round(float(grey.mean()) / 255, 4),
        "thumbnail": thumbnail(small).hex(),
        "focal": data.focal,
        "device": data.device,
        "up": data.up,
    }


def _is_jpeg(file: Path) -> bool:
    with open_image(file) as image:
        return image.format in ("JPEG", "MPO") and image.mode == "RGB"


def _reduction(longer: int, side: int) -> int:
    """The largest power of two that leaves at least twice the copy's size."""
    factor = 1
    while longer // (factor * 2) >= 2 * side:
        factor *= 2
    return factor


def _shot(found: dict[str, Any], name: str, file: Path) -> Shot:
    up = found["up"]
    return Shot(
        name=name,
        file=file,
        prepared=found["prepared"],
        width=found["width"],
        height=found["height"],
        blur=found["blur"],
        brightness=found["brightness"],
        thumbnail=bytes.fromhex(found["thumbnail"]),
        data=PhotoData(found["focal"], found["device"], None if up is None else (up[0], up[1], up[2])),
    )


def shared_cameras(shots: Sequence[Shot], model: str) -> list[dict[str, Any]]:
    """Groups of photos that one camera took, for the worker: one device, one focal length, one size.

    Photos without EXIF data are taken to be from one camera if their sizes are equal.
    """
    groups: dict[tuple[object, ...], list[Shot]] = defaultdict(list)
    for shot in shots:
        focal = None if shot.data.focal is None else round(shot.data.focal, 3)
        groups[shot.data.device, focal, shot.width, shot.height].append(shot)
    return [
        {"model": model, "names": [shot.prepared for shot in group], "params": _parameters(group[0], model)}
        for group in groups.values()
    ]


def _parameters(shot: Shot, model: str) -> list[float] | None:
    """COLMAP's parameters from the EXIF focal length; None where that is not known."""
    if shot.data.focal is None:
        return None
    focal = shot.data.focal * max(shot.width, shot.height)
    centre = [shot.width / 2, shot.height / 2]
    return {
        "SIMPLE_RADIAL": [focal, *centre, 0.0],
        "OPENCV": [focal, focal, *centre, 0.0, 0.0, 0.0, 0.0],
        "OPENCV_FISHEYE": [focal, focal, *centre, 0.0, 0.0, 0.0, 0.0],
    }[model]
