"""The options of a run, and what they may be. Nothing here loads torch: the command line reads it for its help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ilrm.errors import ConfigError
from ilrm.image_files import MAX_PIXELS

if TYPE_CHECKING:
    import torch

PrecisionName = Literal["auto", "fp32", "bf16"]
WatchName = Literal["spare", "held-out", "none"]
ExportName = Literal["html", "video", "mesh", "spz", "splat", "glb", "compressed-ply"]

SMALLEST_SIDE, LARGEST_SIDE = 32, 4096


@dataclass(frozen=True)
class RunOptions:
    """What ``ilrm.run`` and ``ilrm reconstruct`` are told.

    Attributes:
        input: a scene's folder or camera file: transforms.json, COLMAP, opencv_cameras.json, chunks.
        output: folder to write; None writes nothing.
        views: number of input photos; by default as many as memory and time reasonably carry.
        holdout: keep every such photo out of the inputs, to measure on it; 0 keeps none out. By default the photos that
            the scene itself declares for testing, else every 8th if there are 10 or more.
        weights: name, file or folder of the weights, or a hub id.
        refine: steps of optimisation on the input photos after the forward pass.
        export: what to write beside scene.ply.
        watch: photos that stop the refinement when they get worse: those neither input nor held out ("spare"), the
            held-out ones (their score is then no longer independent), or none.
        size: longer side of the photos in pixels; larger ones are reduced.
        max_pixels: photos of more pixels are refused.
        device: auto, cpu, cuda or cuda:N.
        precision: number format of the network.
        seed: of everything that is drawn at random.
        overwrite: replace files of the same names that this program did not write, too.
    """

    input: Path
    output: Path | None = None
    views: int | None = None
    holdout: int | None = None
    weights: str = "ilrm-small"
    refine: int = 0
    export: tuple[ExportName, ...] = ("html", "video")
    watch: WatchName = "spare"
    size: int = 256
    max_pixels: int = MAX_PIXELS
    device: str = "auto"
    precision: PrecisionName = "auto"
    seed: int = 0
    overwrite: bool = False

    def check(self) -> None:
        """Refuse impossible numbers before any work. Raises ConfigError."""
        check_size(self.size)
        check_at_least("--max-pixels", self.max_pixels, 1)
        check_at_least("--refine", self.refine, 0)
        check_at_least("--holdout", self.holdout or 0, 0)
        check_at_least("--views", 2 if self.views is None else self.views, 2)


def check_size(size: int) -> int:
    """The longer side of the images, if it can be one."""
    if not SMALLEST_SIDE <= size <= LARGEST_SIDE:
        raise ConfigError(
            f"--size {size} is no image size.", expected=f"{SMALLEST_SIDE} to {LARGEST_SIDE} pixels (the longer side)"
        )
    return size


def check_at_least(flag: str, value: int, least: int) -> int:
    """The value of a flag, if it is not below ``least``."""
    if value < least:
        raise ConfigError(f"{flag} {value} was given.", expected=f"{least} or more")
    return value


def find_device(name: str) -> torch.device:
    """The device of a name; "auto" is the GPU if there is one."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name} is no device.", expected="auto, cpu, cuda or cuda:1")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices that torch can use.",
            fix="use --device cpu, or install a build of torch for your GPU",
        )
    return device
