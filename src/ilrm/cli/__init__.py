"""The command line ``ilrm``. There is one file per command; ``commands`` lists them.

This file imports only the standard library, so that Ctrl-C is handled quietly from the start.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

FAILED, USAGE, INTERRUPTED, TERMINATED, BROKEN_PIPE = 1, 2, 130, 143, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; those of the process by default.

    Returns:
        0 on success; 1 for an error that the user can fix (the message says how), or if the results were written but
        stdout could not be; 130 after Ctrl-C; 141 if nobody reads stdout. Arguments that cannot be parsed exit with 2.
        Bugs keep their traceback.
    """
    _open_standard_streams()
    try:
        if arguments is None:
            _read_names_as_utf8()
        from ilrm.cli.commands import run

        return run(sys.argv[1:] if arguments is None else list(arguments))
    except KeyboardInterrupt:
        with suppress(OSError, AttributeError):
            sys.stderr.write("ilrm: interrupted, nothing written\n")
        return INTERRUPTED


def _read_names_as_utf8() -> None:
    """Restart in Python's UTF-8 mode if the locale is ASCII, in which a file name like é.jpg could not be opened."""
    known = sys.getfilesystemencoding().lower().replace("-", "") == "utf8" or os.environ.get("PYTHONUTF8") == "1"
    if os.name == "posix" and sys.executable and not known:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _open_standard_streams() -> None:
    """Open closed standard streams. Otherwise the next file to be opened would receive the messages of libraries."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # os.open takes the lowest free descriptor, which is this one. stdout is opened read-only, so that writing
            # results fails and is reported; messages to stderr are silently lost.
            os.open(os.devnull, os.O_WRONLY if number == 2 else os.O_RDONLY)
            if number > 0:
                stream = os.fdopen(number, "w", encoding="utf-8", closefd=False)
                setattr(sys, ("stdin", "stdout", "stderr")[number], stream)
