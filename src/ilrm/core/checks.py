"""Checks of option values. torch is imported only when a device is needed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ilrm.core.errors import ConfigError, OutputError

if TYPE_CHECKING:
    import torch

SMALLEST_SIDE, LARGEST_SIDE = 32, 4096
# The most pixels of an image file. Photos of 100-megapixel cameras pass; decoding one of this size takes about 1 GB.
MAX_PIXELS = 120_000_000


def check_size(size: int) -> int:
    """Return the longer side of the images, if it is valid. Raises ConfigError."""
    if not SMALLEST_SIDE <= size <= LARGEST_SIDE:
        raise ConfigError(
            f"--size {size} is not a valid image size.",
            expected=f"{SMALLEST_SIDE} to {LARGEST_SIDE} pixels (the longer side)",
        )
    return size


def check_at_least(flag: str, value: int, least: int) -> int:
    """Return the value of a flag, if it is at least ``least``. Raises ConfigError."""
    if value < least:
        raise ConfigError(f"{flag} {value} was given.", expected=f"{least} or more")
    return value


def check_suffix(path: Path, suffix: str) -> None:
    """Refuse an output file with another extension than the format that is written. Raises OutputError."""
    if path.suffix.lower() != suffix:
        raise OutputError(f"{path} has the extension {path.suffix!r}.", expected=f"a name that ends in {suffix}")


def find_device(name: str) -> torch.device:
    """The torch device of a name; "auto" is the GPU if there is one. Raises ConfigError."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name} is not a device.", expected="auto, cpu, cuda or cuda:1")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices that torch can use.",
            fix="use --device cpu, or install a build of torch for your GPU",
        )
    return device


def free_memory(device: torch.device) -> int | None:
    """Bytes that a GPU has left, with what torch keeps in reserve; None on other devices and in a CUDA graph."""
    import torch

    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def peak_memory(device: torch.device) -> int | None:
    """Peak memory so far in bytes: of torch on a GPU, else of this process; None on Windows."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts in bytes, Linux in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
