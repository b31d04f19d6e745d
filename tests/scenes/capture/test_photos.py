"""What is measured of each photo: blur, sameness, EXIF data; and which photos are left out."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from ilrm.core.checks import MAX_PIXELS
from ilrm.core.reporting import Silent
from ilrm.files.image_files import open_image
from ilrm.scenes.capture.exif import PhotoData, photo_data
from ilrm.scenes.capture.photos import Shot, prepare, shared_cameras
from ilrm.scenes.capture.sharpness import blur, blurred, duplicates, thumbnail


def textured(seed: int = 0, size: tuple[int, int] = (320, 240)) -> Image.Image:
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def grey(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L"))


def by_definition(image: np.ndarray, window: int = 11) -> float:
    """The blur of a photo, pixel by pixel (Crété et al., 2007)."""
    worst = 0.0
    for picture in (image.astype(float), image.T.astype(float)):
        sharp_sum = lost_sum = 0.0
        for row in picture:
            smooth = [row[i : i + window].mean() for i in range(len(row) - window + 1)]
            middle = row[window // 2 : window // 2 + len(smooth)]
            for i in range(1, len(smooth)):
                sharp = abs(middle[i] - middle[i - 1])
                sharp_sum += sharp
                lost_sum += max(0.0, sharp - abs(smooth[i] - smooth[i - 1]))
        worst = max(worst, 1 - lost_sum / sharp_sum)
    return worst


def test_blur_is_what_its_definition_says() -> None:
    image = grey(textured(size=(48, 40)))
    assert blur(image) == pytest.approx(by_definition(image), abs=1e-5)


def test_blur_grows_with_the_radius_and_along_one_axis() -> None:
    sharp = textured()
    values = [blur(grey(sharp.filter(ImageFilter.GaussianBlur(radius)))) for radius in (0, 1, 2, 4)]
    assert values == sorted(values)
    assert values[0] < 0.4 < 0.6 < values[-1]
    shaken = np.mean([np.roll(grey(sharp), shift, axis=1) for shift in range(16)], axis=0)
    assert blur(shaken) > values[0] + 0.2
    assert blur(np.full((50, 50), 7)) == 1.0  # nothing to see
    assert blurred([0.3, 0.32, 0.31, 0.9]) == [3]
    assert blurred([0.8, 0.9]) == [0, 1]
    assert blurred([]) == []


def test_repeated_photos_are_found_and_the_sharpest_kept() -> None:
    compressed = io.BytesIO()
    textured(0).save(compressed, "JPEG", quality=50)
    pictures = [textured(0), textured(1), Image.open(compressed), textured(1)]
    found = duplicates([thumbnail(picture) for picture in pictures], [0.3, 0.3, 0.5, 0.2])
    assert found == {2: 0, 1: 3}
    moved = textured(0).transform((320, 240), Image.Transform.AFFINE, (1, 0, 8, 0, 1, 0))
    assert duplicates([thumbnail(textured(0)), thumbnail(moved)], [0.3, 0.3]) == {}


def with_exif(
    path: Path, tags: dict[int, object], details: dict[int, object], size: tuple[int, int] = (320, 240)
) -> Path:
    image = textured(size=size)
    exif = image.getexif()
    exif.update(tags)
    exif.get_ifd(0x8769).update(details)
    image.save(path, exif=exif)
    return path


def read(path: Path, orientation: int = 1) -> PhotoData:
    with open_image(path) as image:
        return photo_data(image, orientation)


def test_focal_length_of_exif(tmp_path: Path) -> None:
    film = read(with_exif(tmp_path / "a.jpg", {0x010F: "Maker", 0x0110: "Phone 7"}, {0xA405: 27, 0x920A: 4.0}))
    assert film == PhotoData(focal=27 / 36, device="Maker Phone 7")
    # 6 mm on a sensor of 100 pixels a millimetre: 600 pixels of 320.
    sensor = read(with_exif(tmp_path / "b.jpg", {}, {0x920A: 6.0, 0xA20E: 100.0, 0xA210: 4}))
    assert sensor.focal == pytest.approx(600 / 320)
    for number, details in enumerate(({0xA405: 0}, {0x920A: 4.0}, {0xA405: 60000}, {})):
        assert read(with_exif(tmp_path / f"{number}.jpg", {}, details)).focal is None
    textured().save(tmp_path / "plain.png")
    assert read(tmp_path / "plain.png") == PhotoData()


def apple_note(x: float, y: float, z: float) -> bytes:
    """A note as phones write it: one entry, whose three rationals follow."""
    head = b"Apple iOS\x00\x00\x01MM"
    entry = struct.pack(">HHHII", 1, 8, 10, 3, 14 + 2 + 12 + 4)
    return (
        head
        + entry
        + b"\0\0\0\0"
        + struct.pack(">6i", *(round(v * 1000) if i == 0 else 1000 for v in (x, y, z) for i in (0, 1)))
    )


@pytest.mark.parametrize(
    ("orientation", "note", "up"),
    [
        (6, (0.0, -1.0, 0.0), (0.0, -1.0, 0.0)),  # an upright phone: up is where the top of the photo is
        (1, (-1.0, 0.0, 0.0), (0.0, -1.0, 0.0)),  # turned by a quarter, for a wide photo
        (3, (1.0, 0.0, 0.0), (0.0, -1.0, 0.0)),
        (8, (0.0, 1.0, 0.0), (0.0, -1.0, 0.0)),
        (6, (0.0, -0.8, -0.6), (0.0, -0.8, -0.6)),  # tilted to look down
        (6, (0.0, 0.8, 0.6), (0.0, -0.8, -0.6)),
        (6, (0.0, 0.0, -1.0), None),  # straight down
        (6, (0.0, -3.0, 0.0), None),  # shaken
        (2, (0.0, -1.0, 0.0), None),
    ],
)
def test_gravity_of_phones(
    orientation: int, note: tuple[float, ...], up: tuple[float, ...] | None, tmp_path: Path
) -> None:
    path = with_exif(tmp_path / "a.jpg", {}, {0x927C: apple_note(*note)})
    assert read(path, orientation).up == (None if up is None else pytest.approx(up))


def test_damaged_notes_say_nothing(tmp_path: Path) -> None:
    whole = apple_note(0.0, -1.0, 0.0)
    for number in range(0, len(whole), 3):
        path = with_exif(tmp_path / "a.jpg", {}, {0x927C: whole[:number]})
        assert read(path, 6).up is None


def prepared(files: list[Path], folder: Path, side: int = 256) -> tuple[list[Shot], dict[str, str]]:
    return prepare(files, [file.name for file in files], folder, side, MAX_PIXELS, Silent())


def test_photos_are_made_upright_and_small(tmp_path: Path) -> None:
    image = textured(size=(640, 480))
    image.save(tmp_path / "a.jpg", exif=_oriented(6), quality=95)
    image.save(tmp_path / "b.png")
    import pillow_heif

    pillow_heif.from_pillow(image).save(str(tmp_path / "c.heic"), quality=90)
    (shots, refused) = prepared([tmp_path / "a.jpg", tmp_path / "b.png", tmp_path / "c.heic"], tmp_path / "kept")
    assert refused == {}
    assert [(shot.width, shot.height) for shot in shots] == [(192, 256), (256, 192), (256, 192)]
    upright = np.asarray(image.resize((256, 192), Image.Resampling.LANCZOS)).astype(float)
    for shot, turned in zip(shots, (True, False, False), strict=True):
        with Image.open(tmp_path / "kept" / "prepared" / shot.prepared) as copy:
            pixels = np.asarray(copy).astype(float)
        assert np.abs(pixels - (np.rot90(upright, -1) if turned else upright)).mean() < 12


def _oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_unusable_photos_are_named_with_the_reason(tmp_path: Path) -> None:
    textured().save(tmp_path / "good.jpg")
    textured(size=(100, 80)).save(tmp_path / "tiny.png")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:2000])
    (tmp_path / "text.heic").write_text("no photo")
    names = ["good.jpg", "tiny.png", "cut.jpg", "text.heic"]
    shots, refused = prepared([tmp_path / name for name in names], tmp_path / "kept")
    assert [shot.name for shot in shots] == ["good.jpg"]
    assert refused.keys() == {"tiny.png", "cut.jpg", "text.heic"}
    assert "100x80" in refused["tiny.png"]
    assert "decoded" in refused["cut.jpg"]
    assert "opened" in refused["text.heic"]


def test_photos_of_one_device_and_zoom_share_a_camera(tmp_path: Path) -> None:
    files = [
        with_exif(tmp_path / "a.jpg", {0x0110: "One"}, {0xA405: 27}),
        with_exif(tmp_path / "b.jpg", {0x0110: "One"}, {0xA405: 27}),
        with_exif(tmp_path / "c.jpg", {0x0110: "One"}, {0xA405: 54}),
        with_exif(tmp_path / "d.jpg", {0x0110: "Two"}, {0xA405: 27}),
        with_exif(tmp_path / "e.jpg", {}, {}),
        with_exif(tmp_path / "f.jpg", {}, {}, size=(240, 320)),
    ]
    shots, _ = prepared(files, tmp_path / "kept")
    groups = shared_cameras(shots, "SIMPLE_RADIAL")
    assert [len(group["names"]) for group in groups] == [2, 1, 1, 1, 1]
    assert groups[0]["params"] == pytest.approx([27 / 36 * 256, 128, 96, 0])
    assert groups[-1]["params"] is None
