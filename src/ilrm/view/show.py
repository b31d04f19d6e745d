"""``open_viewer``: the live viewer of a result, with its server and controls."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from ilrm.core.gaussians import Gaussians
from ilrm.results.result import Result
from ilrm.view.controls import add_controls
from ilrm.view.live import Viewer
from ilrm.view.server import browser_address, serve


@contextlib.contextmanager
def open_viewer(
    result: Result,
    *,
    layers: Sequence[tuple[str, Gaussians]] = (),
    host: str = "127.0.0.1",
    port: int = 8080,
    device: torch.device | str = "cpu",
) -> Iterator[str]:
    """Run the live viewer during the body and yield its URL.

    Args:
        layers: earlier states to choose from, (name, Gaussians), see ``update_layers``.
        host, port: see ``serve``.
        device: where our own renderer computes.

    Raises:
        OutputError: the server cannot listen on the address.
        GaussiansError: Gaussians that cannot be shown.
    """
    with serve(host, port, label=result.title) as server:
        viewer = Viewer(server, result, layers, device)
        try:
            add_controls(viewer)
            viewer.refresh()
            yield browser_address(host, server.get_port())
        finally:
            viewer.close()
