"""SOG through PlayCanvas's program: a round trip in the same world, and a clear message if it is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ilrm.core.errors import GaussiansError
from ilrm.splats.sog import load_sog, save_sog
from tests.conftest import make_gaussians
from tests.splats.compare import differences, in_order_of

needs_program = pytest.mark.skipif(
    shutil.which("splat-transform") is None,
    reason="splat-transform is not installed (npm install -g @playcanvas/splat-transform)",
)


@needs_program
def test_there_and_back(tmp_path: Path) -> None:
    gaussians = make_gaussians(300)
    save_sog(gaussians, tmp_path / "a.sog")
    # Lossless WebP may change the colour of what is invisible.
    seen = gaussians.opacities > 1 / 255
    errors = differences(in_order_of(load_sog(tmp_path / "a.sog"), gaussians)[seen], gaussians[seen])
    assert errors["means"] < 0.005
    assert errors["opacities"] < 0.01
    assert errors["shape"] < 0.1
    assert errors["sh"] < 0.1


@needs_program
def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.sog").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(GaussiansError, match="could not read"):
        load_sog(tmp_path / "a.sog")


def test_not_even_a_zip_file(tmp_path: Path) -> None:
    (tmp_path / "a.sog").write_bytes(b"something")
    with pytest.raises(GaussiansError, match="not a zip file"):
        load_sog(tmp_path / "a.sog")


def test_without_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.sog").write_bytes(b"PK")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(GaussiansError, match="npm install"):
        load_sog(tmp_path / "a.sog")
    with pytest.raises(GaussiansError, match="npm install"):
        save_sog(make_gaussians(2), tmp_path / "b.sog")
    assert [p.name for p in tmp_path.iterdir()] == ["a.sog"]
