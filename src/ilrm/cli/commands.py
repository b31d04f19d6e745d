"""The list of commands, running one of them, and handling of errors and signals."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from threading import current_thread, main_thread
from typing import Annotated, Any, NoReturn

import tyro

from ilrm.cli import FAILED, INTERRUPTED, TERMINATED, train
from ilrm.cli.capture import Capture
from ilrm.cli.console import Console
from ilrm.cli.data import Data
from ilrm.cli.export import Export
from ilrm.cli.mesh import Mesh
from ilrm.cli.reconstruct import Demo, Reconstruct
from ilrm.cli.refine import Refine
from ilrm.cli.render import Render
from ilrm.cli.train import Train
from ilrm.cli.view import View
from ilrm.cli.weights import Weights
from ilrm.core.errors import ConfigError, IlrmError, redirect_warnings
from ilrm.files import settle

Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Capture, tyro.conf.subcommand("capture")]
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

# Advice for running out of memory, by the fields of a command.
_SAVING = {
    "accumulate": "raise --accumulate",
    "checkpoint_layers": "give --checkpoint-layers",
    "size": "lower --size",
    "max_side": "lower --max-side",
    "views": "lower --views",
    "frames": "lower --frames",
    "voxel": "raise --voxel",
    "jobs": "give --jobs 1",
    "device": "choose --device cpu",
}


def run(arguments: Sequence[str]) -> int:
    """Parse the arguments, run the command they name and return the exit status; see ``ilrm.cli.main``."""
    console = Console()
    try:
        _refuse_empty(arguments)
        rest, assignments = train.split(arguments)
        command: Any = tyro.cli(
            Command,  # pyright: ignore[reportArgumentType]
            prog="ilrm",
            description="Photos or a video in, 3D Gaussians out.",
            args=rest,
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.CascadeSubcommandArgs),
        )
        if assignments:
            command = replace(command, fields=assignments)
    except IlrmError as error:
        return console.fail(str(error), FAILED)
    except SystemExit as exit_request:  # the help, or a message about the arguments
        try:
            if exit_request.code == 0:
                train.show_more_help(arguments)
        except IlrmError as error:
            return console.fail(str(error), FAILED)
        except OSError as error:
            console.results.failure = error
        raise SystemExit(console.settle(exit_request.code if isinstance(exit_request.code, int) else FAILED)) from None
    except OSError as error:
        console.results.failure = error
        return console.settle(0)
    console = Console(quiet=command.json)
    with _explained_warnings(console), redirect_warnings(console.warn):
        try:
            status = _run(command, console)
        except SystemExit as exit_request:
            _end_beside_gloo(console.settle(exit_request.code if isinstance(exit_request.code, int) else FAILED))
            raise
        status = console.settle(status)
        _end_beside_gloo(status)
        return status


def _end_beside_gloo(status: int) -> None:
    """Exit at once if this is one of several training processes, without Python's normal shutdown.

    During shutdown, gloo's threads may hang or abort the process with SIGABRT, although all work is done.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        os._exit(status)


def _run(command: Any, console: Console) -> int:
    try:
        with _StopCleanly(), redirect_warnings(console.warn):
            for path in _paths(command):
                settle(path)
            console.answer(command.run(console))
        return 0
    except IlrmError as error:
        return console.fail(str(error), FAILED)
    except KeyboardInterrupt as error:
        return console.fail(str(error) or "interrupted, nothing written", INTERRUPTED)
    except (MemoryError, RuntimeError, ImportError, OSError) as error:
        if (where := _out_of_memory(error)) is not None:
            return console.fail(f"Out of memory{where}; {_memory_advice(command)}", FAILED)
        if isinstance(error, OSError) and error.errno is not None:
            return console.fail(_os_error_message(error), FAILED)
        raise


def _paths(command: object) -> Iterator[Path]:
    """Every path among the arguments of a command and its sub-commands."""
    if isinstance(command, Path):
        yield command
    elif isinstance(command, tuple):
        for value in command:
            yield from _paths(value)
    elif is_dataclass(command):
        for field in fields(command):
            yield from _paths(getattr(command, field.name))


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Refuse empty arguments: as a path they would mean the current folder, but usually a shell variable is not set."""
    for number, argument in enumerate(arguments, 1):
        if argument == "" or re.fullmatch(r"--?[\w-]+=", argument):
            before = f" after {arguments[number - 2]}" if number > 1 and not argument else ""
            given = f"Argument {argument}" if argument else f"Argument {number}{before}"
            raise ConfigError(
                f"{given} is empty.",
                expected="a path, name or number; the current folder is .",
                fix="check the variables in the command: one of them is probably not set",
            )


def _os_error_message(error: OSError) -> str:
    """A message for an OSError that was not converted to a more specific error."""
    reason = error.strerror or str(error)
    place = f" {error.filename}" if error.filename else ""
    problem = f"The system refuses{place}: {reason[:1].lower()}{reason[1:]}."
    return f"{problem}\n  to do:    check the disk, its permissions and limits"


def _out_of_memory(error: BaseException) -> str | None:
    """Where memory ran out: " on the GPU" or ""; None if the error has another cause."""
    words = ("can't allocate memory", "annot allocate memory", "failed to map segment")
    out = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    if out or any(part in str(error) for part in words):
        return ""
    return " on the GPU" if type(error).__name__ == "OutOfMemoryError" else None


def _memory_advice(command: Any) -> str:
    """The state of the output, and the flags of the command that save memory."""
    kept = "nothing was written"
    if isinstance(command, Train):
        kept = "checkpoints are as they were"
    elif isinstance(command, Data | Render):
        kept = "what is finished is kept"
    command = getattr(command, "command", command)
    ways = [way for name, way in _SAVING.items() if name in {field.name for field in fields(command)}]
    return f"{kept}.\n  to do:    {', or '.join([*ways, 'use a machine with more memory'])}"


@contextmanager
def _explained_warnings(console: Console) -> Iterator[None]:
    """Print warnings of libraries as one line like our own, without their location in the code."""
    before = warnings.showwarning
    warnings.showwarning = lambda message, *_, **__: console.warn(" ".join(str(message).split()))
    try:
        yield
    finally:
        warnings.showwarning = before


class _StopCleanly:
    """Let Ctrl-C and SIGTERM unwind the stack during the body, so that temporary files are removed.

    Python drops an exception that a signal handler raises inside a destructor or a callback from C. It is therefore
    raised again every few seconds until the stack is unwound.
    """

    _AGAIN_AFTER_S = 5.0

    def __enter__(self) -> None:
        self.before = {}
        self.signal_received = signal.SIGINT
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
            self.signal_received = number
        if hasattr(signal, "SIGALRM"):  # not on Windows
            before = signal.signal(signal.SIGALRM, self._stop)
            self.before.setdefault(signal.SIGALRM, before)
            signal.setitimer(signal.ITIMER_REAL, self._AGAIN_AFTER_S)
        if self.signal_received == signal.SIGTERM:
            raise SystemExit(TERMINATED)
        raise KeyboardInterrupt
