"""Structure from motion, one stage a call: ``python worker.py JOB.json``.

This is a process of its own, because pycolmap may abort the whole process, run for hours, or need all memory. It
imports neither torch nor the rest of this package, so it starts quickly. It ends when its standard input closes: then
the process that started it is gone.

Every stage reads the database and adds to it. What is there already is kept, so a stage that was killed goes on.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

# Words of the codebook for retrieval, descriptors to learn it from, and the most that describe one photo.
_WORDS, _LEARNT_FROM, _DESCRIBED_BY = 64, 40_000, 1500
# Starts of the mapper that takes all photos at once: focal length (of the longer side; None as it is) and seed.
_ATTEMPTS = ((None, 0), (1.0, 0), (0.75, 0), (None, 1))
# A match that misses its epipolar line by this share of the longer side counts half.
_TIGHT = 1e-3
# Pairs that may only turn: the most to look at, those that the focal length is searched by, and its last step.
_MOST_PAIRS, _SEARCHED_BY, _FOCAL_STEP = 300, 24, 0.005

# Two images, and the pixels (N, 2) of N matches in each.
Matches = tuple[int, int, np.ndarray, np.ndarray]


def features(job: dict[str, Any]) -> None:
    """SIFT features of the photos of each group; a group shares one camera."""
    import pycolmap

    for group in job["groups"]:
        reader = pycolmap.ImageReaderOptions()
        reader.camera_model = group["model"]
        if group["params"]:
            reader.camera_params = ",".join(repr(value) for value in group["params"])
        if (known := _camera_of(job["database"], group["names"])) is not None:
            reader.existing_camera_id = known
        options = pycolmap.FeatureExtractionOptions()
        options.max_image_size, options.num_threads = job["sfm_size"], job["threads"]
        options.sift.max_num_features = job["features"]
        options.sift.estimate_affine_shape = options.sift.domain_size_pooling = job.get("thorough", False)
        pycolmap.extract_features(
            job["database"],
            job["images"],
            image_names=group["names"],
            camera_mode=pycolmap.CameraMode.SINGLE,
            reader_options=reader,
            extraction_options=options,
            device=pycolmap.Device.cpu,
        )


def match(job: dict[str, Any]) -> None:
    """Match pairs of photos: all of them, or those that look alike and neighbours."""
    import pycolmap

    pairs = _pairs(job)
    listed = Path(job["pairs"])
    listed.write_text("".join(f"{a} {b}\n" for a, b in pairs), "utf-8")
    _tell(total=len(pairs))
    options = pycolmap.FeatureMatchingOptions()
    options.num_threads = job["threads"]
    pairing = pycolmap.ImportedPairingOptions()
    pairing.match_list_path = listed
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = job["seed"]
    pycolmap.match_image_pairs(job["database"], options, pairing, verification, device=pycolmap.Device.cpu)


def survey(job: dict[str, Any]) -> None:
    """For every verified pair: inliers, how far they move, and how well a camera that only turns explains them."""
    import pycolmap

    with pycolmap.Database.open(job["database"]) as database:
        images = {image.image_id: image for image in database.read_all_images()}
        cameras = {camera.camera_id: camera for camera in database.read_all_cameras()}
        keypoints = {image: len(database.read_keypoints(image)) for image in images}
    pairs, bearings = [], []
    for a, b, first, second in sorted(_verified(job["database"]), key=lambda pair: -len(pair[2])):
        moved = float(np.median(np.linalg.norm(first - second, axis=1)))
        pairs.append({"names": [images[a].name, images[b].name], "inliers": len(first), "moved_px": moved})
        if len(bearings) < _MOST_PAIRS:
            sizes = [(cameras[images[i].camera_id].width, cameras[images[i].camera_id].height) for i in (a, b)]
            bearings.append((first, second, *sizes))
    for pair, turned in zip(pairs, _turned(bearings), strict=False):
        pair["turn_px"] = turned
    _write(job["result"], {"pairs": pairs, "keypoints": {images[i].name: keypoints[i] for i in images}})


def _verified(database: str) -> list[Matches]:
    """The verified matches of every pair that has some."""
    import pycolmap

    with pycolmap.Database.open(database) as opened:
        places = {
            image.image_id: opened.read_keypoints(image.image_id)[:, :2].astype(np.float64)
            for image in opened.read_all_images()
        }
        found = []
        for number, geometry in zip(*opened.read_two_view_geometries(), strict=True):
            if len(inliers := geometry.inlier_matches):
                a, b = pycolmap.pair_id_to_image_pair(number)
                found.append((a, b, places[a][inliers[:, 0]], places[b][inliers[:, 1]]))
    return found


def incremental(job: dict[str, Any]) -> None:
    """One photo after another is added to the best pair."""
    import pycolmap

    pycolmap.set_random_seed(job["seed"])
    options = pycolmap.IncrementalPipelineOptions()
    options.random_seed, options.num_threads = job["seed"], job["threads"]
    options.min_model_size, options.max_runtime_seconds = 3, job["seconds"]
    out = Path(job["models"])
    out.mkdir(parents=True, exist_ok=True)
    pycolmap.incremental_mapping(
        job["database"], job["images"], out, options, next_image_callback=lambda: _tell(done=1)
    )
    _write(job["result"], {"models": _described(out, "", _verified(job["database"]))})


def together(job: dict[str, Any]) -> None:
    """All photos at once. This may end in a wrong optimum, so it is tried from several focal lengths and seeds."""
    import pycolmap

    begin, described, verified = time.monotonic(), [], _verified(job["database"])
    for number, (focal, seed) in enumerate(_ATTEMPTS):
        if number and time.monotonic() - begin > job["seconds"] / 4:
            break
        database = _guessing(job, focal)
        if database is None:  # every focal length is known: only the seed matters
            continue
        pycolmap.set_random_seed(job["seed"] + seed)
        pycolmap.calibrate_view_graph(database)
        options = pycolmap.GlobalPipelineOptions()
        options.mapper.random_seed, options.mapper.num_threads = job["seed"] + seed, job["threads"]
        out = Path(job["models"]) / str(number)
        out.mkdir(parents=True, exist_ok=True)
        pycolmap.global_mapping(database, job["images"], out, options)
        described += _described(out, f"{number}/", verified)
        _tell(done=1)
    _write(job["result"], {"models": described})


def _guessing(job: dict[str, Any], focal: float | None) -> str | None:
    """A copy of the database in which unknown focal lengths start from a share of the longer side.

    None if the share would change nothing.
    """
    import pycolmap

    copy = Path(job["models"] + ".db")
    copy.unlink(missing_ok=True)
    with closing(sqlite3.connect(job["database"])) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    if focal is None:
        return str(copy)
    with pycolmap.Database.open(str(copy)) as database:
        unknown = [camera for camera in database.read_all_cameras() if not camera.has_prior_focal_length]
        for camera in unknown:
            params = np.array(camera.params)
            params[list(camera.focal_length_idxs())] = focal * max(camera.width, camera.height)
            camera.params = params.tolist()
            database.update_camera(camera)
    return str(copy) if unknown else None


def _pairs(job: dict[str, Any]) -> list[tuple[str, str]]:
    names = [name for group in job["groups"] for name in group["names"]]
    names.sort()
    if len(names) <= job["exhaustive_up_to"]:
        return [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    chosen: set[tuple[int, int]] = set()
    alike = _alikeness(job["database"], names)
    for i, row in enumerate(alike):
        row[i] = -np.inf
        for j in np.argsort(-row, kind="stable")[: job["neighbours"]]:
            chosen.add((min(i, int(j)), max(i, int(j))))
    # Neighbours in time, at steps that double: 1, 2, 3, 4, 8, 16, ...
    for i in range(len(names)):
        for step in (1, 2, 3, *(2**k for k in range(2, job["doublings"]))):
            if job["ordered"] and i + step < len(names):
                chosen.add((i, i + step))
    return [(names[i], names[j]) for i, j in sorted(chosen)]


def _alikeness(database: str, names: list[str]) -> np.ndarray:
    """(N, N) similarity of photos: products of VLAD descriptors (Jegou et al., 2010), whose words are learnt here."""
    import pycolmap

    with pycolmap.Database.open(database) as opened:
        numbers = {image.name: image.image_id for image in opened.read_all_images()}
        described = []
        for name in names:
            rows = _array(opened.read_descriptors(numbers[name]))[:_DESCRIBED_BY]
            described.append(np.sqrt(np.ascontiguousarray(rows, np.float32)))
    rng = np.random.default_rng(0)
    pool = np.concatenate(described)
    words = _means(pool[rng.permutation(len(pool))[:_LEARNT_FROM]], rng)
    vectors = np.stack([_vlad(rows, words) for rows in described])
    return vectors @ vectors.T


def _array(descriptors: Any) -> np.ndarray:
    """(N, 128); newer releases wrap the array."""
    return np.asarray(getattr(descriptors, "data", descriptors))


def _means(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    words = rows[rng.permutation(len(rows))[:_WORDS]].copy()
    for _ in range(8):
        owner = _nearest(rows, words)
        for word in range(len(words)):
            if (mine := rows[owner == word]).size:
                words[word] = mine.mean(0)
    return words


def _nearest(rows: np.ndarray, words: np.ndarray) -> np.ndarray:
    return (np.square(words).sum(1) - 2 * rows @ words.T).argmin(1)


def _vlad(rows: np.ndarray, words: np.ndarray) -> np.ndarray:
    sums = np.zeros_like(words)
    if len(rows):
        owner = _nearest(rows, words)
        np.add.at(sums, owner, rows - words[owner])
    sums /= np.linalg.norm(sums, axis=1, keepdims=True) + 1e-9  # no word outweighs the others
    vector = sums.ravel()
    return vector / (np.linalg.norm(vector) + 1e-9)


def _turned(pairs: list[tuple[np.ndarray, np.ndarray, tuple[int, int], tuple[int, int]]]) -> list[float]:
    """Median error in pixels of each pair if its camera only turned, with the focal length that suits all best."""
    if not pairs:
        return []
    some = pairs[:: max(1, len(pairs) // _SEARCHED_BY)]
    focal, step = 1.0, 0.3
    around = np.exp(np.arange(-4, 5) * step)
    while step > _FOCAL_STEP:
        tried = focal * around
        focal = tried[np.argmin([np.median([_turn_error(*pair, f) for pair in some]) for f in tried])]
        step /= 3
        around = np.exp(np.arange(-3, 4) * step)
    return [_turn_error(*pair, focal) for pair in pairs]


def _turn_error(
    first: np.ndarray, second: np.ndarray, size_1: tuple[int, int], size_2: tuple[int, int], focal: float
) -> float:
    rays, centres, f = [], [], []
    for points, size in ((first, size_1), (second, size_2)):
        centres.append(np.array(size) / 2)
        f.append(focal * max(size))
        ray = np.column_stack([(points - centres[-1]) / f[-1], np.ones(len(points))])
        rays.append(ray / np.linalg.norm(ray, axis=1, keepdims=True))
    keep = np.arange(len(first))
    error = np.zeros(len(first))
    for _ in range(3):  # the best half decides
        u, _, vt = np.linalg.svd(rays[1][keep].T @ rays[0][keep])
        turn = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
        seen = rays[0] @ turn.T
        flat = seen[:, :2] / np.maximum(seen[:, 2:], 1e-6) * f[1] + centres[1]
        error = np.linalg.norm(flat - second, axis=1)
        keep = np.argsort(error)[: max(8, len(error) // 2)]
    return float(np.median(error))


def _camera_of(database: str, names: list[str]) -> int | None:
    """The camera of the first of these photos that is in the database."""
    import pycolmap

    if not Path(database).exists():
        return None
    with pycolmap.Database.open(database) as opened:
        known = {image.name: image.camera_id for image in opened.read_all_images()}
    return next((known[name] for name in names if name in known), None)


def _described(
    folder: Path, prefix: str, verified: list[tuple[int, int, np.ndarray, np.ndarray]]
) -> list[dict[str, Any]]:
    """What the models in a folder hold, for the choice between them and for the report."""
    import pycolmap

    described = []
    for place in sorted(folder.iterdir()):
        if not (place / "images.bin").exists():
            continue
        model = pycolmap.Reconstruction(str(place))
        names = {number: image.name for number, image in model.images.items() if image.has_pose}
        seen: dict[str, int] = dict.fromkeys(names.values(), 0)
        shared: dict[tuple[str, str], int] = {}
        for point in model.points3D.values():
            views = sorted({names[e.image_id] for e in point.track.elements if e.image_id in names})
            for i, a in enumerate(views):
                seen[a] += 1
                for b in views[i + 1 :]:
                    shared[a, b] = shared.get((a, b), 0) + 1
        fitting, of_all = _support(model, names, verified)
        described.append(
            {
                "folder": prefix + place.name,
                "registered": sorted(names.values()),
                "points": len(model.points3D),
                "agreement": sum(fitting.values()),
                "support": {name: fitting[name] / max(of_all[name], 1) for name in seen},
                "error_px": float(model.compute_mean_reprojection_error()) if len(model.points3D) else None,
                "track_length": float(model.compute_mean_track_length()) if len(model.points3D) else None,
                "points_of": seen,
                "shared": [[a, b, count] for (a, b), count in sorted(shared.items())],
            }
        )
    return described


def _support(model: Any, names: dict[int, str], verified: list[Matches]) -> tuple[dict[str, float], dict[str, int]]:
    """How many matches of each photo fit the cameras of a model, a match that misses by ``_TIGHT`` half, and of how
    many: a camera in the wrong place contradicts what matching has verified pair by pair."""
    fitting, of_all = dict.fromkeys(names.values(), 0.0), dict.fromkeys(names.values(), 0)
    for a, b, first, second in verified:
        if a not in names or b not in names:
            continue
        cameras = [model.cameras[model.images[i].camera_id] for i in (a, b)]
        rays = [
            np.column_stack([camera.cam_from_img(pixels), np.ones(len(pixels))])
            for camera, pixels in zip(cameras, (first, second), strict=True)
        ]
        poses = [np.asarray(model.images[i].cam_from_world().matrix()) for i in (a, b)]
        turn = poses[1][:, :3] @ poses[0][:, :3].T
        shift = poses[1][:, 3] - turn @ poses[0][:, 3]
        essential = np.cross(np.eye(3), shift) @ turn
        line = rays[0] @ essential.T
        back = rays[1] @ essential
        error = np.abs((rays[1] * line).sum(1)) / np.sqrt(
            np.square(line[:, :2]).sum(1) + np.square(back[:, :2]).sum(1) + 1e-18
        )
        share = [camera.mean_focal_length() / max(camera.width, camera.height) for camera in cameras]
        fit = float(np.nan_to_num(1 / (1 + (error * np.mean(share) / _TIGHT) ** 2)).sum())
        for name in (names[a], names[b]):
            fitting[name] += fit
            of_all[name] += len(first)
    return fitting, of_all


def _write(path: str, value: object) -> None:
    """All or nothing: a killed stage leaves no half result."""
    unfinished = Path(path + ".unfinished")
    unfinished.write_text(json.dumps(value), "utf-8")
    os.replace(unfinished, path)


def _tell(**progress: int) -> None:
    print(json.dumps(progress), flush=True)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


STAGES = {
    "features": features,
    "match": match,
    "survey": survey,
    "incremental": incremental,
    "together": together,
}


def main() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    import pycolmap

    pycolmap.logging.minloglevel = 2  # errors only
    STAGES[job["stage"]](job)
    sys.stdout.flush()
    os._exit(0)  # the thread that waits for the parent must not hold the process


if __name__ == "__main__":
    main()
