"""A procedural flight as a video a phone could have taken, and a walk of many photos, beside their true cameras.

    python benchmarks/capture_video.py -o OUT                      # a video: blur, noise, rotation tag, variable rate
    python benchmarks/capture_video.py -o OUT --photos 100         # a walk of photos at 1024 px: seconds and memory
    python benchmarks/capture_video.py -o OUT --photos 500 --size 256

The video has 1 to 3 frames blurred along the movement out of ten, noise of the sensor, frames of 1/30 to 1/10 s, and is
stored on its side with a rotation in the header. OUT/video.json and OUT/photos-N.json hold the figures.
"""

from __future__ import annotations

import json
import resource
import struct
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import av
import numpy as np
import tyro
from PIL import Image

import ilrm
from capture import pose_errors
from ilrm.datasets.procedural import ProceduralConfig, make_scene
from ilrm.scenes import load_scene, save_scene

Pixels = np.ndarray


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        output: folder of the results.
        photos: number of photos of a walk, instead of a video.
        size: longer side of the photos or of the video.
        frames: of the video.
        seed: of the world.
        reconstruct: also reconstruct from found and from true cameras.
    """

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("out/capture-video")
    photos: int | None = None
    size: int = 640
    frames: int = 150
    seed: int = 4
    reconstruct: bool = True


def world(views: int, size: int, seed: int) -> ilrm.Scene:
    """A walk of 80 degrees around the middle of a room; hand-held paths of these worlds are often centimetres long."""
    shape = {"views": views, "width": size, "height": size * 3 // 4}
    config = ProceduralConfig(**shape, style="photographic", kind="room", path="orbit", baseline=(1.1, 1.2))
    return make_scene(seed, config)


def pixels(scene: ilrm.Scene, view: int) -> Pixels:
    return (scene.images[view] * 255).round().byte().numpy()


def film(scene: ilrm.Scene, path: Path) -> None:
    """Write the views as a video on its side, with the rotation that puts it upright in the track's header."""
    rng, seconds = np.random.default_rng(0), 0.0
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = scene.cameras.height, scene.cameras.width, "yuv420p"
        stream.options = {"crf": "20"}
        stream.time_base = Fraction(1, 1000)
        for view in range(len(scene)):
            image = pixels(scene, view).astype(float)
            if view % 10 < rng.integers(1, 4) and view + 1 < len(scene):  # the shutter was open for long
                image = np.mean([image, pixels(scene, view + 1), np.roll(image, 5, 1), np.roll(image, 10, 1)], axis=0)
            image = (image + rng.normal(0, 5, image.shape)).clip(0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.rot90(image, 1)), format="rgb24")
            frame.pts, frame.time_base = round(seconds * 1000), Fraction(1, 1000)
            seconds += rng.uniform(1 / 30, 1 / 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = bytearray(path.read_bytes())
    clockwise = (0, 1 << 16, 0, -(1 << 16) & 0xFFFFFFFF, 0, 0, 0, 0, 1 << 30)
    struct.pack_into(">9I", data, data.index(b"tkhd") + 44, *clockwise)
    path.write_bytes(data)


def numbers(names: tuple[str, ...]) -> list[int]:
    return [int("".join(c for c in Path(name).stem if c.isdigit())) for name in names]


def compare(options: Options, truth: ilrm.Scene, source: Path) -> dict[str, Any]:
    begin = time.perf_counter()
    report = ilrm.capture(source, options.output / "capture", overwrite=True).report
    seconds = time.perf_counter() - begin
    found = load_scene(options.output / "capture")
    views = numbers(found.names)
    degrees, places = pose_errors(found.cameras.c2w.double().numpy(), truth.cameras.c2w.double().numpy()[views])
    row: dict[str, Any] = {
        "photos": report["photos"],
        "registered": report["registered"],
        "rotation_deg": [round(float(np.median(degrees)), 3), round(float(degrees.max()), 3)],
        "position": [round(float(np.median(places)), 5), round(float(places.max()), 5)],
        "focal_ratio": round((found.cameras.K[0, 0, 0] / truth.cameras.K[0, 0, 0]).item(), 4),
        "seconds": round(seconds, 1),
        "stages": report["seconds"],
    }
    if options.reconstruct:
        # The same frames with their true cameras.
        save_scene(truth.select(views), options.output / "true", image_format="jpg", overwrite=True)
        for name, folder in (("found", options.output / "capture"), ("true", options.output / "true")):
            begin = time.perf_counter()
            metrics = ilrm.run(folder, export=()).metrics
            row[name] = {"psnr": metrics["psnr"], "seconds": round(time.perf_counter() - begin, 1)}
    row["peak_gb"] = {
        "this process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "structure from motion": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20,
    }
    return row


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    options.output.mkdir(parents=True, exist_ok=True)
    if options.photos is None:
        truth = world(options.frames, options.size, options.seed)
        source, result = options.output / "video.mp4", options.output / "video.json"
        film(truth, source)
    else:
        truth = world(options.photos, options.size, options.seed)
        source, result = options.output / "photos", options.output / f"photos-{options.photos}.json"
        source.mkdir(exist_ok=True)
        for view in range(len(truth)):
            Image.fromarray(pixels(truth, view)).save(source / f"{view:04d}.jpg", quality=95)
    row = compare(options, truth, source)
    print(json.dumps(row, indent=1))
    result.write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
