from __future__ import annotations

import math
import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core import config

from ilrm.render import compiling
from ilrm.render.compiling import _Cache
from ilrm.render.numba_harmonics import fill_basis

# Every place except the folder for temporary files is read-only, even for root.
CLOSED = """
import importlib.util, os, sys
from numba.core import caching

def closed(self, path=None):
    if not self.get_cache_path().startswith(os.environ["TMPDIR"]):
        raise PermissionError(13, "Permission denied")
    os.makedirs(self.get_cache_path(), exist_ok=True)

for name, kind in vars(caching).items():
    if isinstance(kind, type) and "ensure_cache_path" in vars(kind):
        kind.ensure_cache_path = closed
# The file by itself: the package would import torch, for seconds.
spec = importlib.util.spec_from_file_location("compiling", sys.argv[1])
compiling = sys.modules["compiling"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compiling)
from doubling import double
print(double(1.5), sorted(double.stats.cache_hits.values()))
"""
KERNEL = """
from compiling import kernel

@kernel()
def double(x):
    return 2 * x
"""


@pytest.fixture
def tmpdir(tmp_path: Path) -> Path:
    """The folder for temporary files of processes that have a kernel beside it."""
    (tmp_path / "doubling.py").write_text(KERNEL)
    (folder := tmp_path / "tmp").mkdir()
    return folder


def run(tmpdir: Path) -> tuple[str, str]:
    env = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    env |= {"HOME": "/nonexistent", "TMPDIR": str(tmpdir), "PYTHONPATH": str(tmpdir.parent)}
    command = [sys.executable, "-c", CLOSED, compiling.__file__]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


@pytest.mark.skipif(os.name == "nt", reason="asks for users and permissions")
def test_kernels_without_a_home_are_kept_among_temporary_files(tmpdir: Path) -> None:
    first, told = run(tmpdir)
    assert first == "3.0 []"
    (folder,) = tmpdir.iterdir()
    assert folder.name == f"ilrm-kernels-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert told.count("Warning: ") == 1
    assert f"Compiled kernels are kept in {folder}" in told
    assert run(tmpdir)[0] == "3.0 [1]", "the second process finds what the first has kept"


@pytest.mark.skipif(os.name == "nt", reason="asks for users and permissions")
def test_kernels_are_not_taken_from_where_others_can_put_some(tmpdir: Path) -> None:
    folder = tmpdir / f"ilrm-kernels-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    result, told = run(tmpdir)
    assert result == "3.0 []"
    assert list(folder.iterdir()) == []
    assert told.count("Warning: ") == 1
    assert "every start compiles them again" in told


def test_a_damaged_or_full_cache_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    cache = _Cache(fill_basis.py_func)
    monkeypatch.setattr(cache, "_load_overload", fail)
    monkeypatch.setattr(cache, "_save_overload", fail)
    monkeypatch.setattr(fill_basis, "_cache", cache)
    basis = np.zeros(1)
    fill_basis(np.float32(0), np.float32(0), np.float32(1), basis)  # types that no other call uses
    np.testing.assert_allclose(basis, [0.28209479])


def test_an_index_of_another_version_is_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Kernels had signatures with types of our own; after an upgrade these may have gone, and numba gave up."""
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    kernel = compiling.kernel()(fill_basis.py_func)
    cache = kernel._cache
    index = Path(cache._cache_file._index_path)
    index.parent.mkdir(parents=True, exist_ok=True)
    index.write_bytes(pickle.dumps(numba.__version__) + b"cilrm.render.simd\n_Gone\n.")
    basis = np.zeros(1)
    kernel(0.0, 0.0, 1.0, basis)
    assert basis[0] == pytest.approx(0.5 / math.sqrt(math.pi))
    assert compiling.is_kept(kernel), "and the next process finds it"
