"""A browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from ilrm.results import Result
from ilrm.view.controls import add_controls
from ilrm.view.live import Viewer
from ilrm.view.server import serve
from tests.view.watched import HEIGHT, WIDTH, Watched

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SWIFTSHADER = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
QUIET = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking"]


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


@pytest.fixture
def watched(browser: Browser) -> Iterator[Watched]:
    context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, accept_downloads=True)
    yield Watched(context)
    context.close()


@pytest.fixture
def viewer(capture: Result) -> Iterator[Viewer]:
    with serve() as server:
        viewer = Viewer(server, capture)
        add_controls(viewer)
        yield viewer
        viewer.close()
