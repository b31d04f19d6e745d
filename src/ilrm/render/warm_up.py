"""The CPU's kernels, compiled or loaded beside other work: the first rendering of a process waits seconds for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch

from ilrm.core.cameras import Cameras
from ilrm.core.gaussians import Gaussians


@contextmanager
def kernels_in_background(device: torch.device, *, gradients: bool = False) -> Iterator[None]:
    """Get the kernels ready in a thread while inside; nothing on a GPU, which has others.

    A rendering in the meantime waits for what is under way. At the end, too, the thread is waited for: it stops at the
    next kernel.

    Args:
        gradients: whether those of the backward pass will be needed.
    """
    if device.type != "cpu":
        yield
        return
    wanted, threads = threading.Event(), torch.get_num_threads()
    wanted.set()

    def work() -> None:
        torch.set_num_threads(threads)  # each thread of the process has its own number
        with suppress(Exception):  # who renders will see it
            _compile(wanted.is_set, gradients)

    thread = threading.Thread(target=work, name="ilrm-kernels")
    thread.start()
    try:
        yield
    finally:
        wanted.clear()
        thread.join()


def _compile(wanted: Callable[[], bool], gradients: bool) -> None:
    """Render one Gaussian, and its gradients, as long as that is wanted."""
    from ilrm.render import render  # loads numba

    ones = torch.ones(1, 3)
    gaussian = Gaussians(ones, 0.1 * ones, torch.ones(1, 4), torch.full((1,), 0.5), torch.zeros(1, 1, 3))
    K = torch.tensor([[[16.0, 0, 8], [0, 16, 8], [0, 0, 1]]])
    camera = Cameras(torch.eye(4)[None], K, 16, 16)
    if wanted():
        render(gaussian, camera)
    if wanted() and gradients:
        leaf = gaussian.map(lambda x: x.requires_grad_())
        render(leaf, camera).rgb.sum().backward()
