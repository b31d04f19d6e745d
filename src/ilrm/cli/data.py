"""``ilrm data``: making, converting and checking data sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ilrm.cli.arguments import MaxPixels, Output
from ilrm.cli.console import Console
from ilrm.core.checks import MAX_PIXELS, check_at_least, check_size, check_suffix
from ilrm.core.errors import CameraError, ConfigError, SceneError
from ilrm.files import paths

if TYPE_CHECKING:
    from ilrm.datasets.check_set import SetReport
    from ilrm.scenes.check import Finding

_MOST_SHOWN = 10


@dataclass(frozen=True)
class Make:
    """Make synthetic scenes with exact cameras.

    After an interruption the same command continues. Existing scenes are kept.
    """

    output: Output
    """Folder to write."""
    scenes: int = 1
    """Number of scenes."""
    views: int = 12
    """Photos per scene."""
    size: int = 256
    """Width and height in pixels."""
    seed: int = 0
    """Seed of the first scene; the others have the following numbers."""
    form: Literal["folders", "chunks", "json"] = "folders"
    """folders: one folder per scene with transforms.json and exact depth; chunks: pixelSplat chunks;
    json: one folder per scene with opencv_cameras.json, and a list of them."""
    kind: Literal["room", "open", "mixed"] = "mixed"
    """Closed rooms, open ground, or a mix of both."""
    baseline: tuple[float, float] | None = None
    """Range of the camera path's length, relative to the distance of the point it looks at (default: 0.1 1.2)."""
    style: Literal["plain", "photographic"] = "plain"
    """plain: painted surfaces; photographic: also photos on surfaces, furniture, windows and varied light."""
    image_format: Literal["png", "jpg"] = "png"
    """PNG is lossless, JPEG is smaller."""
    jobs: int | None = None
    """Number of processes (default: one per core)."""

    def run(self, console: Console) -> dict[str, Any]:
        check_at_least("--scenes", self.scenes, 1)
        check_at_least("--views", self.views, 1)
        check_at_least("--seed", self.seed, 0)
        check_at_least("--jobs", 1 if self.jobs is None else self.jobs, 1)
        check_size(self.size)
        from ilrm.datasets.make_set import make_set
        from ilrm.datasets.procedural import ProceduralConfig

        config = ProceduralConfig(views=self.views, width=self.size, height=self.size, kind=self.kind, style=self.style)
        if self.baseline is not None:
            config = replace(config, baseline=self.baseline)
        seeds = range(self.seed, self.seed + self.scenes)
        with _resumable(), console.progress("scenes", self.scenes) as advance:
            outcomes = make_set(
                self.output,
                seeds,
                config,
                self.form,
                image_format=self.image_format,
                jobs=self.jobs,
                on_done=lambda outcome: advance(outcome.name),
            )
        kept = sum(outcome.kept for outcome in outcomes)
        console.show("", {"scenes": self.scenes, "of these made earlier": kept or None, "written": self.output})
        return {"output": str(self.output), "scenes": [outcome.name for outcome in outcomes], "kept": kept}


@dataclass(frozen=True)
class Convert:
    """Convert captures to one data set for training, undistorted and at one size.

    OUT/report.json lists the outcome for each scene. After an interruption the same command continues. It also tries
    failed scenes again.
    """

    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """Scenes (nerfstudio, DL3DV, COLMAP, LVSM, opencv_cameras.json), folders of them, lists of them, or chunks."""
    output: Output
    """Folder to write."""
    form: Literal["chunks", "json"] = "chunks"
    """chunks: pixelSplat chunks; json: one folder per scene with opencv_cameras.json, and a list of them."""
    max_side: int | None = None
    """Largest longer side of the photos in pixels (default: no limit)."""
    size: Annotated[tuple[int, int] | None, tyro.conf.arg(metavar="W H")] = None
    """Width and height of all photos: they are scaled to cover it, then cropped around the centre."""
    max_pixels: MaxPixels = MAX_PIXELS
    key_from: Literal["folder", "parent", "path"] = "folder"
    """Name scenes by their folder, by the folder above it, or by the whole path below INPUT."""
    image_format: Literal["jpg", "png"] = "jpg"
    """JPEG is smaller, PNG is lossless."""
    jobs: int | None = None
    """Number of processes (default: one per core)."""
    skip_broken: bool = False
    """Exit with 0 even if some scenes could not be converted."""

    def run(self, console: Console) -> dict[str, Any]:
        if not self.inputs:
            raise ConfigError("No INPUT was given.", expected="one or more scenes, folders of scenes, or lists")
        check_at_least("--jobs", 1 if self.jobs is None else self.jobs, 1)
        from ilrm.datasets.convert import REPORT_FILE, Fit, convert_scenes, find_inputs
        from ilrm.files import check_apart

        check_apart(self.output, self.inputs)
        fit = Fit(self.max_side, self.size, self.max_pixels)
        refs = find_inputs(self.inputs, self.key_from)
        with _resumable(), console.progress("scenes", len(refs)) as advance:
            outcomes = convert_scenes(
                refs,
                self.output,
                self.form,
                fit,
                image_format=self.image_format,
                jobs=self.jobs,
                on_done=lambda outcome: advance(outcome.name),
            )
        written = [outcome.written for outcome in outcomes if outcome.written]
        broken = {outcome.name: outcome.reason for outcome in outcomes if not outcome.written}
        summary = {
            "scenes": len(outcomes),
            "converted": len(written),
            "kept": sum(outcome.kept for outcome in outcomes),
            "broken": len(broken),
            "warnings": sum(bool(scene.warnings) for scene in written),
            "views": sum(scene.views for scene in written),
            "report": str(self.output / REPORT_FILE),
        }
        console.show("", summary)
        report = {**summary, "output": str(self.output), "broken": broken}
        if broken and not (self.skip_broken and written):
            console.answer(report)
            raise SceneError(f"{len(broken)} of {len(refs)} scenes could not be converted:\n{_reasons(broken)}")
        for name, reason in broken.items():
            console.warn(f"{name} was left out: {reason.splitlines()[0]}")
        return report


@dataclass(frozen=True)
class Check:
    """Check that a scene, or every scene of a data set, can be used: poses, intrinsics, and decoding of every image."""

    path: tyro.conf.Positional[Path]
    """A scene's folder or camera file; chunks, a folder of scenes, or a list of them."""
    max_pixels: MaxPixels = MAX_PIXELS
    report: Path | None = None
    """Write every finding to this .json file."""
    jobs: int | None = None
    """Number of processes (default: one per core)."""
    overwrite: bool = False
    """Also replace a report of the same name that this program did not write."""

    def run(self, console: Console) -> dict[str, Any]:
        check_at_least("--jobs", 1 if self.jobs is None else self.jobs, 1)
        if self.report is not None:
            check_suffix(self.report, ".json")
            self._claim(self.report)
        from ilrm.datasets.check_set import is_set
        from ilrm.files import note_written, write_json

        report, errors = self._check_set(console) if is_set(self.path) else self._check_scene(console)
        if self.report is not None:
            write_json(self.report, report)
            note_written(self.report)
        if errors:
            console.answer(report)
            raise SceneError(f"{self.path} cannot be used as it is:\n{errors}")
        return report

    def _claim(self, report: Path) -> None:
        """Check that the report may be written. Raises OutputError."""
        from ilrm.files import claim_file
        from ilrm.scenes.inputs import input_paths

        with suppress(SceneError, CameraError):  # an unreadable scene is for the report
            claim_file(report, reads=input_paths(self.path), overwrite=self.overwrite)
        claim_file(report, reads=[self.path] if paths.is_file(self.path) else (), overwrite=self.overwrite)

    def _check_scene(self, console: Console) -> tuple[dict[str, Any], str]:
        """The report on a scene, and its errors, one per line."""
        from ilrm.scenes import check_scene

        findings = check_scene(self.path, max_pixels=self.max_pixels)
        errors = [finding.message for finding in findings if finding.level == "error"]
        _say(findings, console)
        if not errors:
            console.show("", {str(self.path): "can be used"})
        report = {"path": str(self.path), "usable": not errors, "findings": [asdict(finding) for finding in findings]}
        return report, "\n".join(errors)

    def _check_set(self, console: Console) -> tuple[dict[str, Any], str]:
        """The report on a data set, and the errors of the set and of its first unusable scenes, one per line."""
        from ilrm.datasets.check_set import check_set

        with console.progress("checking", None) as advance:
            checked = check_set(
                self.path,
                max_pixels=self.max_pixels,
                jobs=self.jobs,
                on_done=lambda name, total: advance(name, total=total),
            )
        _say(checked.findings, console)
        console.show("", _summary(checked))
        broken = {scene.name: scene.error for scene in checked.scenes if scene.error}
        errors = [finding.message for finding in checked.findings if finding.level == "error"]
        report = {"path": str(self.path), "usable": checked.usable, **asdict(checked)}
        return report, "\n".join([*errors, *([_reasons(broken)] if broken else [])])


@dataclass(frozen=True)
class Data:
    """Make, convert and check data sets."""

    command: Annotated[
        Annotated[Make, tyro.conf.subcommand("make")]
        | Annotated[Convert, tyro.conf.subcommand("convert")]
        | Annotated[Check, tyro.conf.subcommand("check")],
        tyro.conf.arg(name=""),
    ]
    json: bool = False
    """Print one JSON object on stdout and nothing else."""

    def run(self, console: Console) -> dict[str, Any]:
        return self.command.run(console)


@contextmanager
def _resumable() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("interrupted; the same command continues from here") from error


def _say(findings: Sequence[Finding], console: Console) -> None:
    for finding in findings:
        if finding.level != "error":
            console.say(f"{finding.level}: {finding.message}")


def _reasons(broken: Mapping[str, str]) -> str:
    """One line for each of the first few scenes."""
    lines = [f"{name}: {reason.splitlines()[0]}" for name, reason in list(broken.items())[:_MOST_SHOWN]]
    more = len(broken) - len(lines)
    return "\n".join([*lines, *([f"... and {more} more"] if more else [])])


def _summary(checked: SetReport) -> Mapping[str, object]:
    """The rows of a table."""
    loaded = [scene for scene in checked.scenes if scene.views]
    warned = sum(any(finding.level == "warning" for finding in scene.findings) for scene in checked.scenes)
    rows = {"scenes": len(checked.scenes), "usable": sum(not scene.error for scene in checked.scenes), "warned": warned}
    if not loaded:
        return rows
    views = [scene.views or 0 for scene in loaded]
    sizes = Counter(scene.size for scene in loaded if scene.size).most_common(_MOST_SHOWN)
    angles = [angle for scene in loaded for angle in scene.fov or ()]
    return rows | {
        "views": f"{sum(views)}, {min(views)} to {max(views)} per scene",
        "sizes": ", ".join(f"{width}x{height} ({count})" for (width, height), count in sizes),
        "field of view": f"{min(angles):.0f} to {max(angles):.0f} degrees",
    }
