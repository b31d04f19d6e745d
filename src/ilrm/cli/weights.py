"""``ilrm weights``: what networks there are, and what a file of weights holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ilrm.cli.arguments import Output
from ilrm.cli.console import Console


@dataclass(frozen=True)
class List:
    """List the weights that have a name."""

    def run(self, console: Console) -> dict[str, Any]:
        from ilrm.model.weights import list_weights

        entries = list_weights()
        for entry in entries:
            console.show(
                entry.name, {"from": f"{entry.where} {entry.file}", "for": entry.about, "licence": entry.licence}
            )
        return {"weights": [asdict(entry) for entry in entries]}


@dataclass(frozen=True)
class Pull:
    """Download named weights, so that they are there without a connection."""

    name: tyro.conf.Positional[str]
    """Name of the weights (see `ilrm weights list`)."""

    def run(self, console: Console) -> dict[str, Any]:
        from ilrm.model.weights import pull

        path = pull(self.name)
        console.show(self.name, {"path": path})
        return {"name": self.name, "path": str(path)}


@dataclass(frozen=True)
class Show:
    """Say what weights hold."""

    source: tyro.conf.Positional[str]
    """Name, file or folder."""

    def run(self, console: Console) -> dict[str, Any]:
        from ilrm.model.weights import describe

        return _report(describe(self.source), console)


@dataclass(frozen=True)
class Convert:
    """Write released weights in the safe layout of this package (safetensors)."""

    source: tyro.conf.Positional[str]
    """Name, file or folder."""
    output: Output
    """File (.safetensors) or folder to write."""
    bf16: bool = False
    """Store in half the size, rounded to bfloat16."""
    overwrite: bool = False
    """Replace files of the same names that this program did not write, too."""

    def run(self, console: Console) -> dict[str, Any]:
        from ilrm.model.weights import convert

        return _report(convert(self.source, self.output, bf16=self.bf16, overwrite=self.overwrite), console)


def _report(info: Any, console: Console) -> dict[str, Any]:
    values = {
        "path": str(info.path),
        "layout": info.layout,
        "parameters": info.parameters,
        "file_bytes": info.file_bytes,
        "config": asdict(info.config),
    }
    console.show(Path(info.path).name, values)
    return values


@dataclass(frozen=True)
class Weights:
    """List, fetch, convert and inspect weights."""

    command: Annotated[
        Annotated[List, tyro.conf.subcommand("list")]
        | Annotated[Pull, tyro.conf.subcommand("pull")]
        | Annotated[Convert, tyro.conf.subcommand("convert")]
        | Annotated[Show, tyro.conf.subcommand("show")],
        tyro.conf.arg(name=""),
    ]
    json: bool = False
    """Print one JSON object on stdout and nothing else."""

    def run(self, console: Console) -> dict[str, Any]:
        return self.command.run(console)
