"""The command line ``ilrm``. One file a command; whatever is heavy is imported when a command runs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from threading import current_thread, main_thread
from typing import Annotated, NoReturn

import tyro

from ilrm.cli.console import Console
from ilrm.cli.data import Data
from ilrm.cli.demo import Demo
from ilrm.cli.export import Export
from ilrm.cli.mesh import Mesh
from ilrm.cli.reconstruct import Reconstruct
from ilrm.cli.refine import Refine
from ilrm.cli.render import Render
from ilrm.cli.train import Train
from ilrm.cli.view import View
from ilrm.cli.weights import Weights
from ilrm.errors import IlrmError
from ilrm.files import settle

Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Reconstruct, tyro.conf.subcommand("reconstruct")]
    | Annotated[Render, tyro.conf.subcommand("render")]
    | Annotated[Refine, tyro.conf.subcommand("refine")]
    | Annotated[View, tyro.conf.subcommand("view")]
    | Annotated[Mesh, tyro.conf.subcommand("mesh")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Weights, tyro.conf.subcommand("weights")]
    | Annotated[Data, tyro.conf.subcommand("data")]
)

FAILED, INTERRUPTED, TERMINATED, BROKEN_PIPE = 1, 130, 143, 141
_LOWER_MEMORY = "nothing was written.\n  to do:    lower --size or --views, or choose --device cpu"
_LOWER_TRAINING = "checkpoints are as they were.\n  to do:    raise --accumulate, or choose --checkpoint-layers"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 if everything that was asked for exists; 1 if the user can mend what went wrong (the message says how);
        130 after Ctrl-C; 141 when nobody reads the output. Arguments that cannot be parsed exit with 2, and our own
        mistakes keep their traceback.
    """
    try:
        command = tyro.cli(
            Command,  # pyright: ignore[reportArgumentType]
            prog="ilrm",
            description="Photos with cameras in, 3D Gaussians out.",
            args=arguments,
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.CascadeSubcommandArgs),
        )
    except BrokenPipeError:
        return _unread()
    console = Console(quiet=command.json)
    try:
        with _StopCleanly():
            for path in _paths(command):
                settle(path)
            console.answer(command.run(console))
        return 0
    except IlrmError as error:
        return _fail(str(error), FAILED)
    except KeyboardInterrupt as error:
        return _fail(str(error) or "interrupted, nothing written", INTERRUPTED)
    except BrokenPipeError:
        return _unread()
    except (MemoryError, RuntimeError) as error:
        if (where := _out_of_memory(error)) is None:
            raise
        return _fail(
            f"Out of memory{where}; " + (_LOWER_TRAINING if isinstance(command, Train) else _LOWER_MEMORY), FAILED
        )


def _paths(command: object) -> Iterator[Path]:
    """Every path among the arguments of a command, those of its sub-commands too."""
    if isinstance(command, Path):
        yield command
    elif isinstance(command, tuple):
        for value in command:
            yield from _paths(value)
    elif is_dataclass(command):
        for field in fields(command):
            yield from _paths(getattr(command, field.name))


def _unread() -> int:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at its exit
    return BROKEN_PIPE


def _fail(message: str, status: int) -> int:
    print(f"ilrm: {message}", file=sys.stderr)
    return status


def _out_of_memory(error: BaseException) -> str | None:
    """Where memory ran out (" on the GPU" or nothing); None if the error is about something else."""
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return ""
    return " on the GPU" if type(error).__name__ == "OutOfMemoryError" else None


class _StopCleanly:
    """While inside, Ctrl-C and SIGTERM unwind the stack, so that temporary files are removed.

    Python drops an exception that a signal raises inside a destructor or a callback from C. It is therefore raised
    again every few seconds, until the stack is unwound.
    """

    _AGAIN_AFTER_S = 5.0

    def __enter__(self) -> None:
        self.before = {}
        self.asked = signal.SIGINT
        if current_thread() is main_thread():
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a background job may ignore it
                self.before[signal.SIGINT] = signal.signal(signal.SIGINT, self._stop)
            self.before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._stop)

    def __exit__(self, *_: object) -> None:
        if hasattr(signal, "SIGALRM") and signal.SIGALRM in self.before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, _: object) -> NoReturn:
        if number in (signal.SIGINT, signal.SIGTERM):
            self.asked = number
        if hasattr(signal, "SIGALRM"):  # not on Windows
            before = signal.signal(signal.SIGALRM, self._stop)
            self.before.setdefault(signal.SIGALRM, before)
            signal.setitimer(signal.ITIMER_REAL, self._AGAIN_AFTER_S)
        if self.asked == signal.SIGTERM:
            raise SystemExit(TERMINATED)
        raise KeyboardInterrupt
