"""Numba's compiler as our kernels use it. What it has compiled is kept on disk where there is a place for it.

Numba itself raises at import where neither the package's folder, nor the home folder, nor NUMBA_CACHE_DIR can be
written (containers, services, system packages), and at the first call where the disk is full.
"""

from __future__ import annotations

import os
import stat
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
from numba.core import config
from numba.core.caching import FunctionCache


def kernel(*, forceinline: bool = False, parallel: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """``numba.njit`` without the GIL and with numpy's rules for division, and with a cache if there can be one.

    Args:
        forceinline: put it into the code of its callers.
        parallel: share ``prange`` among numba's threads.
    """

    def compiled(function: Callable[..., Any]) -> Any:
        jit = numba.njit(nogil=True, error_model="numpy", forceinline=forceinline, parallel=parallel)
        dispatcher: Any = jit(function)
        if (cache := _cache(function)) is not None:
            dispatcher._cache = cache  # what enable_caching does, with a class of our own
        return dispatcher

    return compiled


def is_kept(dispatcher: Any) -> bool:
    """Whether a kernel was compiled before, perhaps by another process, and lies on disk."""
    cache = dispatcher._cache
    return isinstance(cache, _Cache) and cache.has_files()


class _Cache(FunctionCache):
    """A cache that is a help, not a need: what cannot be read is compiled, what cannot be written is not kept."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # files that another version, a full disk or a power cut has left
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception:  # numba reads the index again
            if not self._is_readable():
                with suppress(Exception):
                    Path(self._cache_file._index_path).unlink()
                    super().save_overload(sig, data)

    def _is_readable(self) -> bool:
        try:
            self._cache_file._load_index()
        except Exception:  # what it lists was left by another version, whose types may have gone
            return False
        return True

    def has_files(self) -> bool:
        return self._is_readable() and bool(self._cache_file._load_index())


def _cache(function: Callable[..., Any]) -> _Cache | None:
    """A cache where numba would have it, else in a folder of this user's for temporary files; None if nowhere."""
    try:
        return _Cache(function)
    except (RuntimeError, OSError, UnicodeError):  # no place; or the installation's path is no UTF-8
        pass
    if (folder := _temporary_folder()) is None:
        return None
    before = config.CACHE_DIR  # type: ignore[attr-defined]
    config.CACHE_DIR = folder  # type: ignore[attr-defined]
    try:
        return _Cache(function)
    except (RuntimeError, OSError, UnicodeError):
        return None
    finally:
        config.CACHE_DIR = before  # type: ignore[attr-defined]


@lru_cache(maxsize=1)  # and so the warning comes once
def _temporary_folder() -> str | None:
    """A folder that nobody else can write to: what lies in a cache is run."""
    with suppress(OSError):
        folder = Path(tempfile.gettempdir()) / f"ilrm-kernels-{os.getuid() if hasattr(os, 'getuid') else 'cache'}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = os.lstat(folder)
        ours = not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o022)
        if stat.S_ISDIR(found.st_mode) and ours and os.access(folder, os.W_OK):
            warnings.warn(f"Compiled kernels are kept in {folder}, since no home folder is writable", stacklevel=2)
            return str(folder)
    warnings.warn(
        "There is no folder for compiled kernels; every start compiles them again (NUMBA_CACHE_DIR names one)",
        stacklevel=2,
    )
    return None
