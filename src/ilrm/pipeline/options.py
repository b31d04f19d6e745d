"""The options of a run and their checks. Does not import torch, because the command line reads it for its help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ilrm.core.checks import MAX_PIXELS, check_at_least, check_size
from ilrm.core.errors import ConfigError
from ilrm.pipeline.forward.budget import Budget, Effort

PrecisionName = Literal["auto", "fp32", "bf16"]
PosesName = Literal["auto", "stored", "sfm"]
WatchName = Literal["spare", "held-out", "none"]
# Seconds of refinement where neither steps nor a budget are given. Twenty seconds bring most of what minutes bring.
REFINE_SECONDS = {"cpu": 30.0, "cuda": 5.0}
ExportName = Literal["html", "video", "mesh", "spz", "splat", "glb", "compressed-ply"]


@dataclass(frozen=True)
class RunOptions:
    """The options of ``ilrm.run`` and ``ilrm reconstruct``.

    Attributes:
        input: a scene's folder or camera file (transforms.json, COLMAP, opencv_cameras.json, chunks), or a folder of
            photos or a video without cameras.
        output: folder to write; None writes nothing.
        views: number of input photos; by default as many as the budget allows, else as reasonable in memory and time.
            More than a group holds are reconstructed in groups.
        gaussians, memory, seconds: the budget: most Gaussians of the forward pass, bytes of memory, and seconds of the
            whole run; numbers, or text such as "200k", "4GB", "2min". Expected values count, not those in the end.
        holdout: hold out every N-th photo for evaluation; 0 holds out none. By default the test photos that the scene
            itself declares, else every 8th if there are 10 or more.
        weights: name, file or folder of the weights, or a hub id.
        feedback: iterations in which the network sees its own renderings; by default the number in its weights.
        points: use the scene's sparse points beside the photos, if there are any and the network matches its views.
        refine: optimisation after the forward pass, on all photos that are neither held out nor watched: a number of
            steps, or text such as "30s" or "2min"; 0 is the forward pass alone. By default for as long as ``seconds``
            allows, or else ``REFINE_SECONDS``. A time gives slightly different results from run to run.
        refine_poses: cameras of the photos move with the refinement. Held-out cameras are then aligned before scoring.
        export: what to write beside scene.ply.
        watch: photos that stop the refinement when they get worse: none, those that are neither input nor held out
            ("spare"; the inputs alone are then fitted), or the held-out ones (their score is then no longer
            independent).
        size: longer side of the photos in pixels; larger ones are reduced.
        max_pixels: photos of more pixels are refused.
        device: auto, cpu, cuda or cuda:N.
        precision: number format of the network.
        seed: of all random choices.
        poses: "auto" finds cameras by structure from motion where the input has none; "stored" and "sfm" insist.
        overwrite: also replace files of the same names that this program did not write.
    """

    input: Path
    output: Path | None = None
    views: int | None = None
    gaussians: int | float | str | None = None
    memory: int | float | str | None = None
    seconds: int | float | str | None = None
    holdout: int | None = None
    weights: str = "ilrm-small"
    feedback: int | None = None
    points: bool = False
    refine: int | str | None = None
    refine_poses: bool = False
    export: tuple[ExportName, ...] = ("html", "video")
    watch: WatchName = "none"
    size: int = 256
    max_pixels: int = MAX_PIXELS
    device: str = "auto"
    precision: PrecisionName = "auto"
    seed: int = 0
    poses: PosesName = "auto"
    overwrite: bool = False

    def check(self) -> None:
        """Refuse invalid numbers and unknown names before any work. Raises ConfigError."""
        named = [
            ("watch", self.watch, WatchName),
            ("precision", self.precision, PrecisionName),
            ("poses", self.poses, PosesName),
        ]
        for name, value, choices in [*named, *(("export", value, ExportName) for value in self.export)]:
            if value not in get_args(choices):
                raise ConfigError(f"{name} {value!r} was given.", expected=" or ".join(get_args(choices)))
        check_size(self.size)
        check_at_least("--max-pixels", self.max_pixels, 1)
        check_at_least("--feedback", self.feedback or 0, 0)
        if self.refine_poses and self.effort().none:
            raise ConfigError("--refine-poses was given without refinement.", fix="leave out --refine 0")
        check_at_least("--holdout", self.holdout or 0, 0)
        check_at_least("--views", 2 if self.views is None else self.views, 2)
        self.effort()
        self.budget()

    def effort(self) -> Effort:
        """What ``refine`` asks for. Raises ConfigError."""
        return Effort.parse(self.refine)

    def budget(self) -> Budget:
        """The limits of ``gaussians``, ``memory`` and ``seconds``. Raises ConfigError."""
        return Budget.parse(self.gaussians, self.memory, self.seconds)
