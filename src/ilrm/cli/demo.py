"""``ilrm demo``: reconstructing a capture that comes with the package."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ilrm.cli.arguments import Output
from ilrm.cli.console import Console
from ilrm.cli.reconstruct import run_and_show
from ilrm.core.errors import SceneError
from ilrm.files.paths import is_dir


@dataclass(frozen=True)
class Demo:
    """Reconstruct a capture that comes with the package, in under a minute on two cores."""

    output: Output = Path("ilrm-demo")
    """Folder to write."""
    refine: int = 0
    """Steps of refinement after the forward pass."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    overwrite: bool = False
    """Also replace files of the same names that this program did not write."""
    json: bool = False
    """Print one JSON object on stdout and nothing else."""

    def run(self, console: Console) -> dict[str, Any]:
        capture = Path(str(resources.files("ilrm"))) / "assets" / "capture"
        if not is_dir(capture):
            raise SceneError("The bundled capture is missing from this installation.", fix="reinstall ilrm")
        options = {"refine": self.refine, "device": self.device, "overwrite": self.overwrite}
        return run_and_show(console, input=capture, output=self.output, **options)
