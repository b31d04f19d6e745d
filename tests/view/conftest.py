"""A small reconstruction of the bundled capture, with its photos, and a browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ilrm.cli import main
from ilrm.view import Result, load_result

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CAPTURE = Path(str(resources.files("ilrm"))) / "assets" / "capture"
SWIFTSHADER = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
QUIET = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking"]


@pytest.fixture(scope="session")
def capture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `ilrm reconstruct` writes for three small photos."""
    out = tmp_path_factory.mktemp("view") / "capture"
    options = ["--views", "3", "--size", "96", "--device", "cpu", "--export"]
    assert main(["reconstruct", str(CAPTURE), "-o", str(out), *options]) == 0
    return out


@pytest.fixture(scope="session")
def capture(capture_folder: Path) -> Result:
    """The same, read."""
    return load_result(capture_folder)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium without a screen or a GPU."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install 'ilrm[dev]')"
    )
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("ILRM_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("there is no Chromium (set ILRM_CHROMIUM to its path)")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, headless=True, args=[*SWIFTSHADER, *QUIET])
        yield chromium
        chromium.close()
