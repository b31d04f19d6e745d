"""The CPU's kernels, compiled or loaded beside other work: the first rendering of a process waits seconds for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch

from ilrm.core.cameras import Cameras
from ilrm.core.gaussians import Gaussians


@contextmanager
def kernels_in_background(
    device: torch.device, *, gradients: bool = False, others: Callable[[], None] | None = None
) -> Iterator[Callable[[], None]]:
    """Get the kernels ready in a thread while inside; nothing on a GPU, which has others.

    A rendering in the meantime waits for what is under way. At the end, too, the thread is waited for: it stops at the
    next kernel.

    Args:
        gradients: whether those of the backward pass will be needed.
        others: gets kernels of other parts ready, after these.

    Yields:
        what waits until all of them are ready.
    """
    if device.type != "cpu":
        yield lambda: None
        return
    wanted, threads = threading.Event(), torch.get_num_threads()
    wanted.set()

    def work() -> None:
        torch.set_num_threads(threads)  # each thread of the process has its own number
        with suppress(Exception):  # who renders will see it
            _compile(device, wanted.is_set, gradients)
            if others is not None and wanted.is_set():
                others()

    thread = threading.Thread(target=work, name="ilrm-kernels")
    thread.start()
    try:
        yield thread.join
    finally:
        wanted.clear()
        thread.join()


def load_kernels(device: torch.device) -> None:
    """Get all kernels of a device ready, those of gradients too; what comes after it can be timed."""
    _compile(device, lambda: True, gradients=True)


def kernels_are_kept(device: torch.device, *, gradients: bool) -> bool:
    """Whether an earlier process has left the compiled kernels on disk; always True on a GPU."""
    if device.type != "cpu":
        return True
    from ilrm.render.compiling import is_kept
    from ilrm.render.numba_projection import unproject
    from ilrm.render.numba_tiles import composite

    return is_kept(unproject if gradients else composite)  # the last ones to be compiled


def _compile(device: torch.device, wanted: Callable[[], bool], gradients: bool) -> None:
    """Render one Gaussian, and its gradients, as long as that is wanted."""
    from ilrm.render import render  # loads numba

    ones = torch.ones(1, 3, device=device)
    one = ones[:, 0]
    gaussian = Gaussians(ones, 0.1 * ones, torch.ones(1, 4, device=device), 0.5 * one, torch.zeros_like(ones)[:, None])
    K = torch.tensor([[[16.0, 0, 8], [0, 16, 8], [0, 0, 1]]])
    camera = Cameras(torch.eye(4)[None], K, 16, 16)
    if wanted():
        render(gaussian, camera)
    if wanted() and gradients:
        leaf = gaussian.map(lambda x: x.requires_grad_())
        render(leaf, camera).rgb.sum().backward()
