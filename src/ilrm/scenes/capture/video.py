"""Frames of a video: sharp ones, spread by how much the picture moved, not by time."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ilrm.core.errors import IlrmError, SceneError, warn
from ilrm.core.reporting import Reporter
from ilrm.files import write_bytes, write_json
from ilrm.files.paths import exists
from ilrm.files.reading import read_json
from ilrm.scenes.capture.sharpness import blur

FRAMES = "frames"
_JPEG_QUALITY = 95
# FFmpeg opens by content. Playlists could make it read other files or the network; only real containers are allowed.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
# Analysis: width of the small copies, side and number of the tiles that are matched, frames a second that are enough.
_WIDTH, _TILE, _ACROSS, _RATE = 320, 64, 4, 10.0
# Movement between two chosen frames, as a share of the picture's width; the number of frames follows.
_STEP = 0.06
_LEAST, _MOST_ANALYSED = 12, 20_000
# A movement below this many pixels of the small copy is noise of the sensor or the codec.
_NOISE = 0.25


@dataclass(frozen=True)
class _Seen:
    """One analysed frame: its number in the video, time, blur, and movement since the one before."""

    number: int
    seconds: float
    blur: float
    moved: float


def choose_frames(
    video: Path, folder: Path, most: int, side: int, max_pixels: int, reporter: Reporter
) -> tuple[list[Path], list[str], dict[str, Any]]:
    """Write the frames of a video that cameras will be found for, and return their files, names and a summary.

    Where the camera stands still, nothing is chosen; where it moves fast, more. Of the frames around each place the
    sharpest is taken. The rotation that the file declares is applied.

    Args:
        folder: receives the frames, in ``FRAMES``. What is there already is kept.
        most: the largest number of frames.
        side: largest longer side of the frames in pixels.

    Raises:
        SceneError: not a video, one without pictures, or one that cannot be decoded.
    """
    listing = folder / FRAMES / "frames.json"
    if not exists(listing):
        seen = _analyse(video, max_pixels, reporter)
        chosen = _choose(seen, most)
        _write(video, folder, [seen[i].number for i in chosen], side, reporter)
        rows = [{"number": seen[i].number, "seconds": round(seen[i].seconds, 3)} for i in chosen]
        length = round(seen[-1].seconds - seen[0].seconds, 2)
        moved = round(sum(frame.moved for frame in seen) / _WIDTH, 3)
        write_json(listing, {"frames": rows, "analysed": len(seen), "seconds": length, "moved": moved})
    found = read_json(listing)
    files = [folder / FRAMES / f"{row['number']:06d}.jpg" for row in found["frames"]]
    names = [f"frame_{row['number']:06d}" for row in found["frames"]]
    return files, names, {name: found[name] for name in ("analysed", "seconds", "moved")}


@contextmanager
def _opened(video: Path) -> Iterator[Any]:
    """The container of a video with at least one stream of pictures. Errors of the decoder become ours."""
    import av
    from av.error import FFmpegError

    try:
        options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
        with av.open(str(video), options=options) as container:
            if not container.streams.video:
                raise SceneError(
                    f"{video} has no pictures{', only sound' if container.streams.audio else ''}.",
                    expected="a video (mp4, mov, webm)",
                )
            container.streams.video[0].thread_type = "AUTO"
            yield container
    except (IlrmError, MemoryError):
        raise
    except (FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise SceneError(
            f"{video} cannot be decoded: {reason}.",
            expected="a complete mp4, mov, webm, mkv or avi file",
            fix="copy it again, or convert it to mp4 (H.264)",
        ) from error


def _decoded(container: Any, video: Path, max_pixels: int | None) -> Iterator[tuple[int, Any]]:
    """(number, frame) of every frame that can be decoded; damage in the middle ends the video there, with a warning."""
    from av.error import FFmpegError

    stream = container.streams.video[0]
    if max_pixels is not None and stream.width * stream.height > max_pixels:
        raise SceneError(
            f"{video} has {stream.width}x{stream.height} pixels.",
            expected=f"at most {max_pixels / 1e6:g} million",
            fix="allow more with --max-pixels",
        )
    number = -1
    try:
        for number, frame in enumerate(container.decode(stream)):
            yield number, frame
    except FFmpegError as error:
        if number < 0:
            raise
        warn(f"{video} is damaged after frame {number} ({error.strerror or error}); the part before it is used")


def _analyse(video: Path, max_pixels: int, reporter: Reporter) -> list[_Seen]:
    seen: list[_Seen] = []
    with _opened(video) as container:
        stream = container.streams.video[0]
        with reporter.progress("video", stream.frames or None) as advance:
            before, last = None, -np.inf
            for number, frame in _decoded(container, video, max_pixels):
                advance()
                seconds = float(frame.time) if frame.time is not None else number / 30
                if 0 <= seconds - last < 0.9 / _RATE:
                    continue
                last = seconds
                small = _small(frame)
                moved = 0.0 if before is None else _movement(before, small)
                seen.append(_Seen(number, seconds, blur(small), moved))
                before = small
                if len(seen) >= _MOST_ANALYSED:
                    warn(f"{video} is long; its first {seconds / 60:.0f} minutes are used")
                    break
    if not seen:
        raise SceneError(f"{video} has no frame that can be decoded.", expected="a video with pictures")
    return seen


def _small(frame: Any) -> np.ndarray:
    """(H, W) float32 grey copy, upright."""
    width, height = _WIDTH, max(2, round(frame.height * _WIDTH / frame.width))
    grey = frame.reformat(width=width, height=height, format="gray").to_ndarray()
    return _upright(grey, frame).astype(np.float32)


def _upright(pixels: np.ndarray, frame: Any) -> np.ndarray:
    """Apply the rotation of the file. FFmpeg counts it counter-clockwise."""
    return np.rot90(pixels, round(frame.rotation / 90) % 4)


def _movement(before: np.ndarray, after: np.ndarray) -> float:
    """Median movement in pixels of the tiles of two small copies, by phase correlation."""
    height, width = before.shape
    if min(height, width) < _TILE:
        return 0.0
    rows = np.linspace(0, height - _TILE, _ACROSS).round().astype(int)
    columns = np.linspace(0, width - _TILE, _ACROSS).round().astype(int)
    window = np.outer(np.hanning(_TILE), np.hanning(_TILE))
    moves = []
    for row in rows:
        for column in columns:
            a, b = (x[row : row + _TILE, column : column + _TILE] for x in (before, after))
            if a.std() < 2:  # nothing to see there
                continue
            cross = np.fft.rfft2((a - a.mean()) * window).conj() * np.fft.rfft2((b - b.mean()) * window)
            peak = np.fft.irfft2(cross / (np.abs(cross) + 1e-6), s=(_TILE, _TILE))
            y, x = np.unravel_index(peak.argmax(), peak.shape)
            moves.append(np.hypot((y + _TILE // 2) % _TILE - _TILE // 2, (x + _TILE // 2) % _TILE - _TILE // 2))
    return float(np.median(moves)) if moves else 0.0


def _choose(seen: list[_Seen], most: int) -> list[int]:
    """Indices of the sharpest frame around each of evenly spaced amounts of movement."""
    steps = np.array([frame.moved if frame.moved > _NOISE else 0.0 for frame in seen])
    path = steps.cumsum()
    if path[-1] == 0:
        return [int(np.argmin([frame.blur for frame in seen]))]
    count = int(min(most, len(seen), max(_LEAST, round(path[-1] / (_STEP * _WIDTH)) + 1)))
    edges = np.linspace(0, path[-1], count + 1)
    blurs = np.array([frame.blur for frame in seen])
    chosen = []
    for low, high in itertools.pairwise(edges):
        inside = np.flatnonzero((path >= low) & (path <= high))
        if len(inside):
            # The middle of the window is preferred among equally sharp frames.
            off = np.abs(path[inside] - (low + high) / 2) / max(high - low, 1e-9)
            chosen.append(int(inside[np.argmin(blurs[inside] + 0.02 * off)]))
    return sorted(set(chosen))


def _write(video: Path, folder: Path, numbers: list[int], side: int, reporter: Reporter) -> None:
    wanted = set(numbers)
    with _opened(video) as container, reporter.progress("frames", len(wanted)) as advance:
        for number, frame in _decoded(container, video, None):
            if number > numbers[-1]:
                break
            if number not in wanted:
                continue
            file = folder / FRAMES / f"{number:06d}.jpg"
            if not exists(file):
                image = Image.fromarray(np.ascontiguousarray(_upright(frame.to_ndarray(format="rgb24"), frame)))
                scale = min(1.0, side / max(image.size))
                if scale < 1:
                    size = (round(image.width * scale), round(image.height * scale))
                    image = image.resize(size, Image.Resampling.LANCZOS)
                stream = io.BytesIO()
                image.save(stream, "JPEG", quality=_JPEG_QUALITY)
                write_bytes(file, stream.getvalue())
            advance()
