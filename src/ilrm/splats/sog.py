"""The .sog format of PlayCanvas, by way of its program ``splat-transform`` (npm: @playcanvas/splat-transform).

A .sog file is a zip archive of WebP textures for positions, rotations, scales, colours and SH. It is converted from and
to a plain PLY, so coordinates are those of the PLY: the scene's own world frame.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

from ilrm.core.errors import GaussiansError, OutputError
from ilrm.core.gaussians import Gaussians
from ilrm.files import atomic_file, paths
from ilrm.files.reading import parse_json
from ilrm.splats.checks import check_writable, unreadable, warn_of_mode
from ilrm.splats.ply import load_ply, save_ply

PROGRAM = "splat-transform"
_EXPECTED = "a .sog file"
_LONGEST_META = 16 << 20  # bytes; the codebooks take about 20 kB


def save_sog(gaussians: Gaussians, path: Path | str) -> None:
    """Write N Gaussians; splat-transform may reorder them.

    Raises:
        GaussiansError: none, batched, NaN or infinite values, or splat-transform is not installed.
        OutputError: splat-transform fails, or the file cannot be written.
    """
    check_writable(gaussians, path)
    program = _program(path)
    with tempfile.TemporaryDirectory() as folder, atomic_file(path) as temporary:
        made = Path(folder) / "scene.sog"
        save_ply(gaussians.local(), Path(folder) / "scene.ply")
        if complaint := _run(program, Path(folder) / "scene.ply", made):
            raise OutputError(f"{PROGRAM} could not write {path}: {complaint}.")
        if gaussians.antialiased and not _says_antialiased(made):
            warn_of_mode(Path(path))
        shutil.copyfile(made, temporary)


def load_sog(path: Path | str) -> Gaussians:
    """Read N Gaussians.

    Raises:
        GaussiansError: no such file, one that splat-transform cannot read, or splat-transform is not installed.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError as error:
        raise unreadable(path, error, _EXPECTED) from error
    if start != b"PK":
        raise GaussiansError(f"{path} is not a .sog file: it is not a zip file.", expected=_EXPECTED)
    program = _program(path)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "scene.ply"
        if complaint := _run(program, path, made):
            raise GaussiansError(f"{PROGRAM} could not read {path}: {complaint}.", expected=_EXPECTED)
        gaussians = load_ply(made)
    return replace(gaussians, antialiased=gaussians.antialiased or _says_antialiased(path))


def _says_antialiased(path: Path) -> bool:
    """Whether meta.json in the archive marks the splats; older versions of splat-transform drop this."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("meta.json") as file:
            meta = parse_json(file.read(_LONGEST_META), str(path), GaussiansError)
    except Exception:  # zipfile raises anything on malformed files; splat-transform decides about them
        return False
    return isinstance(meta, dict) and meta.get("model") == "antialiased"


def _program(path: Path | str) -> str:
    if program := shutil.which(PROGRAM):
        return program
    raise GaussiansError(
        f"{path}: .sog files are written and read by the program {PROGRAM!r}, which is not installed.",
        fix="npm install -g @playcanvas/splat-transform, or choose another format",
    )


def _run(program: str, source: Path, target: Path) -> str:
    """Convert on the CPU; return the reason if that fails, else an empty string."""
    command = [program, "--quiet", "--overwrite", "--gpu", "cpu", str(paths.absolute(source)), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode == 0 and paths.is_file(target):
        return ""
    lines = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
    return lines[0] if lines else f"exit status {done.returncode}"
