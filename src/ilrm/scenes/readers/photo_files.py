"""Finding the photos that a camera file lists, allowing for a few unambiguous differences in spelling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

from ilrm.core.errors import AccessError, SceneError, warn
from ilrm.files import paths
from ilrm.files.image_files import PHOTO_SUFFIXES
from ilrm.files.paths import shown
from ilrm.scenes.readers.records import listing

SUFFIXES = PHOTO_SUFFIXES
# DL3DV lists full-size images and ships reduced ones beside them.
REDUCED_FOLDERS = ("images_2", "images_4", "images_8")


@dataclass(frozen=True)
class Listed:
    """A photo as a camera file lists it: ``text``, relative to ``folder``."""

    folder: Path
    text: str

    def spellings(self) -> Iterator[str]:
        """The text as written, then with \\ replaced by /."""
        yield self.text
        if "\\" in self.text:
            yield self.text.replace("\\", "/")


@dataclass(frozen=True)
class FoundPhoto:
    """The file of a listed photo.

    Attributes:
        file: its path.
        name: the listed path, ending in the file's real name.
        reduction: factor by which the file is smaller than the listed photo, according to the name of its folder.
    """

    file: Path
    name: str
    reduction: int = 1


def find_photos(listed: Sequence[Listed], source: Path | str, images: str | None = None) -> list[FoundPhoto | None]:
    """Find the photos that a camera file lists; None for missing ones, with one warning for all.

    A file may differ from its listed path by a suffix that the list omits, by case, by the folder separator, or by
    being in a folder of reduced copies. Other similar files are only mentioned as a hint.

    Args:
        listed: the photos.
        source: the file that lists them, for messages.
        images: a folder of reduced copies to search first, one of ``REDUCED_FOLDERS``.

    Raises:
        SceneError: none of the photos exists.
        AccessError: a folder in a path may not be read.
    """
    folders = _Folders()
    found = [_find(photo, folders, images) for photo in listed]
    missing = [photo for photo, file in zip(listed, found, strict=True) if file is None]
    if not missing:
        return found
    names = listing([shown(photo.text if len(photo.text) < 200 else photo.text[:197] + "...") for photo in missing])
    problem = f"{len(missing)} of the {len(listed)} images of {source} do not exist"
    hint = next((hint for photo in missing[:20] if (hint := _hint(photo, folders))), "")
    if len(missing) == len(listed):
        raise SceneError(
            f"{problem}: {names}.",
            expected="the listed images, relative to the file that lists them",
            fix=f"{hint}; correct the paths in the file" if hint else "put the images where the file lists them",
        )
    warn(f"{problem} and are left out: {names}" + (f" ({hint})" if hint else ""))
    return found


def is_listed_photo(photo: Listed) -> bool:
    """Whether ``find_photos`` would find this photo."""
    try:
        return _find(photo, _Folders(), None) is not None
    except AccessError:
        return False


@dataclass
class _Folders:
    """A cache of the names in folders; each folder is listed once."""

    known: dict[Path, dict[str, list[str]]] = field(default_factory=dict)

    def names(self, folder: Path, name: str) -> list[str]:
        """The entries of a folder that equal ``name``, ignoring case."""
        if folder not in self.known:
            entries: dict[str, list[str]] = {}
            with suppress(AccessError):
                for entry in paths.entries(folder):
                    entries.setdefault(entry.name.casefold(), []).append(entry.name)
            self.known[folder] = entries
        return self.known[folder].get(name.casefold(), [])


def _find(photo: Listed, folders: _Folders, images: str | None) -> FoundPhoto | None:
    for text in photo.spellings():
        path = Path(text)
        if path.name in ("", ".."):  # a folder
            continue
        for file, reduction in _candidates(photo.folder / path, images):
            if paths.is_file(file):
                return FoundPhoto(file, str(path.with_name(file.name)), reduction)
    for text in photo.spellings():
        path = Path(text)
        if file := _in_any_case(photo.folder, path, folders):
            return FoundPhoto(file, str(path.with_name(file.name)))
    return None


def _candidates(path: Path, images: str | None) -> Iterator[tuple[Path, int]]:
    """Possible paths of a listed image, each with its reduction factor."""
    if images is not None:
        yield from _reduced_copies(path, (images,))
    yield path, 1
    if path.suffix.lower() not in SUFFIXES:
        for suffix in SUFFIXES:
            yield path.with_name(path.name + suffix), 1
    yield from _reduced_copies(path, REDUCED_FOLDERS)


def _reduced_copies(path: Path, names: Sequence[str]) -> Iterator[tuple[Path, int]]:
    for folder in path.parents:
        if folder.name == "images":
            for name in names:
                yield folder.with_name(name) / path.relative_to(folder), int(name.removeprefix("images_"))
            return


def _in_any_case(folder: Path, path: Path, folders: _Folders) -> Path | None:
    """The only file whose path matches ignoring case, possibly with a suffix that the list omits; else None."""
    if path.is_absolute():
        folder, path = path.parent, Path(path.name)
    for part in path.parts[:-1]:
        matches = [part] if part == ".." else folders.names(folder, part)
        if part not in matches and len(matches) != 1:
            return None
        folder /= part if part in matches else matches[0]
    wanted = [path.name]
    if path.suffix.lower() not in SUFFIXES:
        wanted += [path.name + suffix for suffix in SUFFIXES]
    files = [
        folder / match
        for name in wanted
        for match in folders.names(folder, name)
        if paths.is_visible_file(folder / match)
    ]
    return files[0] if len(files) == 1 else None


def _hint(photo: Listed, folders: _Folders) -> str:
    """A sentence about an existing file that may be the listed one; empty if there is none."""
    parts = PureWindowsPath(photo.text).parts  # splits at both separators
    if not parts:
        return ""
    for first in range(len(parts)):
        tail = Path(*parts[first:])
        for place in (tail, Path("images") / tail.name):
            if file := _in_any_case(photo.folder, place, folders) or _other_suffix(photo.folder / place, folders):
                return f"{_short(file, photo.folder)} exists, {shown(photo.text)} is listed"
    return ""


def _other_suffix(path: Path, folders: _Folders) -> Path | None:
    names = (name for suffix in SUFFIXES for name in folders.names(path.parent, path.stem + suffix))
    return next((path.parent / name for name in names), None)


def _short(file: Path, folder: Path) -> str:
    return shown(str(file.relative_to(folder) if file.is_relative_to(folder) else file))
