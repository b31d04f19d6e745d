"""Restores the signal handler that importing pycolmap replaces."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread


@contextmanager
def sigterm_kept() -> Iterator[None]:
    """Keep the handler of SIGTERM during an import of pycolmap.

    Its logging library installs a handler that prints a stack trace and ends the process at once, which would leave
    temporary files behind.
    """
    before = signal.getsignal(signal.SIGTERM)
    yield
    if before is not None and current_thread() is main_thread():
        signal.signal(signal.SIGTERM, before)
