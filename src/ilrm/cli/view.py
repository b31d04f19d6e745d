"""``ilrm view``: look at a result in the browser, or write a page that shows it."""

from __future__ import annotations

import os
import sys
import time
import webbrowser
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import tyro

from ilrm.cli.arguments import MaxPixels, read_with, warn_of_browsers
from ilrm.cli.console import Console
from ilrm.core.checks import check_suffix, find_device
from ilrm.core.errors import ConfigError, SceneError
from ilrm.files import claim_file, note_written
from ilrm.files.image_files import MAX_PIXELS

if TYPE_CHECKING:
    import torch

    from ilrm.core.gaussians import Gaussians
    from ilrm.results import Result


@dataclass(frozen=True)
class View:
    """Look at a reconstruction in the browser, until Ctrl-C.

    Needs no GPU. The address is printed; only this machine can open it unless --host says otherwise. With --html the
    scene is written as one file that opens by double click, without a server or a connection.
    """

    input: tyro.conf.Positional[Path]
    """Folder that `ilrm reconstruct` has written, or a splat file."""
    photos: Path | None = None
    """Scene that the result was made from, for thumbnails and comparisons. Default: inputs/ beside the splat file."""
    max_pixels: MaxPixels = MAX_PIXELS
    iterations: bool = False
    """Run the network again, to choose between the states after each update layer. Needs the photos."""
    html: Path | None = None
    """Write a page to this file (.html) instead of running a server."""
    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 lets other machines in: whoever reaches this one may look, without a password."""
    port: int = 8080
    """Port to listen on; 0 takes any free one."""
    open: bool = True
    """Open the browser."""
    device: str = "auto"
    """Where depth, normals and videos are rendered: auto, cpu, cuda or cuda:N."""
    overwrite: bool = False
    """Replace a page of the same name that this program did not write, too."""
    antialiased: bool = False
    """The splats were trained anti-aliased, which their file does not say: opacity is compensated for the blur."""
    json: bool = False
    """Print one JSON object on stdout and nothing else."""

    def run(self, console: Console) -> dict[str, Any]:
        if self.html is not None:
            check_suffix(self.html, ".html")
            if self.iterations:
                raise ConfigError(
                    "--iterations and --html were both given.", fix="a page shows one state; leave one out"
                )
        device = find_device(self.device)
        result = self._load()
        if self.html is not None:
            reads = [result.path, *read_with(result.path, self.photos)]
            claim_file(self.html, reads=reads, overwrite=self.overwrite)
            return self._write_page(result, self.html, console)
        layers = _layers(result, device, console) if self.iterations else []
        self._serve(result, layers, device, console)

    def _load(self) -> Result:
        from ilrm.results import load_result
        from ilrm.results.result import photos_of

        result = load_result(self.input, self.antialiased or None)
        warn_of_browsers(result.gaussians)
        if self.photos is None:
            return result
        if result.cameras is None:
            raise SceneError(
                f"There is no cameras.json beside {result.path} to say which photos were inputs.",
                fix="leave --photos out, or give the folder that `ilrm reconstruct` has written",
            )
        return replace(result, photos=photos_of(self.photos, result.names, result.cameras, self.max_pixels))

    def _write_page(self, result: Result, path: Path, console: Console) -> dict[str, Any]:
        from ilrm.view import save_page

        save_page(result.gaussians, path, result.cameras, result.photos or None, result.title, result.numbers)
        note_written(path)
        size = path.stat().st_size
        console.show("", {"page": path, "MB": size / 1e6, "Gaussians": f"{len(result.gaussians):,}"})
        offset = result.gaussians.origin.tolist()
        return {"output": str(path), "bytes": size, "num_gaussians": len(result.gaussians), "world_offset": offset}

    def _serve(
        self, result: Result, layers: list[tuple[str, Gaussians]], device: torch.device, console: Console
    ) -> NoReturn:
        from ilrm.view.controls import add_controls
        from ilrm.view.live import Viewer
        from ilrm.view.server import serve

        try:
            with serve(self.host, self.port, label=result.title) as server:
                viewer = Viewer(server, result, layers, device)
                try:
                    add_controls(viewer)
                    viewer.refresh()
                    self._announce(f"http://{_reachable(self.host)}:{server.get_port()}", result, console)
                    while True:
                        time.sleep(3600)
                finally:
                    viewer.close()
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt("the viewer has ended") from error

    def _announce(self, address: str, result: Result, console: Console) -> None:
        from ilrm.view.gate import is_private

        if not is_private(self.host):
            console.warn(
                f"--host {self.host} lets other machines in: whoever can reach this one on that port sees the scene "
                "and the photos, may download them and press every button. There is no password and no encryption."
            )
        console.show("", {"address": address, "Gaussians": f"{len(result.gaussians):,}"})
        console.say("Ctrl-C ends the viewer.")
        console.answer({"address": address, "num_gaussians": len(result.gaussians)})
        if self.open and _has_display():
            webbrowser.open(address)


def _layers(result: Result, device: torch.device, console: Console) -> list[tuple[str, Gaussians]]:
    """The states after each update layer, from the photos and weights that the result names."""
    from ilrm.view.layers import update_layers

    with console.progress("running the network", None):
        return update_layers(result, device)


def _reachable(host: str) -> str:
    """The host for a link: a server that listens everywhere is reached on this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def _has_display() -> bool:
    """Whether a browser would have a screen: without one Python starts a browser for terminals, which blocks."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
