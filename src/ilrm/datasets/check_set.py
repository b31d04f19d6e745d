"""Checking a data set: every scene, and problems of the set itself such as repeated keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ilrm.core.checks import MAX_PIXELS
from ilrm.core.errors import SceneError
from ilrm.datasets.dataset import LIST_SUFFIX, SceneRef, chunk_stages, find_scenes
from ilrm.datasets.parallel import LostWorker, choose_jobs, run_each
from ilrm.files import paths
from ilrm.files.reading import read_json
from ilrm.scenes.check import Finding, SceneReport, report_scene
from ilrm.scenes.load import read_source
from ilrm.scenes.readers.chunks import INDEX, is_chunk_index, open_chunk
from ilrm.scenes.readers.records import listing


@dataclass(frozen=True)
class SetReport:
    """Reports on the scenes of a data set, in its order, and findings about the set itself."""

    scenes: tuple[SceneReport, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether every scene is usable and the set itself has no errors."""
        return not any(scene.error for scene in self.scenes) and not any(f.level == "error" for f in self.findings)


def is_set(path: Path) -> bool:
    """Whether a path is a data set (chunks, a list, or a folder of scenes) rather than a single scene."""
    if not paths.exists(path):
        return False
    if chunk_stages(path) or path.suffix == ".torch":
        return True
    try:
        refs = find_scenes(path)
    except SceneError:
        return path.suffix.lower() == LIST_SUFFIX and paths.is_file(path)
    return [ref.path for ref in refs] != [path]


def check_set(
    path: Path | str,
    *,
    max_pixels: int | None = MAX_PIXELS,
    jobs: int | None = None,
    on_done: Callable[[str, int], object] = lambda name, total: None,
) -> SetReport:
    """Check every scene of a data set in parallel, as ``check_scene`` does, and chunks against their index.

    Args:
        path: any path that ``find_scenes`` accepts.
        max_pixels: larger photos are errors, see ``load_scene``.
        jobs: number of processes; one per core by default.
        on_done: called after each scene or chunk with its name and the total number.

    Raises:
        SceneError: there are no scenes.
    """
    path = Path(path)
    stages = chunk_stages(path)
    if not stages and path.suffix == ".torch" and paths.is_file(path):
        stages = [path]
    if stages:
        reports = [_check_chunks(stage, max_pixels, jobs, on_done) for stage in stages]
        return SetReport(
            tuple(scene for report in reports for scene in report.scenes),
            tuple(finding for report in reports for finding in report.findings),
        )
    refs = find_scenes(path, "path")
    scenes: dict[int, SceneReport] = {}
    for index, answer in run_each(partial(_check_ref, max_pixels), refs, choose_jobs(jobs, len(refs))):
        name = refs[index].name
        scenes[index] = _failed(name, answer.reason) if isinstance(answer, LostWorker) else answer
        on_done(name, len(refs))
    return SetReport(tuple(scenes[index] for index in range(len(refs))), tuple(_repeated_paths(refs)))


def _failed(name: str, reason: str) -> SceneReport:
    return SceneReport(name, (Finding("error", reason),))


def _check_ref(max_pixels: int | None, ref: SceneRef) -> SceneReport:
    return report_scene(ref.name, lambda: read_source(ref.path, ref.key), max_pixels)


def _repeated_paths(refs: Sequence[SceneRef]) -> Iterator[Finding]:
    times = Counter((paths.absolute(ref.path), ref.key) for ref in refs)
    if repeated := [str(path) for (path, _), count in times.items() if count > 1]:
        yield Finding("warning", f"listed more than once: {listing(repeated)}")


# --- chunks ---------------------------------------------------------------------------------------------------------


def _check_chunks(
    path: Path, max_pixels: int | None, jobs: int | None, on_done: Callable[[str, int], object]
) -> SetReport:
    """One stage, or a single chunk file."""
    files = [path] if paths.is_file(path) else paths.entries(path, "*.torch")
    reports: dict[str, list[SceneReport]] = {}
    findings: list[Finding] = []
    for index, answer in run_each(partial(_check_chunk, max_pixels), files, choose_jobs(jobs, len(files))):
        file = files[index]
        if isinstance(answer, list):
            reports[file.name] = answer
        else:
            findings.append(Finding("error", answer.reason if isinstance(answer, LostWorker) else answer))
        on_done(file.name, len(files))
    findings.sort(key=lambda finding: finding.message)
    scenes = [scene for file in files for scene in reports.get(file.name, [])]
    findings += _repeated_keys(reports)
    if paths.is_file(path / INDEX):
        keys = {name: {scene.name for scene in held} for name, held in reports.items()}
        lost, about_index = _check_index(path / INDEX, keys, {file.name for file in files})
        scenes, findings = [*scenes, *lost], [*findings, *about_index]
    elif paths.is_dir(path):
        findings.append(Finding("warning", f"{path} has no {INDEX}; scenes are found by opening every chunk"))
    return SetReport(tuple(scenes), tuple(findings))


def _check_chunk(max_pixels: int | None, file: Path) -> list[SceneReport] | str:
    """The reports on the scenes of a chunk, or the reason why it cannot be read."""
    try:
        chunk = open_chunk(file)
    except SceneError as error:
        return str(error)
    return [
        report_scene(key, lambda key=key: chunk.scene(key).source(), max_pixels) for key in dict.fromkeys(chunk.keys)
    ] + [
        _failed(key, f"the key {key} occurs more than once in {file}; only the first scene of that key can be read")
        for key, times in Counter(chunk.keys).items()
        if times > 1
    ]


def _repeated_keys(reports: dict[str, list[SceneReport]]) -> Iterator[Finding]:
    chunks: dict[str, list[str]] = {}
    for chunk, scenes in reports.items():
        for key in {scene.name for scene in scenes}:
            chunks.setdefault(key, []).append(chunk)
    for key, holding in sorted(chunks.items()):
        if len(holding) > 1:
            yield Finding("error", f"the key {key} occurs in several chunks: {listing(sorted(holding))}")


def _check_index(file: Path, keys: dict[str, set[str]], present: set[str]) -> tuple[list[SceneReport], list[Finding]]:
    """Compare the index with the chunks: scenes that are listed but not found, and other findings.

    Args:
        file: index.json.
        keys: the keys in each readable chunk.
        present: the names of all chunk files, readable or not.
    """
    try:
        index = read_json(file)
        if not is_chunk_index(index):
            raise SceneError(f"{file} is not an index of chunks.", expected='an object {key: "NNNNNN.torch"}')
    except SceneError as error:
        return [], [Finding("error", str(error))]
    lost, findings = [], []
    for key, chunk in index.items():
        if chunk not in present:
            lost.append(_failed(key, f"{file} lists it in {chunk}, which does not exist"))
        elif chunk not in keys:
            lost.append(_failed(key, f"{file} lists it in {chunk}, which cannot be read"))
        elif key not in keys[chunk]:
            lost.append(_failed(key, f"{file} lists it in {chunk}, which does not contain it"))
    if missing := sorted(set(index.values()) - present):
        findings.append(Finding("error", f"{file} names chunks that do not exist: {listing(missing)}"))
    if repeated := _repeated_entries(file):
        findings.append(Finding("error", f"{file} lists keys more than once: {listing(repeated)}"))
    if unlisted := sorted(set().union(*keys.values()) - set(index)):
        findings.append(Finding("warning", f"{file} leaves out scenes of its chunks: {listing(unlisted)}"))
    return lost, findings


def _repeated_entries(file: Path) -> list[str]:
    """Keys that occur more than once in a JSON object; a normal reader silently keeps the last value."""
    pairs: list[tuple[str, object]] = read_json(file, objects=lambda pairs: pairs)
    return sorted(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
