"""A small scene on disk and a small random network, so that whole commands run in a second or two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ilrm.cli import main
from ilrm.datasets.procedural import ProceduralConfig, make_scene
from ilrm.model.config import FootprintDecoder, ILRMConfig
from ilrm.model.ilrm import ILRM
from ilrm.model.weights import save_weights
from ilrm.scenes import save_scene


@pytest.fixture(scope="session")
def scene_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six views of 64x48 as transforms.json with images/."""
    folder = tmp_path_factory.mktemp("scene") / "capture"
    save_scene(make_scene(3, ProceduralConfig(views=6, width=64, height=48)), folder)
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random network of the smallest kind, in a folder."""
    torch.manual_seed(0)
    config = ILRMConfig(width=32, head_width=16, layers=1, uplift=1, decoder=FootprintDecoder())
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    save_weights(ILRM(config), folder)
    return folder


@pytest.fixture(scope="session")
def result(scene_folder: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder written by a reconstruction with refinement."""
    out = tmp_path_factory.mktemp("result") / "out"
    options = ["--weights", str(weights), "--views", "3", "--holdout", "3", "--refine", "4", "--device", "cpu"]
    assert main(["reconstruct", str(scene_folder), "-o", str(out), *options]) == 0
    return out


def visible(folder: Path) -> set[str]:
    """The names of the visible files in a folder."""
    return {p.name for p in folder.iterdir() if not p.name.startswith(".")}


def tree(folder: Path) -> dict[str, bytes]:
    """All files below a folder, including hidden ones, with their content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
