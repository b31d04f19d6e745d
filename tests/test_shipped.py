"""What comes with the package does what the README says: bundled weights on the bundled capture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ilrm import ILRM, load_ply
from ilrm.cli import main
from ilrm.weights import describe


def test_bundled_weights_are_small_and_complete() -> None:
    info = describe("ilrm-small")
    assert info.file_bytes <= 40_000_000
    assert info.parameters == ILRM(info.config).parameter_count()


@pytest.mark.slow
def test_demo_reaches_its_quality(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """25 dB on held-out views is the least; refinement has to add to the forward pass."""
    assert main(["demo", "-o", str(tmp_path / "demo"), "--refine", "60", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    metrics = json.loads((tmp_path / "demo" / "metrics.json").read_text())
    assert answer["psnr"] == metrics["psnr"]
    assert metrics["num_inputs"] == 8
    assert len(metrics["held_out_names"]) == 4
    assert metrics["psnr_before_refine"] > 25
    assert metrics["psnr"] > metrics["psnr_before_refine"] + 3
    assert metrics["ssim"] > 0.9
    assert len(load_ply(tmp_path / "demo" / "scene.ply")) == metrics["num_gaussians"]
