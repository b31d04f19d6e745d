"""``ilrm.run`` and the command agree: the same defaults, the same files, the same numbers."""

from __future__ import annotations

import inspect
import json
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ilrm
from ilrm.cli import main
from ilrm.cli.export import Export
from ilrm.cli.mesh import Mesh
from ilrm.cli.reconstruct import Reconstruct
from ilrm.cli.refine import Refine
from ilrm.cli.render import Render
from ilrm.core.errors import ConfigError, IlrmWarning, OutputError
from ilrm.model import ILRM, FeedbackConfig, FootprintDecoder, ILRMConfig, MatchingConfig
from ilrm.pipeline.exporting import ExportOptions
from ilrm.pipeline.meshing import mesh_file
from ilrm.pipeline.options import RunOptions
from ilrm.pipeline.refinement import refine_file
from ilrm.pipeline.rendering import RenderOptions
from ilrm.pipeline.run import run
from ilrm.results import load_result
from ilrm.view.layers import update_layers
from tests.cli.conftest import tree
from tests.conftest import CAPTURE

SMALL: dict[str, Any] = {"views": 3, "size": 64, "refine": 2, "export": ("spz",), "device": "cpu"}
FLAGS = ["--views", "3", "--size", "64", "--refine", "2", "--export", "spz", "--device", "cpu"]
TINY = ILRMConfig(width=16, head_width=16, layers=1, patch_size=4, decoder=FootprintDecoder())
# What differs between any two runs.
TIMED = ("seconds", "peak_memory_gb", "expected")


def defaults(cls: type) -> dict[str, Any]:
    return {field.name: field.default for field in fields(cls) if field.default is not MISSING}


def parameters(function: Any) -> dict[str, Any]:
    found = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in found if p.default is not inspect.Parameter.empty}


def test_defaults_are_the_same_everywhere() -> None:
    python = parameters(run)
    assert python.pop("reporter") is None
    assert python.pop("output") is None
    options = defaults(RunOptions)
    assert options.pop("output") is None
    command = defaults(Reconstruct)
    assert command.pop("json") is False
    assert python == options == command
    for options, command in ((ExportOptions, Export), (RenderOptions, Render)):
        flags = defaults(command)
        flags.pop("output", None)
        assert flags.pop("json") is False
        assert defaults(options) == flags
    for function, command in ((refine_file, Refine), (mesh_file, Mesh)):
        python, flags = parameters(function), defaults(command)
        assert python.pop("reporter") is None
        assert flags.pop("json") is False
        assert python == flags


@pytest.fixture(scope="module")
def by_command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("command") / "out"
    assert main(["reconstruct", str(CAPTURE), "-o", str(out), *FLAGS]) == 0
    return out


def test_python_writes_what_the_command_writes(by_command: Path, tmp_path: Path) -> None:
    result = ilrm.run(CAPTURE, tmp_path / "out", **SMALL)
    ours, theirs = tree(tmp_path / "out"), tree(by_command)
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] != theirs[name]} <= {"metrics.json", ".ilrm.json"}
    metrics, told = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path / "out", by_command))
    assert {k: v for k, v in metrics.items() if k not in TIMED} == {k: v for k, v in told.items() if k not in TIMED}
    assert metrics == json.loads(json.dumps(result.metrics))
    assert metrics["seconds"].keys() == told["seconds"].keys()
    assert metrics["background"] == pytest.approx(load_result(tmp_path / "out").gaussians.background, abs=1e-4)


def test_without_a_folder_nothing_is_written(by_command: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = ilrm.run(str(CAPTURE), **SMALL)
    assert not list(tmp_path.iterdir())
    result.save("later")
    there = load_result(tmp_path / "later")
    assert torch.equal(there.gaussians.means, load_result(by_command).gaussians.means)
    assert there.names == result.names
    assert there.metrics["psnr"] == result.metrics["psnr"]
    assert there.cameras is not None
    assert torch.allclose(there.cameras.c2w, load_result(by_command).cameras.c2w)  # type: ignore[union-attr]
    for photo, kept in zip(result.photos, there.photos, strict=True):
        assert photo is not None
        assert kept is not None
        assert np.abs(photo.astype(float) - kept).mean() < 4  # JPEG
    (tmp_path / "later" / "scene.ply").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"scene\.ply"):
        result.save("later")


class Heard:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.stages: dict[str, int] = {}

    def say(self, message: str) -> None:
        self.lines.append(message)

    def progress(self, label: str, total: int | None) -> Any:
        from contextlib import contextmanager

        @contextmanager
        def stage() -> Any:
            def advance(note: str = "", steps: int = 1, total: int | None = None) -> None:
                self.stages[label] = self.stages.get(label, 0) + steps

            yield advance

        return stage()


def test_a_reporter_hears_every_stage(tmp_path: Path) -> None:
    heard = Heard()
    ilrm.run(CAPTURE, tmp_path / "out", **SMALL, reporter=heard)
    assert heard.lines[0].startswith(f"{CAPTURE}: 3 inputs")
    assert heard.stages["refining"] == 2
    assert heard.stages["exporting"] == 1
    assert heard.stages["rendering"] > 0


def test_warnings_reach_callers_and_the_numbers(tmp_path: Path) -> None:
    with pytest.warns(IlrmWarning, match="exactly the pose"):
        result = ilrm.run(twins(tmp_path / "scene"), views=2, holdout=0, size=64, device="cpu")
    assert [line for line in result.metrics["warnings"] if "exactly the pose" in line]


def twins(folder: Path) -> Path:
    """A scene in which two photos share a pose."""
    from tests.conftest import make_cameras
    from tests.scenes.files import transforms, write_scene, write_transforms

    write_scene(folder, 3, 64, 48)
    cameras = make_cameras(3, 64, 48)[[0, 1, 1]]
    write_transforms(folder, transforms(cameras, [f"images/{view}.png" for view in range(3)]))
    return folder


@pytest.mark.parametrize("options", [{"export": ("page",)}, {"export": "html"}, {"watch": "all"}, {"precision": "fp8"}])
def test_unknown_names_are_refused_before_the_work(options: dict[str, Any], tmp_path: Path) -> None:
    """The command's parser knows the choices; callers from Python get a message as well."""
    with pytest.raises(ConfigError, match=f"{next(iter(options))} .* was given"):
        run(CAPTURE, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_feedback_is_what_the_weights_say_or_what_is_asked(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ILRM(replace(TINY, feedback=FeedbackConfig(channels=4, iterations=2)))
    assert model.feedback is not None
    assert model.feedback.step is not None
    torch.nn.init.constant_(model.feedback.step, 0.02)  # down the gradient, which is not taken back
    model.save_pretrained(tmp_path / "weights")
    options: dict[str, Any] = {
        "views": 3,
        "size": 64,
        "export": (),
        "device": "cpu",
        "weights": str(tmp_path / "weights"),
    }
    results = {asked: run(CAPTURE, tmp_path / str(asked), feedback=asked, **options) for asked in (None, 0, 2)}
    assert {asked: result.metrics["feedback"] for asked, result in results.items()} == {None: 2, 0: 0, 2: 2}
    assert torch.equal(results[None].gaussians.means, results[2].gaussians.means)
    assert not torch.equal(results[0].gaussians.means, results[2].gaussians.means)
    states = update_layers(load_result(tmp_path / "2"))
    assert [name for name, _ in states] == ["update layer 1", "feedback 1", "feedback 2"]
    ILRM(TINY).save_pretrained(tmp_path / "plain")
    with pytest.raises(ConfigError, match="1 feedback iterations were asked of a network without feedback"):
        run(CAPTURE, tmp_path / "none", feedback=1, **{**options, "weights": str(tmp_path / "plain")})
    assert not (tmp_path / "none").exists()


def test_sparse_points_are_used_if_they_are_asked_for(tmp_path: Path) -> None:
    torch.manual_seed(0)
    matched = replace(TINY, matching=MatchingConfig(planes=16, sources=2), image_channels=("rgb", "match"))
    ILRM(matched).save_pretrained(tmp_path / "weights")
    options: dict[str, Any] = {"views": 3, "size": 64, "device": "cpu", "weights": str(tmp_path / "weights")}
    off, on = (run(CAPTURE, points=points, **options) for points in (False, True))
    assert off.metrics["points"] == 0
    assert on.metrics["points"] > 100
    assert not torch.equal(on.gaussians.means[: len(off.gaussians)], off.gaussians.means)
    assert torch.equal(run(CAPTURE, **options).gaussians.means, off.gaussians.means)


def test_refinement_fits_all_photos_that_are_not_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are no inputs, too, unless they are watched."""
    fitted = []

    def fake(gaussians: Any, scene: Any, *_: Any, **__: Any) -> Any:
        fitted.append(scene.names)
        raise ConfigError("enough")

    monkeypatch.setattr("ilrm.pipeline.refinement.refine", fake)
    options = SMALL | {"views": 2, "holdout": 4}
    names = run(CAPTURE, **options | {"refine": 0}).metrics
    for watch in ("none", "held-out", "spare"):
        with pytest.raises(ConfigError, match="enough"):
            run(CAPTURE, **options | {"watch": watch})
    assert [len(found) for found in fitted] == [9, 9, 2]
    assert list(fitted[0][:2]) == list(fitted[2]) == names["input_names"]
    assert not set(fitted[0]) & set(names["held_out_names"])
