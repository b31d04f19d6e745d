"""``ilrm data``: make synthetic scenes, and check scenes before use."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ilrm.cli.arguments import Output, check_at_least, check_size
from ilrm.cli.console import Console
from ilrm.errors import SceneError


@dataclass(frozen=True)
class Make:
    """Make synthetic scenes with true cameras and depth, one folder each."""

    output: Output
    """Folder to write."""
    scenes: int = 1
    """Number of scenes."""
    views: int = 12
    """Photos of each."""
    size: int = 256
    """Width and height in pixels."""
    seed: int = 0
    """Of the first scene; the others count on from it."""

    def run(self, console: Console) -> dict[str, Any]:
        check_at_least("--scenes", self.scenes, 1)
        check_at_least("--views", self.views, 1)
        check_size(self.size)
        from ilrm.files import atomic_folder
        from ilrm.scenes import save_scene
        from ilrm.scenes.procedural import ProceduralConfig, make_scene

        config = ProceduralConfig(views=self.views, width=self.size, height=self.size)
        seeds = range(self.seed, self.seed + self.scenes)
        names = [f"scene_{seed:06d}" for seed in seeds]
        with atomic_folder(self.output) as folder, console.progress("scenes", self.scenes) as advance:
            for seed, name in zip(seeds, names, strict=True):
                save_scene(make_scene(seed, config), folder / name)
                advance("")
        console.show("", {"scenes": self.scenes, "written": self.output})
        return {"output": str(self.output), "scenes": names}


@dataclass(frozen=True)
class Check:
    """Check that a scene can be used: every pose, intrinsic and image."""

    path: tyro.conf.Positional[Path]
    """A scene's folder or camera file."""

    def run(self, console: Console) -> dict[str, Any]:
        from ilrm.scenes import check_scene

        findings = check_scene(self.path)
        errors = [finding.message for finding in findings if finding.level == "error"]
        report = {"path": str(self.path), "usable": not errors, "findings": [asdict(finding) for finding in findings]}
        for finding in findings:
            if finding.level != "error":
                console.say(f"{finding.level}: {finding.message}")
        if errors:
            console.answer(report)
            raise SceneError(f"{self.path} cannot be used as it is:\n" + "\n".join(errors))
        console.show("", {str(self.path): "can be used"})
        return report


@dataclass(frozen=True)
class Data:
    """Make and check scenes."""

    command: Annotated[
        Annotated[Make, tyro.conf.subcommand("make")] | Annotated[Check, tyro.conf.subcommand("check")],
        tyro.conf.arg(name=""),
    ]
    json: bool = False
    """Print one JSON object on stdout and nothing else."""

    def run(self, console: Console) -> dict[str, Any]:
        return self.command.run(console)
