"""Photos of a procedural scene whose cameras are known, and what ``ilrm.capture`` makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ilrm
from ilrm.datasets.procedural import ProceduralConfig, make_scene

VIEWS, WIDTH, HEIGHT = 8, 320, 240


@pytest.fixture(scope="session")
def posed() -> ilrm.Scene:
    config = ProceduralConfig(views=VIEWS, width=WIDTH, height=HEIGHT, style="photographic", baseline=(0.8, 0.9))
    return make_scene(3, config)


@pytest.fixture(scope="session")
def photos(posed: ilrm.Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for view in range(VIEWS):
        save(pixels(posed, view), folder / f"{view:02d}.jpg")
    return folder


@pytest.fixture(scope="session")
def captured(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> ilrm.Captured:
    return ilrm.capture(photos, tmp_path_factory.mktemp("captured") / "out")


def pixels(scene: ilrm.Scene, view: int) -> np.ndarray:
    return (scene.images[view] * 255).round().byte().numpy()


def save(image: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95)
