"""File names for views."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

from ilrm.files.paths import portable
from ilrm.scenes.save import LONGEST_STEM


def file_stems(names: Sequence[str]) -> list[str]:
    """One flat file name per view, without suffix; names that collide or are too long are replaced by numbers."""
    flat = [str(PurePosixPath(name.replace("\\", "/")).with_suffix("")).strip("/.").replace("/", "_") for name in names]
    stems = [portable(stem) for stem in flat]
    stems = [stem if len(stem.encode()) <= LONGEST_STEM else "" for stem in stems]
    times = Counter(stems)
    return [stem if times[stem] == 1 and stem else f"{i:04d}_{stem}" for i, stem in enumerate(stems)]
