from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ilrm.render.compiling import _Cache
from ilrm.render.numba_harmonics import fill_basis

# Every place except the folder for temporary files is read-only, even for root.
CLOSED = """
import os, sys
import numpy as np
from numba.core import caching

def closed(self, path=None):
    if not self.get_cache_path().startswith(os.environ["TMPDIR"]):
        raise PermissionError(13, "Permission denied")
    os.makedirs(self.get_cache_path(), exist_ok=True)

for name, kind in vars(caching).items():
    if isinstance(kind, type) and "ensure_cache_path" in vars(kind):
        kind.ensure_cache_path = closed
from ilrm.render.numba_harmonics import fill_basis
basis = np.zeros(4)
fill_basis(0.0, 0.6, 0.8, basis)
print(basis.round(4).tolist(), sorted(fill_basis.stats.cache_hits.values()))
"""


def run(tmpdir: Path) -> tuple[str, str]:
    env = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    env |= {"HOME": "/nonexistent", "TMPDIR": str(tmpdir)}
    done = subprocess.run([sys.executable, "-c", CLOSED], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


@pytest.mark.skipif(os.name == "nt", reason="asks for users and permissions")
def test_kernels_without_a_home_are_kept_among_temporary_files(tmp_path: Path) -> None:
    first, told = run(tmp_path)
    assert first == "[0.2821, -0.2932, 0.3909, -0.0] []"
    (folder,) = tmp_path.iterdir()
    assert folder.name == f"ilrm-kernels-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert told.count("Warning: ") == 1
    assert f"Compiled kernels are kept in {folder}" in told
    assert run(tmp_path)[0] == "[0.2821, -0.2932, 0.3909, -0.0] [1]", "the second process finds what the first has kept"


@pytest.mark.skipif(os.name == "nt", reason="asks for users and permissions")
def test_kernels_are_not_taken_from_where_others_can_put_some(tmp_path: Path) -> None:
    folder = tmp_path / f"ilrm-kernels-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    result, told = run(tmp_path)
    assert result == "[0.2821, -0.2932, 0.3909, -0.0] []"
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
