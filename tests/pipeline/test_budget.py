"""Budgets: how they are written, what they cost, and what a run then does."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numba
import pytest
import torch

from ilrm.cli import main
from ilrm.core.cameras import Cameras
from ilrm.core.errors import ConfigError, IlrmWarning
from ilrm.core.scene import Scene
from ilrm.model import ILRM, ILRMConfig
from ilrm.model.reconstruct import reconstruct
from ilrm.pipeline.forward.budget import Budget, Effort
from ilrm.pipeline.forward.cost import Work, expected_cost, gaussians_of_view, measure_slowness
from ilrm.pipeline.forward.plan import make_plan
from ilrm.pipeline.options import REFINE_SECONDS, RunOptions
from ilrm.pipeline.run import run
from ilrm.scenes import load_scene
from tests.conftest import CAPTURE, make_cameras

WORK = Work(groups=(8,), inputs=8, held_out=2, width=256, height=192, feedback=3)
SMALL: dict[str, Any] = {"size": 64, "export": (), "device": "cpu"}


@pytest.mark.parametrize(
    ("text", "value"),
    [("200k", 200_000), ("1.5M", 1_500_000), ("200000", 200_000), (" 2e5 ", 200_000), (7, 7), (2.5e3, 2500)],
)
def test_gaussians_are_numbers_or_text(text: Any, value: int) -> None:
    assert Budget.parse(gaussians=text).gaussians == value


def test_memory_and_seconds_have_units() -> None:
    texts = ["4GB", "4 gb", "4000MB", "4e9", "4GiB", 4e9]
    assert [Budget.parse(memory=text).memory for text in texts] == [4e9, 4e9, 4e9, 4e9, 4 * 2**30, 4e9]
    texts = ["120", "120s", "2min", "2 min", 120, "0.5h"]
    assert [Budget.parse(seconds=text).seconds for text in texts] == [120, 120, 120, 120, 120, 1800]
    assert Budget.parse().unlimited
    assert not Budget.parse(seconds=1).unlimited


@pytest.mark.parametrize(
    "text", ["0", 0, -1, "many", "", "k", "1..5k", "4GB", "nan", math.nan, math.inf, "1e400", True]
)
def test_impossible_numbers_of_gaussians_are_refused(text: Any) -> None:
    with pytest.raises(ConfigError, match=r"--gaussians .* was given[\s\S]*200k"):
        Budget.parse(gaussians=text)


@pytest.mark.parametrize(
    ("given", "effort"),
    [
        (None, Effort()),
        (300, Effort(steps=300)),
        ("300", Effort(steps=300)),
        (0, Effort(steps=0)),
        ("30s", Effort(seconds=30.0)),
        ("1.5 min", Effort(seconds=90.0)),
    ],
)
def test_refinement_is_steps_or_time(given: Any, effort: Effort) -> None:
    assert Effort.parse(given) == effort


@pytest.mark.parametrize("given", [-1, "-1", "1.5", "many", "30 apples", "0s", True, float("nan"), "1e12"])
def test_other_refinement_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"--refine .* was given[\s\S]*30s"):
        Effort.parse(given)


def test_time_that_is_left_goes_into_refinement(small: ILRM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REFINE_SECONDS, "cpu", 30.0)
    cameras = make_cameras(24, 256, 256)
    scene = Scene(torch.zeros(1, 1, 1, 1).expand(24, 256, 256, 3), cameras, tuple(map(str, range(24))))
    usual, without = plan(scene, small), plan(scene, small, refine=0)
    assert usual.effort == Effort(seconds=30.0)
    assert "(30 s of refinement)" in usual.describe()
    assert without.effort.none
    assert "refinement" not in without.describe()
    # The forward pass is scored, too.
    assert without.cost.seconds + 30 < usual.cost.seconds < without.cost.seconds + 30 + usual.cost.after
    short = plan(scene, small, seconds=40)
    assert short.effort.seconds >= 20
    assert short.cost.seconds == pytest.approx(40)
    assert len(short.split.inputs) < len(usual.split.inputs)
    fixed = plan(scene, small, seconds=40, refine=100)
    assert fixed.effort == Effort(steps=100)
    assert fixed.cost.seconds <= 40


@pytest.mark.parametrize(
    "options",
    [{"memory": x} for x in ("4", "0GB", "4 apples", "4M", "-4GB", 1000)]
    + [{"seconds": x} for x in ("0", "soon", "5k", "-3", "1e400")],
)
def test_impossible_memory_and_time_are_refused_before_the_work(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="was given"):
        run(CAPTURE, **options, **SMALL)


def test_the_command_refuses_them_too(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    assert main(["reconstruct", str(CAPTURE), "-o", str(tmp_path / "out"), "--gaussians", "0"]) == 1
    assert "--gaussians 0 was given" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_limit_on_gaussians_decides_on_the_photos() -> None:
    each = 32 * 32
    assert gaussians_of_view(ILRMConfig(), 64, 64) == each
    result = run(CAPTURE, gaussians="5k", **SMALL)
    assert result.metrics["num_inputs"] == 4
    assert result.metrics["num_gaussians"] == result.metrics["expected"]["gaussians"] == 4 * each
    assert result.metrics["budget"] == {"gaussians": 5000, "memory_gb": None, "seconds": None}
    with pytest.raises(ConfigError, match=r"a photo of 64x64 makes 1024[\s\S]*2048 or more"):
        run(CAPTURE, gaussians=2047, **SMALL)


@pytest.fixture(scope="module")
def small() -> ILRM:
    return ILRM.from_pretrained("ilrm-small")


def plan(scene: Scene, model: ILRM, **options: Any) -> Any:
    return make_plan(scene, RunOptions(CAPTURE, device="cpu", **options), model, 3, 1.0)


def test_memory_and_time_decide_on_the_photos_as_well(small: ILRM) -> None:
    cameras = make_cameras(64, 256, 256)
    scene = Scene(torch.zeros(1, 1, 1, 1).expand(64, 256, 256, 3), cameras, tuple(map(str, range(64))))
    free = plan(scene, small, holdout=8)
    assert len(free.split.inputs) == 16
    assert len(free.groups) == 1
    wide, narrow = plan(scene, small, memory="60GB", holdout=8), plan(scene, small, memory=0.6 * free.cost.memory)
    assert len(wide.split.inputs) == 32  # one group: nothing says that it leaves anything out
    assert len(wide.groups) == 1
    assert narrow.cost.memory <= 0.6 * free.cost.memory
    assert max(map(len, narrow.groups)) < 16
    short = plan(scene, small, seconds=0.25 * free.cost.seconds, holdout=8)
    assert 2 <= len(short.split.inputs) < 8
    assert short.cost.seconds < 0.3 * free.cost.seconds
    with pytest.raises(ConfigError, match=r"--memory 0\.01GB was given, but two photos of 256x256 need"):
        plan(scene, small, memory="10MB")
    with pytest.warns(IlrmWarning, match="more than --seconds allows"):
        assert len(plan(scene, small, seconds=0.001).split.inputs) == 2
    with pytest.warns(IlrmWarning, match="32768 Gaussians are more than --gaussians allows"):
        assert len(plan(scene, small, views=2, gaussians=20_000).split.inputs) == 2


def test_groups_are_for_what_one_group_cannot_cover(small: ILRM) -> None:
    """A long walk along a wall, and as many photos of one place."""
    c2w = torch.eye(4).repeat(48, 1, 1)
    c2w[:, 0, 3] = 1.0 * torch.arange(48)
    K = torch.tensor([[128.0, 0, 64], [0, 128, 64], [0, 0, 1]]).repeat(48, 1, 1)
    g = torch.Generator().manual_seed(0)
    wall = torch.rand(8000, 3, generator=g) * torch.tensor([50.0, 3.0, 0.2]) + torch.tensor([-1.5, -1.5, 3.0])
    names, images = tuple(map(str, range(48))), torch.zeros(1, 1, 1, 1).expand(48, 128, 128, 3)
    walk = Scene(images, Cameras(c2w, K, 128, 128), names, points=wall)
    near = c2w.clone()
    near[:, 0, 3] *= 0.04
    place = Scene(images, Cameras(near, K, 128, 128), names, points=wall[wall[:, 0] < 3])
    along, around = (plan(scene, small, holdout=8, memory="4GB") for scene in (walk, place))
    assert len(around.split.inputs) == 32
    assert len(around.groups) == 1
    assert len(along.split.inputs) == 32
    along, around = (plan(replace_size(scene), small, holdout=8) for scene in (walk, place))
    assert len(around.split.inputs) == 4
    assert len(along.split.inputs) == 42
    assert max(map(len, along.groups)) == 8
    assert "42 photos in 7 groups" in along.describe()


def replace_size(scene: Scene) -> Scene:
    """The same cameras with photos of 512x512, of which four are usual and eight are a group."""
    return replace(
        scene, images=torch.zeros(1, 1, 1, 1).expand(48, 512, 512, 3), cameras=scene.cameras.resize(512, 512)
    )


def test_more_work_costs_more(small: ILRM) -> None:
    def seconds(**changes: Any) -> float:
        found = expected_cost(replace(WORK, **changes), small.config, 1.0, 0.0).seconds
        assert found is not None
        return found

    base = seconds()
    for more in (
        {"groups": (9,), "inputs": 9},
        {"width": 512},
        {"feedback": 4},
        {"refine": Effort(steps=50)},
        {"held_out": 3},
        {"frames": 90},
        {"decode": 0.1},
        {"groups": (8, 8), "inputs": 12},
    ):
        assert seconds(**more) > base
    none, some, more = (seconds(refine=Effort(steps=steps)) for steps in (0, 300, 600))
    assert more == pytest.approx(2 * some - none, rel=0.1)
    assert seconds(refine=Effort(seconds=100.0)) > base + 100
    assert expected_cost(WORK, small.config, None, 0.0).seconds is None
    first = expected_cost(replace(WORK, compile=True), small.config, 1.0, 0.0)
    assert first.seconds == pytest.approx(base + first.compile)
    refined = expected_cost(replace(WORK, compile=True, refine=Effort(steps=1)), small.config, 1.0, 0.0)
    assert refined.compile > first.compile > 10
    slow = expected_cost(WORK, small.config, 3.0, 1e9)
    assert slow.seconds == pytest.approx(3 * base)
    refined, with_others = (
        expected_cost(replace(WORK, refine=Effort(steps=9), fitted=fitted), small.config, 1.0, 0.0).memory
        for fitted in (8, 20)
    )
    assert with_others - refined == pytest.approx(12 * 15 * 256 * 192)
    assert slow.memory == pytest.approx(1e9 + expected_cost(WORK, small.config, 1.0, 0.0).memory)


def test_the_machine_is_measured_before_kernels_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compilation on the same cores made a first run seem to take several times as long as it did."""
    compiling = []

    def measured() -> float:
        compiling.append([thread.name for thread in threading.enumerate() if thread.name == "ilrm-kernels"])
        return 1000.0

    monkeypatch.setattr("ilrm.pipeline.run.measure_slowness", measured)
    result = run(CAPTURE, views=2, **SMALL)
    assert compiling == [[]]
    assert result.metrics["expected"]["seconds"] > 100, "the measurement is what is expected"


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    yield
    torch.set_num_threads(before[0])
    numba.set_num_threads(before[1])


@pytest.mark.parametrize(("views", "size", "feedback"), [(2, 64, 3), (6, 64, 0)])
def test_time_is_as_expected(views: int, size: int, feedback: int, small: ILRM, one_thread: None) -> None:
    """Within a factor of 2.5, of the time that the process itself computes: others may be busy, too."""
    scene = load_scene(CAPTURE, max_side=size).select(range(views)).loaded()
    reconstruct(scene.select([0, 1]), small, feedback=1)  # kernels are compiled now
    work = Work(groups=(views,), inputs=views, held_out=0, width=size, height=size, feedback=feedback)
    ratios = []
    for _ in range(3):
        cost = expected_cost(work, small.config, measure_slowness(time.process_time), 0.0)
        start = time.process_time()
        reconstruct(scene, small, feedback=feedback)
        assert cost.seconds is not None
        ratios.append((time.process_time() - start) / cost.seconds)
        if 0.4 < ratios[-1] < 2.5:
            return
    pytest.fail(f"took {ratios} times as long as expected")
