"""``ilrm weights``: listing, downloading, converting and inspecting weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ilrm.cli.arguments import Output
from ilrm.cli.console import Console


@dataclass(frozen=True)
class List:
    """List all named weights."""

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
    """Download named weights, for use without a network connection."""

    name: tyro.conf.Positional[str]
    """Name of the weights (see `ilrm weights list`)."""

    def run(self, console: Console) -> dict[str, Any]:
        from ilrm.model.weights import pull

        path = pull(self.name)
        console.show(self.name, {"path": path})
        return {"name": self.name, "path": str(path)}


@dataclass(frozen=True)
class Show:
    """Show the content of weights."""

    source: tyro.conf.Positional[str]
    """Name, file or folder."""

    def run(self, console: Console) -> dict[str, Any]:
        from ilrm.model.weights import describe

        return _report(describe(self.source), console)


@dataclass(frozen=True)
class Convert:
    """Convert released weights to the safe layout of this package (safetensors)."""

    source: tyro.conf.Positional[str]
    """Name, file or folder."""
    output: Output
    """File (.safetensors) or folder to write."""
    bf16: bool = False
    """Round to bfloat16, which halves the size."""
    overwrite: bool = False
    """Also replace files of the same names that this program did not write."""

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
    """List, download, convert and inspect weights."""

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
