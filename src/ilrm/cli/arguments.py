"""Arguments that several commands share, and how they become values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ilrm.errors import ConfigError, OutputError

if TYPE_CHECKING:
    import torch

Output = Annotated[Path, tyro.conf.arg(aliases=["-o"])]
# load_scene's own limit under a name of the command line, with one help text.
MaxPixels = Annotated[
    int,
    tyro.conf.arg(
        help="Refuse photos of more pixels, so that a small file cannot fill the memory (8 bytes a pixel; WebP, AVIF, "
        "progressive JPEG and 16-bit TIFF count twice)."
    ),
]
PrecisionName = Literal["auto", "fp32", "bf16"]
Watch = Literal["spare", "held-out", "none"]

SMALLEST_SIDE, LARGEST_SIDE = 32, 4096


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


def check_suffix(path: Path, suffix: str) -> None:
    """Refuse an output file of another kind than the one we write."""
    if path.suffix.lower() != suffix:
        raise OutputError(f"{path} has the extension {path.suffix!r}.", expected=f"a name that ends in {suffix}")


def read_with(splats: Path, *others: Path | None) -> list[Path]:
    """What a command reads beside a splat file: its cameras, numbers and photos, and the scenes or files of flags."""
    from ilrm.export.beside import folder_of
    from ilrm.scenes.inputs import input_paths

    beside = [folder_of(splats) / name for name in ("cameras.json", "metrics.json", "inputs")]
    given = [path for path in others if path is not None]
    named = [path for path in given if path.name == "cameras.json"]
    return [*beside, *named, *(file for path in given if path not in named for file in input_paths(path))]


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
