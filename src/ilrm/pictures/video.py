"""Writing frames as a video (mp4) or as an animated image (webp, gif)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ilrm.core.errors import ConfigError, OutputError
from ilrm.files import atomic_file

Frame = Tensor | NDArray[np.generic]
Image8 = NDArray[np.uint8]

# x264's constant rate factor 18 is visually almost lossless.
_QUALITY = {"crf": "18", "preset": "medium"}
# Codes of ITU-T H.273 and ffmpeg. Limited range is luma from 16 to 235, the usual range of video.
_BT709, _LIMITED_RANGE = 1, 1
# Pillow keeps all frames of a webp or gif in memory, at 4 bytes per pixel.
_PREVIEW_BYTES = 2 << 30
# A gif stores durations in hundredths of a second, and viewers slow down anything shorter than two.
_MOST_FPS = {".mp4": 240, ".webp": 100, ".gif": 50}


def save_video(frames: Iterable[Frame], path: Path | str, fps: float = 30.0) -> int:
    """Write frames as they are generated; the file is written atomically.

    Args:
        frames: images (H, W, 3) of one size, float in [0, 1] (rounded to 8 bits) or uint8. At least one.
        path: .mp4 is H.264 in yuv420p with BT.709 colours; odd sizes are made even by repeating the last row or column.
            .webp and .gif are previews that repeat forever and are assembled in memory.
        fps: frames per second. In a .gif, times are rounded to hundredths of a second.

    Returns:
        the number of frames.

    Raises:
        OutputError: an unknown extension, no frames, frames of several sizes, too many frames for a preview, or a file
            that cannot be written.
        ConfigError: an invalid fps.
    """
    path = Path(path)
    write = _WRITERS[check_video(path, fps)]
    images = _checked(frames, path)
    with atomic_file(path) as temporary:  # opened first, so that an unwritable path fails before frames are rendered
        if (first := next(images, None)) is None:
            raise OutputError(f"There are no frames to write to {path}.", expected="at least one")
        return write(chain([first], images), temporary, Fraction(fps).limit_denominator(1001))


def check_video(path: Path, fps: float) -> str:
    """Return the extension in lower case, if such a video can be written. Raises OutputError and ConfigError."""
    suffix = path.suffix.lower()
    if suffix not in _WRITERS:
        raise OutputError(
            f"{path} has the extension {path.suffix!r}.", expected=f"a video that ends in {', '.join(_WRITERS)}"
        )
    if not 0.1 <= fps <= _MOST_FPS[suffix]:  # also false for NaN
        raise ConfigError(
            f"{fps:g} frames per second were requested.", expected=f"0.1 to {_MOST_FPS[suffix]} in a {suffix}"
        )
    return suffix


def check_preview(path: Path, frames: int, width: int, height: int) -> None:
    """Refuse a webp or gif that would take too much memory. Raises OutputError."""
    if path.suffix.lower() != ".mp4" and 4 * frames * width * height > _PREVIEW_BYTES:
        raise OutputError(
            f"{frames} or more frames of {width}x{height} are too many for the preview {path}.",
            expected=f"up to {_PREVIEW_BYTES // (4 * width * height)} frames of that size",
            fix="write an .mp4, or fewer or smaller frames",
        )


def as_image8(frame: Frame) -> Image8:
    """Convert a float image in [0, 1] to (H, W, 3) uint8, clamped and rounded; uint8 is unchanged."""
    image = frame if isinstance(frame, Tensor) else torch.tensor(frame)  # a copy, because arrays may be read-only
    if image.is_floating_point():
        image = image.detach().nan_to_num().clamp(0, 1).mul(255).round().byte()
    return image.cpu().contiguous().numpy()


def _checked(frames: Iterable[Frame], path: Path) -> Iterator[Image8]:
    size = None
    for number, frame in enumerate(frames):
        image = as_image8(frame)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise OutputError(
                f"Frame {number} of {path} has the shape {image.shape} and type {image.dtype}.",
                expected="(H, W, 3), float in [0, 1] or uint8",
            )
        size = size or image.shape
        if image.shape != size:
            raise OutputError(
                f"Frame {number} of {path} is {image.shape[1]}x{image.shape[0]}, the first is {size[1]}x{size[0]}.",
                expected="frames of one size",
            )
        check_preview(path, number + 1, size[1], size[0])
        yield image


def _write_mp4(images: Iterator[Image8], path: Path, fps: Fraction) -> int:
    import av

    count, stream = 0, None
    # The index is put at the front, so that a browser can play before it has the whole file.
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        for image in images:
            height, width = image.shape[:2]
            even = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            if stream is None:
                stream = container.add_stream("libx264", rate=fps, options=_QUALITY)
                stream.width, stream.height, stream.pix_fmt = even.shape[1], even.shape[0], "yuv420p"
                # Tagged explicitly, because players otherwise guess the colour space from the size.
                context: Any = stream.codec_context
                context.colorspace = context.color_primaries = context.color_trc = _BT709
                context.color_range = _LIMITED_RANGE
            frame = av.VideoFrame.from_ndarray(even, format="rgb24").reformat(format="yuv420p", dst_colorspace="ITU709")
            frame.pts, frame.time_base = count, 1 / fps
            container.mux(stream.encode(frame))
            count += 1
        if stream is not None:
            container.mux(stream.encode(None))
    return count


def _write_webp(images: Iterator[Image8], path: Path, fps: Fraction) -> int:
    from PIL import Image

    pictures = [Image.fromarray(image) for image in images]
    durations = _durations(len(pictures), 1000 / fps)
    pictures[0].save(
        path, "WEBP", save_all=True, append_images=pictures[1:], duration=durations, loop=0, quality=85, method=4
    )
    return len(pictures)


def _write_gif(images: Iterator[Image8], path: Path, fps: Fraction) -> int:
    from PIL import Image

    pictures = [Image.fromarray(image).quantize(256, dither=Image.Dither.FLOYDSTEINBERG) for image in images]
    durations = [10 * hundredths for hundredths in _durations(len(pictures), 100 / fps)]
    pictures[0].save(path, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0, disposal=1)
    return len(pictures)


def _durations(count: int, length: Fraction) -> list[int]:
    """Integer durations whose running sums stay within half a unit of the exact times."""
    ends = [round(i * length) for i in range(count + 1)]
    return [after - before for before, after in pairwise(ends)]


_WRITERS: dict[str, Callable[[Iterator[Image8], Path, Fraction], int]] = {
    ".mp4": _write_mp4,
    ".webp": _write_webp,
    ".gif": _write_gif,
}
