"""The bundled weights on the bundled capture reach what the README says."""

from __future__ import annotations

import json
from functools import partial
from importlib import resources
from pathlib import Path

import pytest
import torch

from ilrm import ILRM, load_ply, load_scene, render
from ilrm.cli import main
from ilrm.cli import reconstruct as demo
from ilrm.evaluate import psnr
from ilrm.model.reconstruct import reconstruct
from ilrm.model.weights import describe

CAPTURE = Path(str(resources.files("ilrm"))) / "assets" / "capture"


def test_bundled_weights_are_small_and_complete() -> None:
    info = describe("ilrm-small")
    assert info.file_bytes <= 40_000_000
    assert info.parameters == ILRM(info.config).parameter_count()


@pytest.mark.slow
@pytest.mark.parametrize("size", [128, pytest.param(256, marks=pytest.mark.full)])
def test_demo_reaches_its_quality(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At least 33 dB on held-out views, with feedback and without refinement. The photos have 256 pixels a side."""
    monkeypatch.setattr(demo, "run_and_show", partial(demo.run_and_show, size=size))
    assert main(["demo", "-o", str(tmp_path / "demo"), "--refine", "0", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    metrics = json.loads((tmp_path / "demo" / "metrics.json").read_text())
    assert answer["psnr"] == metrics["psnr"]
    assert metrics["num_inputs"] == 8
    assert (metrics["width"], metrics["height"]) == (size, size)
    assert metrics["held_out_names"] == ["view_002.jpg", "view_004.jpg", "view_007.jpg", "view_009.jpg"]
    assert (tmp_path / "demo" / "renders" / "view_004_vs_truth.png").is_file()
    assert metrics["feedback"] == 3
    assert metrics["psnr"] > 33
    assert metrics["ssim"] > 0.9
    assert len(load_ply(tmp_path / "demo" / "scene.ply")) == metrics["num_gaussians"]


@pytest.mark.slow
@torch.no_grad()
def test_a_closer_look_finds_no_holes() -> None:
    """A rendering with four times the pixels along each side, averaged down, loses little.

    Gaussians smaller than a pixel look right at photo size, where renderers widen them, and leave gaps from nearby.
    """
    scene = load_scene(CAPTURE, max_side=128)
    inputs, held_out = (scene.select(range(*ends)).loaded() for ends in ((0, len(scene), 2), (1, len(scene), 4)))
    cameras = held_out.cameras
    closer = cameras.resize(4 * cameras.width, 4 * cameras.height)
    for iterations, least, most_lost in ((0, 26, 2), (3, 29, 4)):
        gaussians = reconstruct(inputs, ILRM.from_pretrained("ilrm-small"), feedback=iterations)
        averaged = render(gaussians, closer).rgb.unflatten(2, (-1, 4)).unflatten(1, (-1, 4)).mean((2, 4))
        found = psnr(averaged.clamp(0, 1), held_out.images).mean()
        own = psnr(render(gaussians, cameras).rgb.clamp(0, 1), held_out.images).mean()
        assert found > max(least, own - most_lost)
