"""``ilrm.run``: from photos to a folder of results. ``ilrm reconstruct`` and ``ilrm demo`` call it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ilrm.core.checks import MAX_PIXELS, find_device, peak_memory
from ilrm.core.errors import collect_warnings
from ilrm.core.gaussians import Gaussians
from ilrm.core.precision import resolve
from ilrm.core.reporting import Reporter, Silent
from ilrm.core.scene import Scene
from ilrm.files import atomic_folder, check_apart, check_folder, claim_names, write_json
from ilrm.model.ilrm import ILRM
from ilrm.model.reconstruct import usable_points
from ilrm.pipeline.extras import EXPORT_FILES, save_extras
from ilrm.pipeline.forward.budget import Effort
from ilrm.pipeline.forward.cost import measure_slowness
from ilrm.pipeline.forward.passes import forward_pass
from ilrm.pipeline.forward.plan import Plan, make_plan
from ilrm.pipeline.forward.posing import CAPTURE_FOLDER, PosedInput, files_of, posed_input
from ilrm.pipeline.options import ExportName, PosesName, PrecisionName, RunOptions, WatchName
from ilrm.pipeline.refine import RefineConfig, RefineResult
from ilrm.pipeline.refinement import refine_reported
from ilrm.pipeline.refining.losses import load_loss_kernels, squared_error
from ilrm.pipeline.refining.poses import align_views
from ilrm.pipeline.scoring import save_comparisons, score
from ilrm.pipeline.views import ViewSplit
from ilrm.render.warm_up import kernels_are_kept, kernels_in_background
from ilrm.results import Result
from ilrm.results.beside import CAMERAS_FILE, SCENE_FILE
from ilrm.results.result import INPUTS, METRICS_FILE, RENDERS
from ilrm.scenes import load_scene
from ilrm.scenes.photos.background import background_colour

_MOST_WATCHED = 6
_MOST_BYTES = 4 << 30  # of decoded photos in memory


def run(
    input: Path | str,
    output: Path | str | None = None,
    *,
    views: int | None = None,
    gaussians: float | str | None = None,
    memory: float | str | None = None,
    seconds: float | str | None = None,
    holdout: int | None = None,
    weights: str = "ilrm-small",
    feedback: int | None = None,
    points: bool = False,
    refine: int | str | None = None,
    refine_poses: bool = False,
    export: Sequence[ExportName] = ("html", "video"),
    watch: WatchName = "none",
    size: int = 256,
    max_pixels: int = MAX_PIXELS,
    device: str = "auto",
    precision: PrecisionName = "auto",
    seed: int = 0,
    poses: PosesName = "auto",
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Result:
    """Reconstruct photos or a video, refine, evaluate and write the result, as ``ilrm reconstruct`` does.

    Args:
        input: a scene's folder or camera file, or a folder of photos or a video without cameras, which are then found
            by ``ilrm.capture`` and kept in ``output``/capture.
        output: a folder for scene.ply, cameras.json, metrics.json, inputs/, renders/ and the files of ``export``, which
            are written all or not at all; None writes nothing (``Result.save`` can do so later).
        views, gaussians, memory, seconds, holdout, weights, feedback, points, refine, refine_poses, export, watch,
            size, max_pixels, device, precision, seed, poses, overwrite: see ``RunOptions``.
        reporter: receives messages and progress.

    Returns:
        the result; ``metrics`` is the content of metrics.json.

    Raises:
        IlrmError: invalid input, output or options; the subclass says which.
    """
    options = RunOptions(
        input=Path(input),
        output=None if output is None else Path(output),
        views=views,
        gaussians=gaussians,
        memory=memory,
        seconds=seconds,
        holdout=holdout,
        weights=weights,
        feedback=feedback,
        points=points,
        refine=refine,
        refine_poses=refine_poses,
        export=tuple(export),
        watch=watch,
        size=size,
        max_pixels=max_pixels,
        device=device,
        precision=precision,
        seed=seed,
        poses=poses,
        overwrite=overwrite,
    )
    options.check()
    return _Run(options, reporter or Silent()).all()


class _Run:
    """One call of ``run``: its options, timings and warnings."""

    def __init__(self, options: RunOptions, reporter: Reporter) -> None:
        self.options, self.reporter = options, reporter
        self.device = find_device(options.device)
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()
        self.warnings: list[str] = []
        self.posed = PosedInput(options.input)

    def all(self) -> Result:
        options = self.options
        if "mesh" in options.export:
            from ilrm.mesh.files import check_mesh_packages

            check_mesh_packages()
        with collect_warnings(self.warnings):
            names = (SCENE_FILE, METRICS_FILE, CAMERAS_FILE, f"{RENDERS}/", f"{INPUTS}/", *EXPORT_FILES.values())
            if options.output is not None:
                check_folder(options.output)
                check_apart(options.output, [*files_of(options.input, options.poses), options.weights])
                if not options.overwrite:
                    claim_names(options.output, names)  # before cameras are found for minutes
            with self._posed() as self.posed:
                if options.output is None:
                    return self._compute(None)
                with atomic_folder(options.output, names, overwrite=options.overwrite) as folder:
                    return self._compute(folder)

    @contextmanager
    def _posed(self) -> Iterator[PosedInput]:
        options, start = self.options, time.perf_counter()
        with posed_input(
            options.input, options.poses, options.output, options.max_pixels, options.seed, self.reporter
        ) as posed:
            if posed.report is not None:
                self.seconds["capture"] = round(time.perf_counter() - start, 3)
            yield posed

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)

    def _compute(self, folder: Path | None) -> Result:
        """Compute the result and write it to ``folder``, unless that is None."""
        options = self.options
        # Before kernels are compiled on the same cores: on a first run all would seem several times slower.
        slowness = measure_slowness() if self.device.type == "cpu" else None
        gradients = not options.effort().none
        of_loss = load_loss_kernels if gradients else None
        with kernels_in_background(self.device, gradients=gradients, others=of_loss) as kernels_ready:
            with self._stage("load"):
                scene = load_scene(self.posed.path, max_side=options.size, max_pixels=options.max_pixels)
                model = ILRM.from_pretrained(options.weights).to(self.device)
                if resolve(options.precision, self.device, model.parameter_count()) == "bf16":
                    model.cast_weights()
                feedback = model.feedback_iterations(options.feedback)
                compiled = kernels_are_kept(self.device, gradients=gradients)
                asked = replace(options, input=self.posed.path)
                plan = make_plan(scene, asked, model, feedback, slowness, compiled=compiled)
                split = plan.split
                inputs, held_out = (scene.select(use).loaded(_MOST_BYTES) for use in (split.inputs, split.held_out))
                points = usable_points(inputs, model.config) if options.points else None
            self.reporter.say(
                f"{options.input}: {len(inputs)} inputs, {len(held_out)} held out, {len(split.spare)} spare, "
                f"{scene.cameras.width}x{scene.cameras.height}, {options.weights} on {self.device}"
            )
            self.reporter.say(plan.describe())
            with self._stage("reconstruct"):
                forward = forward_pass(
                    inputs,
                    model,
                    plan.groups,
                    precision=options.precision,
                    feedback=feedback,
                    points=options.points,
                    reporter=self.reporter,
                )
            if not plan.effort.none:
                with self._stage("kernels"):  # their time is not refinement's
                    kernels_ready()
        gaussians, near = replace(forward.gaussians, background=background_colour(inputs)), forward.near
        before, refined = None, None
        if not plan.effort.none:
            with self._stage("score_before_refine"):
                before = score(gaussians, held_out, near)
            with self._stage("refine"):
                refined = self._refine(gaussians, scene, split, self._in_time(plan))
            gaussians = refined.gaussians
        apart = None
        with self._stage("score"):
            if refined is not None and options.refine_poses:
                apart = score(gaussians, held_out, near)
                held_out = align_views(gaussians, held_out, inputs.cameras, squared_error)
                inputs = replace(inputs, cameras=refined.cameras[: len(inputs)])
            after = score(gaussians, held_out, near)
        metrics = {
            "psnr": after and after[0],
            "ssim": after and after[1],
            # After cameras have moved, held-out ones are moved to where their photos fit best, and then scored.
            "held_out_aligned": apart is not None,
            "psnr_without_alignment": apart and apart[0],
            "psnr_before_refine": before and before[0],
            "ssim_before_refine": before and before[1],
            **self._report(gaussians, inputs, held_out, feedback),
            "points": 0 if points is None else points.xyz.shape[1],
            **_refine_report(refined, plan.effort, options.watch),
            **forward.report(),
            **plan.report(options.budget()),
            "warnings": self.warnings,
            "files": {},
        }
        photos = tuple(inputs.images[view].mul(255).round().byte().cpu().numpy() for view in range(len(inputs)))
        path = (options.output or Path(".")) / SCENE_FILE
        result = Result(path, gaussians.to("cpu"), inputs.cameras.to("cpu"), inputs.names, photos, metrics)
        if folder is not None:
            metrics["files"] = {"splats": SCENE_FILE, **{name: EXPORT_FILES[name] for name in options.export}}
            # Without held-out views, the inputs are rendered for comparison; scores on inputs would be misleading.
            self._write(result, gaussians, held_out if split.held_out else inputs, near, folder)
        return result

    def _report(self, gaussians: Gaussians, inputs: Scene, held_out: Scene, feedback: int) -> dict[str, Any]:
        options, peak = self.options, peak_memory(self.device)
        return {
            "seconds": self.seconds,
            "peak_memory_gb": None if peak is None else round(peak / 1e9, 3),
            "num_gaussians": len(gaussians),
            "background": gaussians.background,
            "world_offset": gaussians.origin.tolist(),
            "num_inputs": len(inputs),
            "input_names": list(inputs.names),
            "held_out_names": list(held_out.names),
            "width": inputs.cameras.width,
            "height": inputs.cameras.height,
            "capture": _capture_report(self.posed.report),
            "weights": options.weights,
            "device": str(self.device),
            "precision": options.precision,
            "seed": options.seed,
            "feedback": feedback,
        }

    def _write(self, result: Result, gaussians: Gaussians, shown: Scene, near: float, folder: Path) -> None:
        with self._stage("write"):
            result.write_splats(folder)
            save_comparisons(gaussians, shown, folder / RENDERS, near, self.reporter)
        with self._stage("export"):
            save_extras(self.options.export, result, folder, near, self.reporter)
        write_json(folder / METRICS_FILE, result.metrics)

    def _in_time(self, plan: Plan) -> Effort:
        """What is left of the time for all of the run, if refinement may have it."""
        limit, asked = self.options.budget().seconds, self.options.effort()
        if limit is None or asked != Effort():
            return plan.effort
        return Effort(seconds=max(limit - (time.perf_counter() - self._start) - plan.cost.after, 0.0))

    def _refine(self, gaussians: Gaussians, scene: Scene, split: ViewSplit, effort: Effort) -> RefineResult:
        """Inputs come first, then spare photos, if those are not watched."""
        watch, seed = self.options.watch, self.options.seed
        fitted = scene.select(split.inputs if watch == "spare" else [*split.inputs, *split.spare])
        config = RefineConfig.for_steps(effort.steps, seed).for_views(len(fitted), seed)
        config = replace(config, poses=self.options.refine_poses)
        return refine_reported(gaussians, fitted, scene.select(_watched(split, watch)), effort, config, self.reporter)


def _capture_report(report: dict[str, Any] | None) -> dict[str, Any] | None:
    names = ("photos", "registered", "reprojection_error_px", "unit", "weaknesses")
    return None if report is None else {"folder": CAPTURE_FOLDER, **{name: report[name] for name in names}}


def _watched(split: ViewSplit, watch: WatchName) -> list[int]:
    """An even subset of the photos that may stop the refinement."""
    watched = {"spare": split.spare, "held-out": split.held_out, "none": []}[watch]
    return watched[:: -(-len(watched) // _MOST_WATCHED) if watched else 1]


def _refine_report(result: RefineResult | None, effort: Effort, watch: WatchName) -> dict[str, Any]:
    asked = {"refine_steps": effort.steps, "refine_seconds": effort.seconds and round(effort.seconds, 2)}
    if result is None:
        return {**asked, "refine_steps_done": 0, "refine_best_step": None, "early_stop": None, "watched": None}
    measured = any(step.watch_psnr is not None for step in result.history)
    return {
        **asked,
        "refine_steps_done": len(result.history),
        "refine_best_step": result.best_step,
        "early_stop": result.stopped_early,
        "watched": watch if measured else "none",
    }
