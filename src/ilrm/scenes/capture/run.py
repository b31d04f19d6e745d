"""``ilrm.capture``: photos or a video without cameras become a scene with cameras."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ilrm.core.cameras import Similarity
from ilrm.core.checks import MAX_PIXELS, check_at_least
from ilrm.core.errors import ConfigError, SceneError, collect_warnings, warn
from ilrm.core.lens_names import COLMAP_MODELS, LensName
from ilrm.core.reporting import Reporter, Silent
from ilrm.core.scene import Scene
from ilrm.files import atomic_folder, check_apart, check_folder, resumable_folder, write_bytes, write_json
from ilrm.files.paths import absolute, entries, is_dir, is_file
from ilrm.files.reading import read_json
from ilrm.scenes.capture import diagnosis, report
from ilrm.scenes.capture.media import Media, find_media
from ilrm.scenes.capture.models import ENOUGH, Model, best, is_scrap, is_whole, load_model
from ilrm.scenes.capture.photos import Shot, prepare, shared_cameras
from ilrm.scenes.capture.picture import from_above
from ilrm.scenes.capture.sfm import Stages
from ilrm.scenes.capture.sharpness import blurred, duplicates
from ilrm.scenes.capture.video import choose_frames
from ilrm.scenes.capture.world import ScaleFrom, check_scale, to_world, up_axis
from ilrm.scenes.frames import CaptureFrame, CaptureSource, assemble
from ilrm.scenes.lenses.models import Lens
from ilrm.scenes.readers.colmap_model import Camera
from ilrm.scenes.save import SCENE_NAMES, image_names, write_scene
from ilrm.scenes.views import evenly_spaced

REPORT, PICTURE, CAMERA_FILE = "report.json", "report.png", "transforms.json"
_FEATURES = 4096
# All pairs up to this many photos, then those that look alike; neighbours that are matched for each.
_EXHAUSTIVE, _NEIGHBOURS, _DOUBLINGS = 40, 16, 6
_MOST_FRAMES = 120
# Thorough features take several times as long.
_MOST_THOROUGH = 60
_VERSION = 1  # of the kept stages; another version starts again


@dataclass(frozen=True)
class CaptureOptions:
    """How cameras are found.

    Attributes:
        frames: the most frames of a video, or photos of a folder, to use.
        size: largest longer side of the written images in pixels.
        sfm_size: longer side of the copies that cameras are found with.
        lens: "radial" suits phones and cameras; "opencv" has more distortion terms, "fisheye" is for action cameras.
        scale_from: names of two photos, and the distance in metres between the places where they were taken.
        max_pixels: see ``load_scene``.
        seed: of all random choices.
    """

    frames: int | None = None
    size: int = 1600
    sfm_size: int = 1024
    lens: LensName = "radial"
    scale_from: ScaleFrom | None = None
    max_pixels: int = MAX_PIXELS
    seed: int = 0

    def check(self) -> None:
        """Raise ConfigError for a value that is out of range."""
        check_at_least("--frames", 3 if self.frames is None else self.frames, 3)
        for flag, value in (("--size", self.size), ("--sfm-size", self.sfm_size)):
            check_at_least(flag, value, 160)
        if self.lens not in COLMAP_MODELS:
            raise ConfigError(f"--lens {self.lens} was given.", expected=" or ".join(COLMAP_MODELS))
        check_at_least("--seed", self.seed, 0)
        check_scale(self.scale_from)


@dataclass(frozen=True)
class Captured:
    """The result of ``capture``.

    Attributes:
        folder: holds transforms.json, images/, points.ply, report.json and report.png.
        report: the content of report.json.
    """

    folder: Path
    report: dict[str, Any]

    @property
    def camera_file(self) -> Path:
        return self.folder / CAMERA_FILE


def capture(
    input: Path | str,
    output: Path | str,
    *,
    frames: int | None = None,
    size: int = 1600,
    sfm_size: int = 1024,
    lens: LensName = "radial",
    scale_from: ScaleFrom | None = None,
    max_pixels: int = MAX_PIXELS,
    seed: int = 0,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Captured:
    """Find the cameras of photos or of a video, and write them as a scene that this package and nerfstudio read.

    Blurred and repeated photos are left out. Structure from motion (pycolmap) runs in a process of its own. The images
    are written undistorted, all of one size. Every stage is kept until the end, so a call that was interrupted goes on
    where it was; a call with the same input and options as a finished one returns that.

    The world has +z up. Its unit is unknown unless ``scale_from`` is given.

    Args:
        input: a folder of photos (with sub-folders), or a video.
        output: a folder for transforms.json, images/, points.ply, report.json and report.png, written all or not at
            all.
        frames, size, sfm_size, lens, scale_from, max_pixels, seed: see ``CaptureOptions``.
        overwrite: also replace files of these names that this program did not write.
        reporter: receives messages and progress.

    Raises:
        SceneError: nothing to use, or photos from which no cameras can be found; the message says what to shoot.
        ConfigError: an invalid option.
        OutputError: the folder cannot be written.
        WorkerError: structure from motion was killed, or took too long.
    """
    options = CaptureOptions(frames, size, sfm_size, lens, scale_from, max_pixels, seed)
    options.check()
    target = Path(output)
    check_folder(target)
    media = find_media(Path(input))
    check_apart(target, media.files)
    fingerprint = _fingerprint(media, options)
    if (known := _finished(target, fingerprint)) is not None:
        return known
    work = _Capture(media, options, reporter or Silent())
    with (
        collect_warnings(work.warnings),
        resumable_folder(target, _fingerprint(media, replace(options, scale_from=None))) as kept,
        atomic_folder(target, (*SCENE_NAMES, REPORT, PICTURE), overwrite=overwrite) as out,
    ):
        try:
            written = {**work.all(kept, out), "fingerprint": fingerprint}
        except SceneError:  # the same photos would give the same error
            _empty(kept)
            raise
        write_json(out / REPORT, written)
    return Captured(target, written)


def _empty(folder: Path) -> None:
    for entry in entries(folder):
        shutil.rmtree(entry, ignore_errors=True) if is_dir(entry) else entry.unlink(missing_ok=True)


def _fingerprint(media: Media, options: CaptureOptions) -> str:
    """A hash of the input's files (names, sizes, times) and the options."""
    states = [(str(absolute(file)), (found := os.stat(file)).st_size, found.st_mtime_ns) for file in media.files]
    return hashlib.sha256(json.dumps([_VERSION, asdict(options), states]).encode("utf-8", "surrogatepass")).hexdigest()


def _finished(target: Path, fingerprint: str) -> Captured | None:
    """An earlier result of the same call."""
    if not (is_file(target / REPORT) and is_file(target / CAMERA_FILE)):
        return None
    try:
        found = read_json(target / REPORT)
    except SceneError:
        return None
    same = isinstance(found, dict) and found.get("fingerprint") == fingerprint
    return Captured(target, found) if same else None


@dataclass
class _Capture:
    """One call of ``capture``."""

    media: Media
    options: CaptureOptions
    reporter: Reporter
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)

    def all(self, kept: Path, out: Path) -> dict[str, Any]:
        """Run every stage, write the scene to ``out``, and return the report."""
        root = str(self.media.root)
        with self._stage("photos"):
            files, names, about = self._files(kept)
            shots, refused = prepare(files, names, kept, self.options.sfm_size, self.options.max_pixels, self.reporter)
            shots = self._usable(shots, refused)
        survey, model = self._cameras(shots, kept)
        with self._stage("write"):
            registered = [shot for shot in shots if shot.prepared in model.w2c]
            scene, how_up = self._scene(registered, model)
            self._write(scene, out)
        unregistered = report.left_out(shots, model, survey)
        if len(registered) < ENOUGH * len(shots):
            warn(f"{len(registered)} of {len(shots)} photos of {root} have a camera; {REPORT} names the others")
        if report.is_doubtful(registered, model):
            warn(f"the cameras of {root} rest on few points and may be wrong; look at {PICTURE}")
        weak = report.weaknesses(registered, unregistered, refused, model, scene.cameras)
        text = f"{len(registered)} of {len(files)} photos, from above; {len(model.points):,} points"
        assert scene.points is not None
        write_bytes(out / PICTURE, from_above(scene.cameras, scene.points, scene.points_rgb, text))
        return {
            "input": root,
            **about,
            "photos": len(files),
            "usable": len(shots),
            "registered": len(registered),
            "left_out": {**refused, **unregistered},
            **self._figures(registered, model, scene),
            "up": how_up,
            "unit": "unknown" if self.options.scale_from is None else "metres",
            "weaknesses": [asdict(weakness) for weakness in weak],
            "files": dict(zip((shot.name for shot in registered), image_names(scene.names, "jpg"), strict=True)),
            "seconds": self.seconds,
            "warnings": self.warnings,
            "options": asdict(self.options),
        }

    def _files(self, kept: Path) -> tuple[Sequence[Path], Sequence[str], dict[str, Any]]:
        """Photos or frames, their names, and what is known of a video."""
        options = self.options
        if self.media.video is not None:
            most = options.frames or _MOST_FRAMES
            files, names, about = choose_frames(
                self.media.video, kept, most, options.size, options.max_pixels, self.reporter
            )
            return files, names, {"video": about}
        files = self.media.photos
        if options.frames is not None and len(files) > options.frames:
            files = [files[i] for i in evenly_spaced(len(files), options.frames)]
        return files, [file.relative_to(self.media.root).as_posix() for file in files], {}

    def _usable(self, shots: list[Shot], refused: dict[str, str]) -> list[Shot]:
        """The photos worth using; the reasons for the others are added to ``refused``."""
        root, count = str(self.media.root), len(shots)
        first = next(iter(refused.items()), None)
        because = f" ({len(refused)} cannot be used, such as {first[0]}: {first[1]})" if first else ""
        diagnosis.refuse_few(count, root, because)
        same = duplicates([shot.thumbnail for shot in shots], [shot.blur for shot in shots])
        refused.update({shots[i].name: f"shows the same picture as {shots[other].name}" for i, other in same.items()})
        different = [shot for i, shot in enumerate(shots) if i not in same]
        diagnosis.refuse_few(len(different), root, f": {len(same)} of {count} photos repeat another" if same else "")
        bad = set(blurred([shot.blur for shot in different]))
        sharp = [shot for i, shot in enumerate(different) if i not in bad]
        if len(sharp) < 3:
            raise diagnosis.refuse_blurred(root, len(different))
        refused.update({shot.name: "too blurred" for i, shot in enumerate(different) if i in bad})
        return sharp

    def _cameras(self, shots: list[Shot], kept: Path) -> tuple[dict[str, Any], Model]:
        """What the matches show, and the best model. Raises SceneError."""
        options, count, root = self.options, len(shots), str(self.media.root)
        pairs = count * (count - 1) // 2
        if count > _EXHAUSTIVE:
            pairs = min(pairs, count * (_NEIGHBOURS + _DOUBLINGS))
        self.reporter.say(
            f"{root}: {count} photos to find cameras for, about {_expected_seconds(count, pairs, options.sfm_size)}"
        )
        job = {
            "images": str(kept / "prepared"),
            "groups": shared_cameras(shots, COLMAP_MODELS[options.lens]),
            "sfm_size": options.sfm_size,
            "features": _FEATURES,
            "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            "seed": options.seed,
            "exhaustive_up_to": _EXHAUSTIVE,
            "neighbours": _NEIGHBOURS,
            "doublings": _DOUBLINGS,
            "ordered": True,  # files sorted by name are mostly in the order of time
            "thorough": False,
        }
        stages = Stages(kept, job, self.reporter, self.seconds)
        survey = stages.matched(count, pairs)
        if (error := diagnosis.before_mapping(survey, count, root)) is not None:
            raise error
        models = self._models(stages, count)
        if not is_whole(best(models), count) and count <= _MOST_THOROUGH:
            self.reporter.say("some photos do not fit yet: trying again with more thorough features")
            again = Stages(kept / "thorough", {**job, "thorough": True}, self.reporter, self.seconds, "thorough ")
            again.matched(count, pairs)
            models += self._models(again, count)
        chosen = best(models)
        if chosen is None or is_scrap(chosen, count):
            raise diagnosis.not_solved(max((len(m["registered"]) for m in models), default=0), count, root)
        return survey, load_model(chosen)

    def _models(self, stages: Stages, count: int) -> list[dict[str, Any]]:
        """The models of the incremental mapper and, unless that found a whole one, of the other."""
        models = stages.models("incremental", count)
        return models if is_whole(best(models), count) else models + stages.models("together", count)

    def _scene(self, shots: list[Shot], model: Model) -> tuple[Scene, str]:
        """The undistorted scene in its world, and how its up axis was found."""
        c2w = {name: np.linalg.inv(w2c) for name, w2c in model.w2c.items()}
        up, how = up_axis(c2w, shots)
        scale, rotation, translation = to_world(model, up, self.options.scale_from, shots)
        frames = [
            CaptureFrame(shot.name, shot.photo(), _lens(model.cameras[shot.prepared], shot), c2w[shot.prepared])
            for shot in shots
        ]
        points, rgb = torch.from_numpy(model.points.copy()), torch.from_numpy(model.rgb / 255).float()
        scene = assemble(
            CaptureSource(tuple(frames), points, rgb), max_side=self.options.size, max_pixels=self.options.max_pixels
        )
        world = Similarity(scale, torch.from_numpy(rotation), torch.from_numpy(translation))
        return scene.transform(world), how

    def _write(self, scene: Scene, out: Path) -> None:
        with self.reporter.progress("images", len(scene)) as advance:
            write_scene(scene, out, image_format="jpg", on_image=advance)

    def _figures(self, shots: list[Shot], model: Model, scene: Scene) -> dict[str, Any]:
        covered, gap = report.seen_from(scene.cameras)
        known = [shot.data.focal for shot in shots if shot.data.focal]
        shares = list(report.best_shares(shots, model).values())
        return {
            "mapper": model.mapper,
            "width": scene.cameras.width,
            "height": scene.cameras.height,
            "points": len(model.points),
            "reprojection_error_px": round(model.error_px, 3),
            "track_length": round(model.track_length, 2),
            "support": round(model.support, 3),
            "cameras": len({id(camera) for camera in model.cameras.values()}),
            "focal_prior": round(float(np.median(known)), 4) if known else None,
            "focal": round(report.focal_share(model), 4),
            "overlap": round(float(np.median(shares)), 3),
            "blur": round(float(np.median([shot.blur for shot in shots])), 3),
            "turn_covered_deg": round(covered, 1),
            "widest_gap_deg": round(gap, 1),
            "exposure_jumps": len(report.jumps(shots, model)),
        }


def _lens(camera: Camera, shot: Shot) -> Lens:
    """The lens for the photo itself, of which the prepared copy is a reduction."""
    lens = Lens(camera.model, camera.params, camera.width, camera.height)
    return lens.resize(*shot.photo().size)


def _expected_seconds(photos: int, pairs: int, side: int) -> str:
    """Measured on two cores: features grow with pixels, matching with pairs, mapping with photos."""
    seconds = photos * (0.3 + 0.7 * (side / 1024) ** 2) + 0.06 * pairs + 0.5 * photos
    return f"{seconds:.0f} s on two cores" if seconds < 90 else f"{seconds / 60:.0f} minutes on two cores"
