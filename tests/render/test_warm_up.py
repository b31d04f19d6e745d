"""Kernels that are compiled in the background: in time, on the CPU only, and no longer than they are wanted."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from ilrm.render import render
from ilrm.render.warm_up import kernels_are_kept, kernels_in_background, load_kernels
from tests.conftest import make_cameras, make_gaussians, wait_until

CPU = torch.device("cpu")


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Which thread rendered, and whether with gradients."""
    seen: list[tuple[str, bool]] = []
    module = import_module("ilrm.render")

    def spy(gaussians: Any, cameras: Any) -> Any:
        seen.append((threading.current_thread().name, gaussians.means.requires_grad))
        return render(gaussians, cameras)

    monkeypatch.setattr(module, "render", spy)
    return seen


def test_they_are_ready_afterwards(rendered: list[tuple[str, bool]]) -> None:
    with kernels_in_background(CPU, gradients=True):
        assert render(make_gaussians(5), make_cameras(1, 16, 16)).rgb.isfinite().all()
        wait_until(lambda: len(rendered) == 2)  # one after the other
    assert rendered == [("ilrm-kernels", False), ("ilrm-kernels", True)]
    assert "ilrm-kernels" not in {thread.name for thread in threading.enumerate()}


def test_it_is_waited_for_on_request(rendered: list[tuple[str, bool]]) -> None:
    with kernels_in_background(CPU, gradients=True) as ready:
        ready()
        assert rendered == [("ilrm-kernels", False), ("ilrm-kernels", True)]


def test_kernels_on_disk_are_known(tmp_path: Path) -> None:
    """Here they are, once they were needed; in a process with an empty folder they are not."""
    load_kernels(CPU)
    assert kernels_are_kept(CPU, gradients=True)
    assert kernels_are_kept(torch.device("cuda"), gradients=True)
    code = (
        "import torch; from ilrm.render.warm_up import kernels_are_kept as kept; cpu = torch.device('cpu'); "
        "print(kept(cpu, gradients=False), kept(cpu, gradients=True))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert found.stdout.split() == ["False", "False"], found.stderr


def test_a_gpu_needs_none(rendered: list[tuple[str, bool]]) -> None:
    with kernels_in_background(torch.device("cuda"), gradients=True):
        pass
    assert not rendered


def test_it_stops_when_nobody_waits_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, left, seen = threading.Event(), threading.Event(), []

    def slow(gaussians: Any, cameras: Any) -> Any:
        seen.append(gaussians)
        begun.set()
        left.wait(60)
        return render(gaussians, cameras)

    monkeypatch.setattr(import_module("ilrm.render"), "render", slow)
    with pytest.raises(KeyboardInterrupt), kernels_in_background(CPU, gradients=True):
        begun.wait(60)
        threading.Timer(0.2, left.set).start()
        raise KeyboardInterrupt
    assert len(seen) == 1


def test_what_fails_there_is_left_to_who_renders(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(import_module("ilrm.render"), "render", fails)
    with kernels_in_background(CPU):
        pass


def test_threads_of_the_caller_stay_as_many() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with kernels_in_background(CPU, gradients=True):
            pass
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
