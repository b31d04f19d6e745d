"""A page in Chromium that is watched, and what it should show."""

from __future__ import annotations

import io
import time
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ilrm.render import render
from ilrm.results import Result
from ilrm.view.splats import Pose, ViewLayout
from tests.conftest import PATIENCE_S

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, ConsoleMessage, Page

WIDTH, HEIGHT = 320, 240
LEAST_PSNR = 20.0
# Messages of viser 1.1.1 itself; no others are allowed.
TOLERATED = (
    "THREE.Clock: This module has been deprecated",
    # Chromium, where there is no GPU.
    "GPU stall due to ReadPixels",
    "Automatic fallback to software WebGL",
)
# Our and viser's panels and notices cover the picture.
BARE = "#ilrm-card, [class*=Notifications], [class*=Paper-root], [class*=dock] { visibility: hidden !important }"


class Watched:
    """A browser page with its console messages and requests."""

    def __init__(self, context: BrowserContext) -> None:
        self.page: Page = context.new_page()
        self.page.set_default_timeout(1000 * PATIENCE_S)
        self.said: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._listen)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def _listen(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.said.append(f"{message.text} {message.location['url']}")

    def complaints(self) -> list[str]:
        return [text for text in self.said if not any(known in text for known in TOLERATED)]

    def picture(self) -> np.ndarray:
        """(H, W, 3) in [0, 1], without panels."""
        style = self.page.add_style_tag(content=BARE)
        shot = self.page.screenshot()
        style.evaluate("element => element.remove()")
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")) / 255.0

    def at_rest(self) -> np.ndarray:
        """The picture once it shows something and no longer changes."""
        deadline, last, same = time.monotonic() + PATIENCE_S, self.picture(), 0
        while same < 3:
            assert time.monotonic() < deadline, "it never came to rest"
            drawn(self.page)
            now = self.picture()
            same = same + 1 if np.array_equal(now, last) and now.min() < 0.9 else 0
            last = now
        return last

    def psnr(self, expected: np.ndarray) -> float:
        """Of the picture once it no longer changes: the best value until the time is over."""
        deadline, best = time.monotonic() + PATIENCE_S, 0.0
        while best < LEAST_PSNR and time.monotonic() < deadline:
            best = max(best, -10 * np.log10(np.square(self.picture() - expected).mean()))
        return best


def rendered(result: Result, layout: ViewLayout, pose: Pose) -> np.ndarray:
    seen = render(result.gaussians, pose.camera(WIDTH, HEIGHT), near=layout.near)
    return seen.rgb[0].clamp(0, 1).numpy()


def drawn(page: Page) -> None:
    """Wait until a requested change is on the screen: two frames."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
