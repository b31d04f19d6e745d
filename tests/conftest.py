"""Shared by the tests: the location of the reference data, and small deterministic cameras and Gaussians."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before torch is loaded: see ilrm/__init__.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Containers often forbid bytecode files. Every process that a test starts would then compile torch again, for seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# A shell without job control starts what runs in the background with Ctrl-C ignored, and so would run every program
# that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch

from ilrm.core.cameras import Cameras
from ilrm.core.gaussians import Gaussians
from ilrm.pipeline import options

if TYPE_CHECKING:
    from ilrm.results import Result

ROOT = Path(__file__).resolve().parents[1]
CAPTURE = ROOT / "src" / "ilrm" / "assets" / "capture"
SHARED = Path(os.environ.get("ILRM_SHARED", ROOT.parent / "shared"))
# For processes with a tiny file size limit. Python would replace bytecode by a truncated file, and every later process
# would fail to import that module.
NO_BYTECODE = {"PYTHONDONTWRITEBYTECODE": "1"}
# How long a test waits for something that must happen. It only ends hangs: an idle machine finishes long before, and
# a busy one may be ten times slower.
PATIENCE_S = 600.0


@pytest.fixture(scope="session", autouse=True)
def no_refinement() -> Iterator[None]:
    """Tests that do not ask for refinement do without its half a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(options.REFINE_SECONDS, "cpu", 0.0)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests first: of the last ones, all processes should have a share.

    See ``--no-loadscope-reorder`` in the Makefile; pytest-xdist alone would begin with the files that have most tests.
    """
    slow: Counter[Path] = Counter()
    for item in items:
        slow[item.path] += item.get_closest_marker("slow") is not None
    items.sort(key=lambda item: -slow[item.path])  # stable: the order in a file stays


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[Any] | None = None) -> None:
    """Wait for a condition. Fails at once if the process that should fulfil it has ended."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if process is not None and process.poll() is not None:
            assert condition(), process.stderr and process.stderr.read()
            return
        assert time.monotonic() < deadline, "the condition was never met"
        time.sleep(0.01)


def shared_path(relative: str) -> Path:
    """A file or folder of the reference data; the calling test is skipped if it is absent.

    The reference arrays of the network and its data preparation (``golden/``) travel with the tests.
    """
    path = Path(__file__).parent / relative
    if not path.exists():
        path = SHARED / relative
    if not path.exists():
        pytest.skip(f"reference data {relative} is not here (set ILRM_SHARED)")
    return path


def look_at(centre: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(4, 4) camera-to-world at ``centre`` looking at ``target`` with world -y up (OpenCV axes)."""
    forward = torch.nn.functional.normalize(target - centre, dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]).to(forward), forward), dim=0)
    c2w = torch.eye(4, dtype=centre.dtype)
    c2w[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward], dim=1)
    c2w[:3, 3] = centre
    return c2w


def make_cameras(views: int, width: int, height: int, seed: int = 0, distance: float = 4.0) -> Cameras:
    """Cameras around the origin, looking near it."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(views, 3, generator=g) * 0.6 + torch.tensor([0.0, 0.0, -distance])
    targets = torch.randn(views, 3, generator=g) * 0.2
    c2w = torch.stack([look_at(c, t) for c, t in zip(centres, targets, strict=True)])
    K = torch.tensor([[0.9 * width, 0, 0.5 * width + 0.7], [0, 0.95 * width, 0.5 * height - 0.4], [0, 0, 1]])
    return Cameras(c2w, K.repeat(views, 1, 1), width, height)


def make_gaussians(count: int, sh_degree: int = 0, seed: int = 0, scale: float = 0.1) -> Gaussians:
    """Random Gaussians around the origin."""
    g = torch.Generator().manual_seed(seed)
    return Gaussians(
        means=torch.randn(count, 3, generator=g),
        scales=scale * torch.exp(0.5 * torch.randn(count, 3, generator=g)),
        quats=torch.nn.functional.normalize(torch.randn(count, 4, generator=g), dim=-1),
        opacities=torch.rand(count, generator=g),
        sh=0.5 * torch.randn(count, (sh_degree + 1) ** 2, 3, generator=g),
    )


@pytest.fixture(scope="session")
def capture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `ilrm reconstruct` writes for three small photos."""
    out = tmp_path_factory.mktemp("view") / "capture"
    from ilrm.cli import main

    options = ["--views", "3", "--size", "96", "--device", "cpu", "--export"]
    assert main(["reconstruct", str(CAPTURE), "-o", str(out), *options]) == 0
    return out


@pytest.fixture(scope="session")
def capture(capture_folder: Path) -> Result:
    """The same, read."""
    from ilrm.results import load_result

    return load_result(capture_folder)
