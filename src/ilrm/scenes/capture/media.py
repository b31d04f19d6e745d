"""What to reconstruct: the photos in a folder and its sub-folders, or a video."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ilrm.core.errors import SceneError, warn
from ilrm.files import paths
from ilrm.files.image_files import PHOTO_SUFFIXES, VIDEO_SUFFIXES
from ilrm.scenes.views import evenly_spaced

MOST_PHOTOS = 500


@dataclass(frozen=True)
class Media:
    """Photos, or one video.

    Attributes:
        root: the folder or file that was given.
        photos: files, sorted by path.
        video: a file, or None.
    """

    root: Path
    photos: tuple[Path, ...] = ()
    video: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The photos, or the video."""
        return (self.video,) if self.video is not None else self.photos


def find_media(path: Path) -> Media:
    """The photos or the video at ``path``: a folder (with sub-folders) of photos, or of one video, or a video file.

    Hidden files and folders are ignored. Of more than ``MOST_PHOTOS`` photos an even selection is used.

    Raises:
        SceneError: nothing of that kind is there, or several videos.
        AccessError: a folder may not be read.
    """
    if not paths.exists(path):
        raise SceneError(f"{path} does not exist.", expected="a folder of photos, or a video", fix="check the path")
    if paths.is_file(path):
        if path.suffix.lower() in VIDEO_SUFFIXES:
            return Media(path, video=path)
        if path.suffix.lower() in PHOTO_SUFFIXES:
            raise SceneError(
                f"{path} is a single photo.",
                expected="a folder of several photos of one scene, or a video",
                fix="give the folder that holds the photo and the others",
            )
        raise SceneError(f"{path} is neither a folder of photos nor a video.", expected=_expected())
    photos, videos = _files(path)
    if photos:
        if videos:
            warn(f"{path} holds {len(photos)} photos and {_listed(videos)}; only the photos are used")
        return Media(path, photos=tuple(_at_most(photos, path)))
    if len(videos) == 1:
        return Media(path, video=videos[0])
    if videos:
        raise SceneError(f"{path} holds {_listed(videos)}.", fix="give the path of one of them")
    raise SceneError(f"{path} holds no photos and no video.", expected=_expected(), fix="check the path")


def holds_media(path: Path) -> bool:
    """Whether ``find_media`` would find something at a path."""
    if paths.is_file(path):
        return path.suffix.lower() in VIDEO_SUFFIXES
    photos, videos = _files(path)
    return bool(photos or videos)


def _files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Photos and videos below a folder, sorted by path."""
    paths.entries(folder)  # an unreadable folder is an error, not an empty one
    found = [
        file
        for file in paths.files_below(folder)
        if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    photos = sorted(file for file in found if file.suffix.lower() in PHOTO_SUFFIXES)
    return photos, sorted(file for file in found if file.suffix.lower() in VIDEO_SUFFIXES)


def _at_most(photos: list[Path], folder: Path) -> list[Path]:
    if len(photos) <= MOST_PHOTOS:
        return photos
    warn(f"{folder} holds {len(photos)} photos; every one of an even selection of {MOST_PHOTOS} is used")
    return [photos[i] for i in evenly_spaced(len(photos), MOST_PHOTOS)]


def _listed(videos: list[Path]) -> str:
    names = ", ".join(video.name for video in videos[:3])
    return f"the video {names}" if len(videos) == 1 else f"{len(videos)} videos ({names}{', ...' * (len(videos) > 3)})"


def _expected() -> str:
    return (
        f"a folder of photos ({', '.join(s.removeprefix('.') for s in PHOTO_SUFFIXES)}), or a video "
        f"({', '.join(s.removeprefix('.') for s in VIDEO_SUFFIXES)})"
    )
