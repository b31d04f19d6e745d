"""What pycolmap does to signals, undone."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread


@contextmanager
def sigterm_kept() -> Iterator[None]:
    """Keep the handler of SIGTERM over an import of pycolmap.

    Its logging library installs one of its own that prints a stack trace and ends the process on the spot, so that
    temporary files stay.
    """
    before = signal.getsignal(signal.SIGTERM)
    yield
    if before is not None and current_thread() is main_thread():
        signal.signal(signal.SIGTERM, before)
