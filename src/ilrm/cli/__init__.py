"""The command line ``ilrm``. One file a command; ``commands`` lists them.

What stands here needs nothing but Python, so that Ctrl-C is quiet from the first moment on.
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
        0 if everything that was asked for exists; 1 if the user can mend what went wrong (the message says how), and
        where the results exist but could not be told on stdout; 130 after Ctrl-C; 141 when nobody reads the output.
        Arguments that cannot be parsed exit with 2, and our own mistakes keep their traceback.
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
    """Start again in Python's UTF-8 mode where the locale knows ASCII only: it can name no file with an é in JSON."""
    known = sys.getfilesystemencoding().lower().replace("-", "") == "utf8" or os.environ.get("PYTHONUTF8") == "1"
    if os.name == "posix" and sys.executable and not known:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _open_standard_streams() -> None:
    """Fill the places of closed streams, or the next file that is opened takes the messages that libraries print."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Takes the lowest number that is free, this one. Results cannot be written to it, which is told;
            # messages can, and are lost.
            os.open(os.devnull, os.O_WRONLY if number == 2 else os.O_RDONLY)
            if number > 0:
                stream = os.fdopen(number, "w", encoding="utf-8", closefd=False)
                setattr(sys, ("stdin", "stdout", "stderr")[number], stream)
