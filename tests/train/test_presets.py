"""Presets against the published settings, configs through JSON, and fields changed by assignments."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ilrm.core.errors import ConfigError, OutputError
from ilrm.model import ILRM, FootprintDecoder, ReleasedDecoder
from ilrm.train.config import Bounded, BoundedV2, Captures, Chunks, Procedural, SceneList, Spread, TrainConfig
from ilrm.train.presets import PRESETS, preset
from ilrm.train.serialise import from_dict, from_json, override, to_dict, to_json

PROCEDURAL = {"synthetic-small", "synthetic-feedback", "smoke"}
MIXED = {"mixed-small", "mixed-feedback"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def made(name: str, data: Path) -> TrainConfig:
    return preset(name, None if name in PROCEDURAL else data)


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_is_documented_and_keeps_its_name(name: str, data: Path) -> None:
    config = made(name, data)
    assert config.name == name
    assert PRESETS[name].__doc__
    assert config.validation is not None
    with torch.device("meta"):
        ILRM(config.model)


# The rows of the paper: parameters, inputs, image size, batch, steps.
ROWS = {
    "re10k-2view": (171_336_960, 2, (256, 256), 256, 200_000),
    "re10k-4view": (185_885_952, 4, (256, 256), 128, 100_000),
    "re10k-8view": (185_885_952, 8, (256, 256), 256, 50_000),
    "dl3dv-256": (185_885_952, (6, 11), (256, 448), 96, 100_000),
    "dl3dv-512": (185_885_952, (6, 11), (512, 960), 96, 50_000),
    "undistorted-16view": (185_885_952, (16,), (256, 256), 64, 100_000),
    "undistorted-32view": (185_885_952, (32,), (256, 256), 64, 100_000),
}


@pytest.mark.parametrize("name", list(ROWS))
def test_rows_of_the_paper(name: str, data: Path) -> None:
    config = preset(name, data)
    with torch.device("meta"):
        parameters = ILRM(config.model).parameter_count()
    stage = config.stages[0]
    assert (parameters, stage.sampler.inputs, stage.size, stage.batch, config.steps) == ROWS[name]
    optimiser = config.optimiser
    assert (optimiser.peak, optimiser.betas, optimiser.weight_decay) == (2e-4, (0.9, 0.95), 0.05)
    assert (optimiser.schedule, optimiser.warm_up, optimiser.clip) == ("cosine", 2500, 1.0)
    assert (config.loss.mse, config.loss.perceptual, config.loss.perceptual_weight) == (1.0, "vgg", 0.5)
    assert config.compute.checkpoint
    assert config.precision == "bf16"
    assert stage.flip


def test_samplers_are_the_released_ones(data: Path) -> None:
    window = preset("re10k-2view", data).stages[0].sampler
    assert isinstance(window, Bounded)
    assert (window.targets, window.min_gap, window.max_gap, window.warm_up) == (4, (25, 45), (45, 135), 30_000)
    window = preset("dl3dv-256", data).stages[0].sampler
    assert isinstance(window, BoundedV2)
    assert (window.targets, window.min_gap, window.max_gap, window.warm_up) == (4, (15, 20), (30, 50), 10_000)
    assert window.strategy == "farthest_point"


@pytest.mark.parametrize("name", ["re10k-2view", "re10k-4view", "re10k-8view"])
def test_mini_batch_variants_differ_in_that_alone(name: str, data: Path) -> None:
    whole, quarter = preset(name, data), preset(f"{name}-mc", data)
    assert quarter.compute.mini_batch == "quarter"
    assert replace(quarter, name=name, compute=replace(quarter.compute, mini_batch="none")) == whole


def test_curriculum_of_the_undistorted_runs(data: Path) -> None:
    stages = preset("undistorted-32view", data).stages
    assert [stage.size for stage in stages] == [(256, 256), (512, 512), (544, 960)]
    assert [stage.fit for stage in stages] == ["exact", "exact", "stretch"]
    validation = preset("undistorted-32view", data).validation
    assert validation is not None
    assert isinstance(validation.sampler, Spread)
    assert (validation.sampler.hold_out_every, validation.size) == (8, (544, 960))


@pytest.mark.parametrize("name", sorted(set(PRESETS) - PROCEDURAL - MIXED))
def test_training_and_validation_read_different_data(name: str, data: Path) -> None:
    config = preset(name, data)
    assert config.validation is not None
    (source,), (other,) = config.stages[0].sources, config.validation.sources
    assert isinstance(source, Chunks | SceneList)
    assert isinstance(other, Chunks | SceneList)
    assert source.path.is_relative_to(data)
    assert source.path != other.path


@pytest.mark.parametrize("name", sorted(PROCEDURAL))
def test_validation_scenes_are_none_of_training(name: str) -> None:
    config = preset(name)
    assert config.validation is not None
    (other,) = config.validation.sources
    assert isinstance(other, Procedural)
    for stage in config.stages:
        for source in stage.sources:
            assert isinstance(source, Procedural)
            assert other.first_seed + 1_000_000 < source.first_seed


@pytest.mark.parametrize("name", sorted(MIXED))
def test_mixed_runs_leave_the_captures_that_validate_out(name: str, data: Path) -> None:
    config = preset(name, data)
    assert config.validation is not None
    procedural, held_out = config.validation.sources
    assert isinstance(procedural, Procedural)
    assert isinstance(held_out, Captures)
    assert len(held_out.only) == 5
    assert config.validation_scenes == 10
    for stage in config.stages:
        made, real = stage.sources
        assert isinstance(made, Procedural)
        assert isinstance(real, Captures)
        assert real.leave_out == held_out.only
        assert 0.25 <= real.weight / (real.weight + made.weight) <= 0.5
        assert procedural.first_seed + 1_000_000 < made.first_seed
        assert made.scenes.style == "photographic"
        assert len({*stage.shapes, stage.size}) == 3
    alike = preset(name.replace("mixed", "synthetic"))
    assert (config.model, config.feedback) == (alike.model, alike.feedback)


def test_unknown_presets_are_answered_with_a_list() -> None:
    with pytest.raises(ConfigError, match=r"no preset 're10k'") as caught:
        preset("re10k")
    assert all(name in str(caught.value) for name in PRESETS)


def test_data_must_be_there_where_it_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"re10k-2view-mc was given no data|re10k-2view was given no data"):
        preset("re10k-2view-mc")
    with pytest.raises(ConfigError, match="which is no folder"):
        preset("dl3dv-256", tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="makes its own scenes"):
        preset("smoke", tmp_path)


# --- JSON -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(PRESETS))
def test_configs_survive_a_file(name: str, data: Path, tmp_path: Path) -> None:
    config = made(name, data)
    to_json(config, tmp_path / "config.json")
    assert from_json(tmp_path / "config.json") == config
    assert from_dict(to_dict(config)) == config
    assert isinstance(from_json(tmp_path / "config.json").stages[0].size, tuple)


def test_fields_that_are_left_out_have_their_defaults() -> None:
    values = to_dict(preset("smoke"))
    del values["loss"], values["model"]["decoder"], values["optimiser"]["betas"]
    config = from_dict(values)
    assert config.model.decoder == ReleasedDecoder()
    assert config.optimiser.betas == (0.9, 0.95)
    assert config.loss == TrainConfig("x", config.model, config.stages, 1).loss


@pytest.mark.parametrize("text", ["{", "", "[1]", '"x"', "{}"])
def test_files_that_hold_no_config_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError):
        from_json(tmp_path / "config.json")


def test_missing_files_and_folders_that_are_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        from_json(tmp_path / "absent.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        to_json(preset("smoke"), tmp_path / "file" / "config.json")


# --- assignments ----------------------------------------------------------------------------------------------------


def test_fields_are_changed_by_assignments() -> None:
    config = override(
        preset("synthetic-small"),
        [
            "optimiser.peak=1",
            "stages.1.batch = 8",
            "loss.perceptual=vgg",
            "stages.0.size=[64, 96]",
            "model.matching=null",
            'model.image_channels=["rgb","moment"]',
            'stages.0.sampler={"kind":"bounded","inputs":3}',
            "stages.0.sources.0.scenes.fov=[50,60]",
            "initial_weights=ilrm-small",
            "compile=true",
            "loss.matching=0",
        ],
    )
    assert config.optimiser.peak == 1.0
    assert isinstance(config.optimiser.peak, float)
    assert [stage.batch for stage in config.stages] == [4, 8, 1]
    assert config.loss.perceptual == "vgg"
    assert config.stages[0].size == (64, 96)
    assert config.model.matching is None
    assert config.model.image_channels == ("rgb", "moment")
    assert config.stages[0].sampler == Bounded(inputs=3)
    source = config.stages[0].sources[0]
    assert isinstance(source, Procedural)
    assert source.scenes.fov == (50.0, 60.0)
    assert config.initial_weights == "ilrm-small"
    assert config.compile
    assert isinstance(config.model.decoder, FootprintDecoder)


def test_no_assignment_changes_nothing() -> None:
    assert override(preset("smoke"), []) == preset("smoke")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("optimiser.peek=1", r"optimiser has no field 'peek'.*peak, betas.*did you mean peak"),
        ("optimizer.peak=1", r"The config has no field 'optimizer'.*did you mean optimiser"),
        ("stages.1.batch=8", r"stages has no entry 1.*0 to 0"),
        ("stages.first.batch=8", r"stages has no entry first"),
        ("steps.x=1", r"steps = \d+ has no fields"),
        ("model.matching.planes=9", r"model.matching = null has no fields.*set model.matching itself"),
        ("steps", r"'steps' changes nothing.*path.to.field=value"),
        ("steps=many", r'steps = "many".*a whole number'),
        ("steps=1.5", r"steps = 1.5.*a whole number"),
        ("steps=true", r"steps = true.*a whole number"),
        ("compile=1", r"compile = 1.*true or false"),
        ("optimiser.peak=fast", r'optimiser.peak = "fast".*a number'),
        ("precision=fp16", r'precision = "fp16".*one of fp32, bf16'),
        ("loss.perceptual=alex", r'loss.perceptual = "alex".*lpips, vgg'),
        ("stages.0.size=64", r"stages.0.size = 64.*a list of 2"),
        ("stages.0.size=[64,64,3]", r"a list of 2"),
        ("stages.0.size=[64,null]", r"stages.0.size.1 = null.*a whole number"),
        ("stages.0.sampler.kind=bounded", r"stages.0.sampler has no field 'selection'"),
        ("stages.0.sampler=spread", r'stages.0.sampler = "spread".*kind of bounded, bounded_v2, spread'),
        ('stages.0.sources=[{"kind":"chunks"}]', r"stages.0.sources.0 is incomplete.*path"),
        ("name=7", r"name = 7.*a text"),
        ("loss=7", r"loss = 7.*an object with the fields mse"),
        ("steps=0", r"steps = 0"),
        ("stages.0.size=[60,60]", r"60x60.*multiples of 8"),
    ],
)
def test_assignments_that_cannot_be_are_explained(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        override(preset("smoke"), [assignment])


def test_values_are_plain_json(data: Path) -> None:
    text = json.dumps(to_dict(preset("dl3dv-256", data)))
    assert str(data / "train") in text
