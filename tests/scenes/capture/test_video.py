"""Frames of videos: chosen by movement and sharpness, upright, and only of real videos."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageFilter

from ilrm.core.checks import MAX_PIXELS
from ilrm.core.errors import SceneError
from ilrm.core.reporting import Silent
from ilrm.scenes.capture.video import _movement, choose_frames

WIDE = np.asarray(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 400, 3), dtype=np.uint8)).resize(
        (1600, 240), Image.Resampling.BICUBIC
    )
)


def view(x: float, blurred: bool = False) -> np.ndarray:
    """The picture of a camera that looks at a wide wall, x pixels from its left end."""
    image = Image.fromarray(WIDE[:, round(x) : round(x) + 320])
    return np.asarray(image.filter(ImageFilter.GaussianBlur(4)) if blurred else image)


def film(path: Path, frames: list[np.ndarray], times: list[float] | None = None) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = frames[0].shape[1], frames[0].shape[0], "yuv420p"
        stream.options = {"crf": "18"}
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[number] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def chosen(video: Path, folder: Path, most: int = 100) -> tuple[list[int], list[np.ndarray]]:
    files, names, _ = choose_frames(video, folder, most, 1600, MAX_PIXELS, Silent())
    assert names == [f"frame_{int(file.stem):06d}" for file in files]
    return [int(file.stem) for file in files], [np.asarray(Image.open(file)) for file in files]


def test_frames_follow_the_movement(tmp_path: Path) -> None:
    """Twenty frames of standing still in the middle give at most one more frame."""
    places = [*range(0, 400, 20), *([400] * 20), *range(400, 800, 20)]
    numbers, _ = chosen(film(tmp_path / "a.mp4", [view(x) for x in places]), tmp_path)
    assert sum(20 < number < 39 for number in numbers) <= 1
    moved = [places[number] for number in numbers]
    steps = np.diff(moved)
    assert len(numbers) >= 30
    assert steps.max() <= 3 * np.median(steps)
    numbers, _ = chosen(tmp_path / "a.mp4", tmp_path / "fewer", most=6)
    assert len(numbers) == 6
    assert np.diff([places[number] for number in numbers]).max() < 250


def test_blurred_frames_are_avoided(tmp_path: Path) -> None:
    frames = [view(8 * i, blurred=i % 3 == 0) for i in range(60)]
    numbers, _ = chosen(film(tmp_path / "a.mp4", frames), tmp_path, most=15)
    assert len(numbers) == 15
    assert not any(number % 3 == 0 for number in numbers)


def test_movement_is_measured_in_pixels() -> None:
    for shift in (0, 3, 11):
        before, after = (view(x).mean(-1).astype(np.float32) for x in (100, 100 + shift))
        assert _movement(before, after) == pytest.approx(shift, abs=0.51)


@pytest.mark.parametrize(
    ("matrix", "turns"),
    [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)],
    ids=["clockwise", "half", "counter-clockwise"],
)
def test_rotation_of_the_file_is_applied(matrix: tuple[int, ...], turns: int, tmp_path: Path) -> None:
    """Phones write the matrix (a, b, c, d) of the track header: 0, 1, -1, 0 shows the picture turned clockwise."""
    data = bytearray(film(tmp_path / "a.mp4", [view(20 * i) for i in range(14)]).read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    assert struct.unpack_from(">9i", data, at) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, at, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "b.mp4").write_bytes(data)
    numbers, pictures = chosen(tmp_path / "b.mp4", tmp_path)
    assert len(numbers) > 5
    for number, picture in zip(numbers, pictures, strict=True):
        assert np.abs(picture.astype(float) - np.rot90(view(20 * number), turns)).mean() < 12


def test_variable_frame_rates_change_nothing(tmp_path: Path) -> None:
    places = list(range(0, 600, 20))
    rng = np.random.default_rng(1)
    times = np.cumsum(rng.uniform(0.11, 0.5, len(places))).tolist()
    numbers, pictures = chosen(film(tmp_path / "a.mp4", [view(x) for x in places], times), tmp_path)
    assert len(numbers) >= 25
    for number, picture in zip(numbers, pictures, strict=True):
        assert np.abs(picture.astype(float) - view(places[number])).mean() < 12


def test_what_is_no_video_is_told(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        for _ in range(5):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.float32), format="fltp", layout="mono")
            sound.rate = 44100
            container.mux(stream.encode(sound))
        container.mux(stream.encode())
    for name, words in (
        ("text.mp4", "cannot be decoded"),
        ("empty.mp4", "cannot be decoded"),
        ("list.mp4", "cannot be decoded"),
        ("sound.mp4", "only sound"),
    ):
        with pytest.raises(SceneError, match=words):
            choose_frames(tmp_path / name, tmp_path / "kept", 10, 1600, MAX_PIXELS, Silent())


def test_the_part_before_a_damage_is_used(tmp_path: Path) -> None:
    whole = film(tmp_path / "whole.mkv", [view(20 * i) for i in range(40)])
    (tmp_path / "cut.mkv").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    numbers, _ = chosen(tmp_path / "cut.mkv", tmp_path)
    assert 5 < len(numbers) < 30


def test_too_many_pixels_are_refused(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", [view(0)] * 3)
    with pytest.raises(SceneError, match="320x240"):
        choose_frames(tmp_path / "a.mp4", tmp_path, 10, 1600, 1000, Silent())
