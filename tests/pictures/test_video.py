"""Videos are read back by other readers: sizes, times, colours, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from ilrm.core.errors import ConfigError, IlrmError, OutputError
from ilrm.pictures import video
from ilrm.pictures.video import save_video
from tests.conftest import NO_BYTECODE


def frames(count: int = 7, height: int = 48, width: int = 64) -> Iterator[torch.Tensor]:
    """Smooth colours that change over time."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    for t in range(count):
        yield torch.stack([0.9 * x + 0.05, 0.9 * y + 0.05, torch.full_like(x, 0.1 + 0.8 * t / count)], dim=-1)


def read(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_mp4_by_pyav(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    assert save_video(frames(), path) == 7
    with av.open(str(path)) as container:
        (stream,) = container.streams
        assert isinstance(stream, av.VideoStream)
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height) == (64, 48)
        assert stream.average_rate == 30
        assert stream.frames == 7
    for found, expected in zip(read(path), frames(), strict=True):
        difference = np.abs(found / 255 - expected.numpy())
        assert difference.mean() < 0.01
        assert difference[4:-4, 4:-4].max() < 0.05
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed")
def test_mp4_by_ffprobe(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    save_video(frames(9, 33, 51), path, fps=24)
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-of", "json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    (stream,) = json.loads(done.stdout)["streams"]
    found = {name: stream[name] for name in ("codec_name", "pix_fmt", "width", "height", "color_space", "color_range")}
    assert found == {
        **{"codec_name": "h264", "pix_fmt": "yuv420p", "width": 52, "height": 34},
        **{"color_space": "bt709", "color_range": "tv"},
    }
    assert Fraction(stream["avg_frame_rate"]) == 24
    assert int(stream["nb_read_frames"]) == 9
    assert float(stream["duration"]) == pytest.approx(9 / 24, abs=1e-3)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_colours_are_those_that_ffmpeg_decodes(tmp_path: Path) -> None:
    """Saturated flat colours, in which the wrong colour matrix would be off by 0.1."""
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0, 0, 0], [0.2, 0.7, 0.4]])
    save_video([colour.expand(32, 32, 3) for colour in colours], tmp_path / "a.mp4")
    command = ["ffmpeg", "-v", "error", "-i", str(tmp_path / "a.mp4"), str(tmp_path / "%d.png")]
    subprocess.run(command, check=True)
    for i, colour in enumerate(colours):
        found = np.asarray(Image.open(tmp_path / f"{i + 1}.png"))[8:-8, 8:-8].mean((0, 1)) / 255
        np.testing.assert_allclose(found, colour.numpy(), atol=0.02)


def test_odd_sizes_are_made_even_and_bytes_are_frames_too(tmp_path: Path) -> None:
    pictures = [(255 * frame).byte().numpy() for frame in frames(2, 33, 51)]
    save_video(pictures, tmp_path / "a.mp4")
    found = read(tmp_path / "a.mp4")
    assert [image.shape for image in found] == [(34, 52, 3)] * 2
    assert np.abs(found[0][:33, :51].astype(int) - pictures[0]).mean() < 3
    save_video([np.zeros((1, 1, 3))], tmp_path / "b.mp4")
    assert read(tmp_path / "b.mp4")[0].shape == (2, 2, 3)


@pytest.mark.parametrize(("suffix", "difference"), [("webp", 0.02), ("gif", 0.05)])
def test_previews_by_pillow(suffix: str, difference: float, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    assert save_video(frames(), path, fps=30) == 7
    with Image.open(path) as image:
        assert (image.format, image.size, image.n_frames) == (suffix.upper(), (64, 48), 7)  # pyright: ignore
        assert image.info["loop"] == 0
        shown = []
        for number, expected in enumerate(frames()):
            image.seek(number)
            image.load()
            shown.append(image.info["duration"])
            assert np.abs(np.asarray(image.convert("RGB")) / 255 - expected.numpy()).mean() < difference
    assert sum(shown) == pytest.approx(7 / 30 * 1000, abs=5)


BAD: dict[str, tuple[Callable[[], Any], str, dict[str, Any], type[IlrmError], list[str]]] = {
    "no frames": (lambda: iter(()), "a.mp4", {}, OutputError, ["no frames", "a.mp4"]),
    "unknown extension": (frames, "a.avi", {}, OutputError, ["'.avi'", ".mp4"]),
    "no extension": (frames, "a", {}, OutputError, ["''"]),
    "no time": (frames, "a.mp4", {"fps": 0}, ConfigError, ["0 frames per second"]),
    "NaN times": (frames, "a.mp4", {"fps": float("nan")}, ConfigError, ["nan frames per second"]),
    "gif too fast": (frames, "a.gif", {"fps": 60}, ConfigError, ["60 frames per second", "50"]),
    "two sizes": (lambda: [np.zeros((4, 4, 3)), np.zeros((4, 6, 3))], "a.mp4", {}, OutputError, ["1 of", "6x4", "4x4"]),
    "grey": (lambda: [np.zeros((4, 4))], "a.mp4", {}, OutputError, ["Frame 0", "(4, 4)"]),
    "16 bits": (lambda: [np.zeros((4, 4, 3), np.int16)], "a.mp4", {}, OutputError, ["int16"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_videos(name: str, tmp_path: Path) -> None:
    make, file, options, error, words = BAD[name]
    with pytest.raises(error) as caught:
        save_video(make(), tmp_path / file, **options)
    for word in words:
        assert word in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ["mp4", "webp", "gif"])
def test_a_failing_frame_leaves_the_earlier_video(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_text("earlier")

    def broken() -> Iterator[torch.Tensor]:
        yield from frames(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_video(broken(), path)
    assert path.read_text() == "earlier"
    assert os.listdir(tmp_path) == [path.name]


def test_no_frame_is_made_for_a_place_that_cannot_be_written() -> None:
    def made() -> Iterator[torch.Tensor]:
        raise AssertionError("a frame was made")
        yield

    with pytest.raises(OutputError, match="Cannot write"):
        save_video(made(), "/proc/nowhere/a.mp4")


def test_full_disk_is_told_in_words(tmp_path: Path) -> None:
    """A write that really fails, in another process with a file size limit of 4 kB."""
    code = (
        "import resource, sys, numpy as np\nfrom ilrm.core.errors import OutputError\n"
        "from ilrm.pictures.video import save_video\n"
        "noise = np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), dtype=np.uint8)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
        "try:\n    save_video(noise, sys.argv[1])\nexcept OutputError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.mp4")],
        env={**os.environ, **NO_BYTECODE},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "a.mp4: file too large" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_previews_are_refused_before_they_fill_the_memory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(video, "_PREVIEW_BYTES", 4 * 64 * 48 * 3)
    with pytest.raises(OutputError, match="4 or more frames of 64x48"):
        save_video(frames(), tmp_path / "a.webp")
    assert save_video(frames(3), tmp_path / "a.webp") == 3
    assert save_video(frames(), tmp_path / "a.mp4") == 7
