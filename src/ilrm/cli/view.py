"""``ilrm view``: looking at a result in the browser, or writing a page that shows it."""

from __future__ import annotations

import os
import sys
import time
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import tyro

from ilrm.cli.arguments import MaxPixels
from ilrm.cli.console import Console
from ilrm.core.checks import MAX_PIXELS, find_device
from ilrm.core.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from ilrm.results import Result


@dataclass(frozen=True)
class View:
    """Look at a reconstruction in the browser, until Ctrl-C.

    Needs no GPU. The address is printed; only this machine can open it unless --host says otherwise. With --html the
    scene is written as one file that opens with a double click, without a server or a network connection.
    """

    input: tyro.conf.Positional[Path]
    """Folder written by `ilrm reconstruct`, or a splat file."""
    photos: Path | None = None
    """Scene that the result was made from, for thumbnails and comparisons. Default: inputs/ beside the splat file."""
    max_pixels: MaxPixels = MAX_PIXELS
    iterations: bool = False
    """Run the network again, to show the states after each update layer. Needs the photos."""
    html: Path | None = None
    """Write a page to this file (.html) instead of running a server."""
    host: str = "127.0.0.1"
    """Address to listen on. With 0.0.0.0 everybody who can reach this machine has access, without a password."""
    port: int = 8080
    """Port to listen on; 0 uses any free one."""
    open: bool = True
    """Whether to open the browser."""
    device: str = "auto"
    """Where depth, normals and videos are rendered: auto, cpu, cuda or cuda:N."""
    overwrite: bool = False
    """Also replace a page of the same name that this program did not write."""
    antialiased: bool = False
    """Treat the splats as trained anti-aliased, for files that do not say so: opacity is compensated for the blur."""
    json: bool = False
    """Print one JSON object on stdout and nothing else."""

    def run(self, console: Console) -> dict[str, Any]:
        device = find_device(self.device)
        if self.html is None:
            self._serve(device, console)
        if self.iterations:
            raise ConfigError("--iterations and --html were both given.", fix="a page shows one state; leave one out")
        from ilrm.pipeline.pages import page_file

        report = page_file(
            self.input,
            self.html,
            photos=self.photos,
            max_pixels=self.max_pixels,
            overwrite=self.overwrite,
            antialiased=self.antialiased,
        )
        gaussians = f"{report['num_gaussians']:,}"
        console.show("", {"page": self.html, "MB": report["bytes"] / 1e6, "Gaussians": gaussians})
        return report

    def _serve(self, device: torch.device, console: Console) -> NoReturn:
        from ilrm.results import load_result
        from ilrm.view.page import warn_if_antialiased
        from ilrm.view.show import open_viewer

        result = load_result(self.input, self.antialiased or None, photos=self.photos, max_pixels=self.max_pixels)
        warn_if_antialiased(result.gaussians)
        layers = []
        if self.iterations:
            from ilrm.view.layers import update_layers

            with console.progress("running the network", None):
                layers = update_layers(result, device)
        try:
            with open_viewer(result, layers=layers, host=self.host, port=self.port, device=device) as address:
                self._announce(address, result, console)
                while True:
                    time.sleep(3600)
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt("the viewer has ended") from error

    def _announce(self, address: str, result: Result, console: Console) -> None:
        from ilrm.view.gate import is_private

        if not is_private(self.host):
            console.warn(
                f"--host {self.host} lets other machines in: everybody who can reach this machine on that port can see "
                "and download the scene and the photos, and use all controls. There is no password and no encryption."
            )
        console.show("", {"address": address, "Gaussians": f"{len(result.gaussians):,}"})
        console.say("Ctrl-C ends the viewer.")
        console.answer({"address": address, "num_gaussians": len(result.gaussians)})
        if self.open and _has_display():
            webbrowser.open(address)


def _has_display() -> bool:
    """Whether there is a screen for a browser; without one Python would start a text browser, which blocks."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
